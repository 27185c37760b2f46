"""python -m datasets.check NAME PATH: look at every file of a dataset before training on it.

Prints one line per problem (missing partners, unreadable files, sizes that differ, label values out of range)
and exits with 1 if there is any.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from common.errors import UserError, run

from . import NAMES, SPLITS, folder, load
from .files import existing_folder

EXPECTED = {"camvid": {"train": 367, "val": 101, "test": 233}}  # samples per split, as published


def problems(name, root):
    """Yield every problem of the dataset `name` under `root` as one line; say what was looked at on the way."""
    splits = SPLITS
    if name == "folder" and not (root / "images" / "test").is_dir():
        splits = SPLITS[:2]  # people's own data need no test split
    for split in splits:
        try:
            if name == "folder":
                yield from unmatched(existing_folder(root), split)
                dataset = folder.load(root, split, complete=False)
            else:
                dataset = load(name, root, split)
        except UserError as error:
            yield f"{split}: {error}"
            continue
        expected = EXPECTED.get(name, {}).get(split, len(dataset))
        if len(dataset) != expected:
            yield f"{split}: {len(dataset)} samples, published are {expected}"
        for index in tqdm(range(len(dataset)), desc=split, unit="pair", delay=1):
            try:
                dataset[index]
            except UserError as error:
                yield f"{split}: {error}"
        print(f"{split}: {len(dataset)} pairs looked at")


def unmatched(root, split):
    """Images without label, and labels without image, of a folder dataset."""
    files, labels = folder.images_of(root, split)
    for path in files:
        if not (labels / f"{path.stem}.png").is_file():
            yield f"{split}: {path} has no label {labels / (path.stem + '.png')}"
    everything = {path.stem for path in files[0].parent.iterdir()}  # without split folders: the other split's too
    for path in sorted(labels.glob("*.png")) if labels.name == split or split == "train" else ():
        if path.stem not in everything:
            yield f"{split}: {path} has no image of that name"


def main():
    parser = argparse.ArgumentParser(
        prog="python -m datasets.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=NAMES[1:], help="the dataset")
    parser.add_argument("path", type=Path, help="its folder")
    arguments = parser.parse_args()
    existing_folder(arguments.path, "PATH")
    count = 0
    for line in problems(arguments.name, arguments.path):
        tqdm.write(line)
        count += 1
    print("no problem found" if count == 0 else f"{count} problem{'s' * (count > 1)}")
    return int(count > 0)


if __name__ == "__main__":
    run(main)
