"""python -m learn.explore: docs/explore.html, a page on which one touches a pixel.

Six test scenes, five papers; with and without context, before and after training. The networks are
those of `make shapes-table` and `make probes`, seed 0, trained first where they are missing: forty,
a minute or two each on a laptop.
"""

import torch
from tqdm import tqdm

from common import checkpoint
from datasets.shapes import Shapes
from papers.options import build_model
from studies.probes import probe_run
from studies.trainings import NAMES, ROOT, load_best, parser, train_all

from . import page

PAGE = ROOT / "docs" / "explore.html"
# Title, task, number of the test scene.
PICTURES = [
    ("scene 1", "global", 2), ("scene 2", "global", 5), ("scene 3", "global", 8),
    ("direction: the colour of the next cue above", "direction", 1),
    ("nearest: the colour of the closest cue", "nearest", 1),
    ("count: the number of cues", "count", 1),
]
QUESTIONS = {
    "global": "A shape's class is its outline and the colour of the ringed badge in a far corner.",
    "direction": "An object's class is the colour of the next cue above it, even if one below is "
                 "closer.",
    "nearest": "An object's class is the colour of the cue that is closest to it.",
    "count": "An object's class is the number of cues. Colours mean nothing.",
}
SEED, LIMIT = 0, 3 * 2**20  # bytes


def networks(task):
    """{paper: {(context, trained): network}} for a task."""
    found = {}
    for paper in NAMES:
        found[paper] = {}
        for context in (True, False):
            run = probe_run(paper, context, task, SEED)
            found[paper][context, True] = load_best(run)
            found[paper][context, False] = untrained(run)
    return found


def untrained(run):
    """The network with which a run began."""
    config = checkpoint.load_run(run[0])["config"]
    torch.manual_seed(config["seed"])
    return build_model(config["paper"], config["preset"], config["num_classes"],
                       config["options"]).eval()


def main():
    flags = parser(__doc__, jobs=True)
    jobs = flags.parse_args().jobs
    tasks = list(dict.fromkeys(task for _, task, _ in PICTURES))
    train_all([probe_run(paper, context, task, SEED) for task in tasks for paper in NAMES
               for context in (True, False)], jobs)
    torch.set_num_threads(1)  # many small products: threads would wait for each other
    blob, found = page.Blob(), []
    loaded = {task: networks(task) for task in tasks}
    for title, task, number in tqdm(PICTURES, unit="picture"):
        scenes = Shapes("test", task=task.replace("global", ""))
        found.append(page.record_picture(
            blob, title, *scenes[number], scenes.classes, scenes.palette, loaded[task]))
        found[-1]["question"] = QUESTIONS[task]
    note = "Tiny networks of this repository, trained for 300 to 600 steps on made-up scenes."
    size = page.write(PAGE, blob, found, NAMES, note, LIMIT)
    print(f"page: {PAGE.relative_to(ROOT)}, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
