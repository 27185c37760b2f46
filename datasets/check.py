"""python -m datasets.check NAME PATH: look at every file of a dataset before training on it.

Prints a line "problem: ..." for each (another number of images than published, files without
partner, damaged files, sizes that differ, label values out of range) and exits with 1 if there is
any. From another folder: python DIR/datasets/check.py NAME PATH.
"""

import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0], __package__ = str(Path(__file__).resolve().parent.parent), "datasets"
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C during the imports

from tqdm import tqdm

from common.cli import Parser
from common.errors import UserError, run

from . import LOADERS, SAMPLES, statistics
from .files import MissingSplit, existing_folder


def problems(name, root):
    """Yield every problem of the dataset `name` under `root` as one line; say what was looked at on
    the way."""
    splits, seen = {}, set()  # splits may share files: everything is looked at once, and said once
    for split, published in SAMPLES[name].items():
        try:
            dataset = LOADERS[name](root, split)
        except MissingSplit as error:
            print(f"{split}: not here ({error})")
            continue
        except UserError as error:
            if str(error) not in seen:
                yield f"{split}: {error}"
            seen.add(str(error))
            continue
        count = len(dataset) + len(dataset.missing)
        if published not in (None, count):
            yield f"{split}: {count} images, published are {published}"
        yield from (f"{split}: {line}" for line in dataset.missing if line not in seen)
        new = [index for index, pair in enumerate(dataset.pairs) if pair not in seen]
        seen.update(dataset.missing, dataset.pairs)
        found = statistics.Statistics(split, dataset.classes)
        for index in tqdm(new, desc=split, unit="pair", delay=1):
            try:
                found.add(dataset[index][1])
            except UserError as error:
                yield f"{split}: {error}"
        beside = f", published are {published} images" if published else ""
        print(f"{split}: {len(dataset)} pairs looked at{beside}")
        print(*found.table(), sep="\n")
        splits[split] = found
    if {"train", "val"} <= splits.keys():
        train, val = splits["train"], splits["val"]
        for line in (*statistics.compare(train, val), *statistics.few(val.count)):
            print(f"warning: {line}")


def main():
    parser = Parser(__doc__, "python -m datasets.check")
    parser.add_argument("name", choices=LOADERS, help="the dataset")
    parser.add_argument("path", type=Path, help="its folder")
    arguments = parser.parse_args()
    existing_folder(arguments.path, "PATH")
    count = 0
    for line in problems(arguments.name, arguments.path):
        tqdm.write(f"problem: {line}")
        count += 1
    print("no problem found" if count == 0 else f"{count} problem{'s' * (count > 1)}")
    return int(count > 0)


if __name__ == "__main__":
    run(main)
