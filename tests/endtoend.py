"""python -m tests.endtoend [PART ...] [--data CAMVID]: what train.py and eval.py do besides running
a network.

By default all parts. Each prints a table; docs/protocols.md and docs/data.md quote them. Networks
are `tiny`, weights random, times those of one thread.

training    images per second of train.py, and the shares of a step that are forward pass, loss and
            gradients; getting the batch; preparing it on the device; the optimiser
evaluation  images per second of eval.py, and the share outside the network
outside     time outside the network, as a multiple of the time in it, by protocol and classes
memory      what segmenting a photo in windows takes beyond program, network and photo
multiscale  six scales and mirror images of 2048 x 1024 pixels, beside the plainest correct program
norms       how many times as long a forward pass takes as one without any BatchNorm: what folding
            it into the convolutions could gain at most
"""

import contextlib
import io
import itertools
import statistics
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import datasets
import train
from common import loop
from common.inference import SIX_SCALES, Protocol, evaluate, normalise, predict
from papers.options import build_model
from studies.measure import markdown, peak_memory, turns
from studies.trainings import NAMES, parser
from tests.bench import ratio

STEPS, WARM_UP, IMAGES, ROUNDS = 25, 5, 16, 5
PHOTO, FRAME, STREET = (3000, 4000), (720, 960), (1024, 2048)  # height, width
CLASSES, CROPS = (11, 150), (128, 512)


class Finished(Exception):
    """Enough was measured."""


def timed(seconds, name, function):
    """The function, which adds what it takes to seconds[name]."""
    def call(*arguments, **named):
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            seconds[name] += time.perf_counter() - start
    return call


def a_training(flags):
    """Seconds by part, and of "all", of the steps of train.py after the warm-up."""
    seconds, real_batches, real_optimizer = Counter(), train.batches, loop.make_optimizer

    @contextlib.contextmanager
    def batches(*arguments, **named):
        with real_batches(*arguments, **named) as stream:
            yield steps(iter(stream))

    def steps(stream):
        draw = timed(seconds, "data", partial(next, stream))
        for number in range(STEPS + WARM_UP):
            if number == WARM_UP:
                seconds.clear()
                seconds["all"] = -time.perf_counter()
            yield draw()
        seconds["all"] += time.perf_counter()
        raise Finished

    def make_optimizer(*arguments):
        optimizer = real_optimizer(*arguments)
        for name in ("step", "zero_grad"):
            setattr(optimizer, name, timed(seconds, "optimiser", getattr(optimizer, name)))
        return optimizer

    with (tempfile.TemporaryDirectory() as folder, mock.patch.object(train, "batches", batches),
          mock.patch.multiple(
              loop, make_optimizer=make_optimizer,
              normalise=timed(seconds, "device", loop.normalise),
              add_gradients=timed(seconds, "network", loop.add_gradients)),
          mock.patch.object(sys, "argv", ["train.py", *flags, f"--out={folder}/run",
                                          f"--eval-every={10**6}", "--device=cpu"]),
          contextlib.redirect_stdout(io.StringIO()),
          contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(Finished)):
        train.main()
    return seconds


def training(data):
    """Rows of the table."""
    places = [("shapes", ["--dataset=shapes", f"--workers={n}"], n) for n in (0, 2)]
    if data:
        places += [("camvid", ["--dataset=camvid", f"--data={data}", f"--workers={n}"], n)
                   for n in (0, 2)]
    for place, flags, workers in places:
        for paper in NAMES:
            seconds = a_training([f"--paper={paper}", "--batch-size=8", *flags])
            shares = [seconds[name] / seconds["all"]
                      for name in ("network", "data", "device", "optimiser")]
            yield [place, workers, NAMES[paper], f"{8 * STEPS / seconds['all']:.1f}",
                   *(f"{share:.1%}" for share in (*shares, 1 - sum(shares)))]


def pysa(classes):
    """The network, as eval.py has it."""
    torch.manual_seed(0)
    network = build_model("pysa", "tiny", classes, {})
    return network.eval().to(memory_format=torch.channels_last)


def share_outside(network, run):
    """(seconds, those outside the network) of run(network)."""
    seconds = Counter()
    with mock.patch.object(network, "forward", timed(seconds, "network", network.forward)):
        timed(seconds, "all", run)(network)
    return seconds["all"], seconds["all"] - seconds["network"]


def evaluation(data):
    """Rows of the table."""
    for place, root in (("shapes", None), *([("camvid", data)] if data else ())):
        dataset = datasets.load(place, root, "val")
        dataset = [dataset[number] for number in range(min(IMAGES, len(dataset)))]
        count = 1 + max(int(label[label < 255].max()) for _, label in dataset)
        for paper in NAMES:
            network = build_model(paper, "tiny", count, {}).to(memory_format=torch.channels_last)
            for _ in range(2):  # the first one warms up
                total, outside = share_outside(
                    network, lambda net: evaluate(net, dataset, count))  # noqa: B023
            yield [place, NAMES[paper], f"{len(dataset) / total:.1f}", f"{outside / total:.1%}"]


def picture(size):
    """uint8 [H, W, 3]."""
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


def outside(data):
    """Rows of the table."""
    image = picture(FRAME)
    for name, protocol in (
            ("`whole`", Protocol()), (f"`sliding` ({CROPS[0]})", Protocol(crop=CROPS[0])),
            (f"`sliding` ({CROPS[0]}), scale 0.7", Protocol(crop=CROPS[0], scales=(0.7,))),
            ("`whole`, scales 0.5, 1, 1.5", Protocol(scales=(0.5, 1.0, 1.5))),
            (f"`multiscale` ({CROPS[0]})", Protocol(
                crop=CROPS[0], scales=SIX_SCALES, flip=True, average="probabilities"))):
        row = [name]
        for classes in CLASSES:
            network, ratios = pysa(classes), []
            for _ in range(ROUNDS):
                total, rest = share_outside(
                    network, lambda net: predict(net, image, protocol))  # noqa: B023
                ratios.append(rest / (total - rest))
            row.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        yield row


class OneLayer(nn.Module):
    """Answers at the full size and needs little, so that what is measured is the windows' own."""

    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 1)

    def forward(self, images):
        return {"out": self.layer(images)}


def of_windows(classes, crop):
    return partial(predict, OneLayer(classes), picture(PHOTO), Protocol(crop=crop))


def of_pysa(classes, crop):
    network = pysa(classes)
    return partial(predict, network, picture(PHOTO), Protocol(crop=crop))


def memory(data):
    """Rows of the table: what segmenting takes beyond the program, the network and the photo."""
    cases = [("one layer", of_windows, *case) for case in itertools.product(CLASSES, CROPS)]
    for name, make, classes, crop in (*cases, ("the tiny PySA", of_pysa, CLASSES[-1], CROPS[-1])):
        yield [name, classes, f"{crop} x {crop}",
               f"{peak_memory(make, classes, crop) / 1024:.2f} GiB"]


@torch.inference_mode()
def plainest(network, image, scales, crop):
    """The protocol `multiscale` as one writes it down: one map of the probabilities of all classes
    for each size of the image, resized and added up."""
    size, total, stride = image.shape[:2], 0, -(-2 * crop // 3)
    for scale in scales:
        scaled = [round(side * scale) for side in size]
        x = F.interpolate(normalise(image)[None], scaled, mode="bilinear", align_corners=False)
        x = F.pad(x, (0, max(0, crop - scaled[1]), 0, max(0, crop - scaled[0])))
        added, count = 0, x.new_zeros(x.shape[-2:])
        for top in range(0, x.shape[-2] - crop + stride, stride):
            for left in range(0, x.shape[-1] - crop + stride, stride):
                y, x0 = min(top, x.shape[-2] - crop), min(left, x.shape[-1] - crop)
                window = (..., slice(y, y + crop), slice(x0, x0 + crop))
                both = network(torch.cat([x[window], x[window].flip(-1)]))["out"]
                both = F.interpolate(both, (crop, crop), mode="bilinear", align_corners=False)
                both = both.softmax(1)
                if isinstance(added, int):
                    added = x.new_zeros(1, both.shape[1], *x.shape[-2:])
                added[window] += ((both[0] + both[1].flip(-1)) / 2)[None]
                count[window[1:]] += 1
        added = (added / count)[..., : scaled[0], : scaled[1]]
        total = total + F.interpolate(added, size, mode="bilinear", align_corners=False)[0]
    return total.argmax(0).to(torch.uint8).numpy()


def of_six_scales(plain, classes, crop):
    network, image = pysa(classes), picture(STREET)
    if plain:
        return partial(plainest, network, image, SIX_SCALES, crop)
    return partial(predict, network, image, Protocol(
        crop=crop, scales=SIX_SCALES, flip=True, average="probabilities"))


def multiscale(data):
    """Rows of the table. Exits with an error where more than 1 of 10,000 pixels differ."""
    for classes in CLASSES[:1]:  # with 150 the plain program takes long
        rows, results = [], []
        for plain in (True, False):
            run = of_six_scales(plain, classes, CROPS[-1])
            start = time.perf_counter()
            results.append(run())
            rows.append(["plainest" if plain else "`multiscale`", classes,
                         f"{time.perf_counter() - start:.1f} s",
                         f"{peak_memory(of_six_scales, plain, classes, CROPS[-1]) / 1024:.2f} GiB"])
        yield from rows
        differ = (results[0] != results[1]).mean()
        if differ > 1e-4:
            sys.exit(f"{differ:.2%} of the pixels differ")


LARGER = {"pysa": "resnet50", "unept": "resnet50", "pan": "smp_resnet34", "psanet": "resnet50",
          "lrformer": "t"}


def norms(data):
    """Rows of the table."""
    images = torch.randn(1, 3, 257, 257)
    for paper, larger in LARGER.items():
        for preset in ("tiny", larger):
            network = build_model(paper, preset, 21, {}).eval()

            @torch.inference_mode()
            def run(network=network):
                return network(images)

            def without(run=run):
                with mock.patch.object(nn.BatchNorm2d, "forward", lambda norm, x: x):
                    return run()

            seconds = turns({"with": run, "without": without}, ROUNDS)
            yield [NAMES[paper], preset, ratio(seconds["with"], seconds["without"], 1)]


TABLES = {
    "training": ["scenes", "workers", "paper", "images/s", "network", "data",
                 "to the device", "optimiser", "rest"],
    "evaluation": ["scenes", "paper", "images/s", "outside the network"],
    "outside": ["protocol", *(f"{n} classes" for n in CLASSES)],
    "memory": ["network", "classes", "windows of", "extra memory"],
    "multiscale": ["program", "classes", "time", "extra memory"],
    "norms": ["paper", "preset", "with / without BatchNorm"],
}


def main():
    flags = parser(__doc__)
    flags.add_argument("parts", nargs="*", choices=[[], *TABLES], default=[], metavar="PART")
    flags.add_argument("--data", type=Path, help="folder of CamVid, for training and evaluation")
    arguments = flags.parse_args()
    torch.set_num_threads(1)
    for name in arguments.parts or TABLES:
        rows = [*globals()[name](arguments.data)]
        print("\n".join(["", *markdown(TABLES[name], rows)]), flush=True)


if __name__ == "__main__":
    main()
