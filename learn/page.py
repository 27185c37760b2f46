"""Library: what networks do at the pixels of pictures, packed into one page that needs no server.

Every number on the page is the network's own: predictions from an ordinary forward pass, what a
pixel looks at from the paper's explain.py. Classes are exact. Probabilities are bytes, weights are
64 steps between the smallest and the largest of their panel, maps are read at 16 x 16 places.
"""

import base64
import importlib
import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch

import datasets
from common.checkpoint import write_atomically
from common.inference import SMALLEST, normalise, scores_of
from datasets.files import make_folder, read_image
from datasets.predictions import check_free, keep_out
from papers import attention

from .lesson import ROOT

TEMPLATE = Path(__file__).with_name("explore.html")
SHOWN = 256  # pixels of the longer side that are shown, at most: of larger pictures every k-th
CELLS = 16  # rows and columns of a map that is shown, and of places that look, at most
DATA = re.compile(r'^const head = (.*);\nconst packed = "(.*)";', re.MULTILINE)
STEPS = 63  # between the smallest and the largest weight of a panel
SPAN = 2.0  # points are kept within this many sides of the image around the pixel

# What "looks at" means in each paper, and its formula; <mark> is what the picture shows. {place} is
# the line of model.py.
WORDS = {
    "pysa": ("PySA", "PySALevel.forward", "At each level the pixel reads the cells of its own "
             "region; the number is the weight of a cell.",
             "O = <mark>softmax(Q K<sup>T</sup> / √d)</mark> V, inside a region"),
    "unept": ("UN-EPT", "DeformableAttention.forward", "The query itself says where to look: a few "
              "points per head and resolution, their area is their weight. Nothing is compared.",
              "out = Σ<sub>l,n</sub> <mark>a<sub>ln</sub></mark> · V<sup>l</sup>(<mark>r + "
              "Δ<sub>ln</sub></mark>)"),
    "pan": ("PAN", "FPA.forward", "PAN has no weight between two pixels. One map multiplies the "
            "features where they are, and gates open or close channels for all pixels alike: only "
            "the map has a place, and nothing here depends on the pixel that you touch.",
            "F = M · <mark>A</mark> + <mark>g</mark>, &nbsp; GAU = ↑Y + <mark>w</mark> · L′"),
    "psanet": ("PSANet", "collect", "Collect: how much the pixel takes from every other. "
               "Distribute: how much every other gives to it.",
               "z<sub>i</sub> = Σ<sub>j</sub> <mark>A<sub>ij</sub></mark> v<sub>j</sub>, &nbsp; a "
               "= q<sub>owner</sub> · R<sub>other − owner</sub>"),
    "lrformer": ("LRFormer", "Attention.forward", "Cells of a small grid ask, cells of four "
                 "smaller grids answer. The number is the weight beside an even share, mean of "
                 "the heads, all four grids laid over each other.",
                 "O = <mark>softmax(Q K<sup>T</sup> / √d)</mark> V, &nbsp; K, V of pooled maps"),
}


class Blob:
    """Bytes that the page unpacks; `add` returns where an array begins."""

    def __init__(self):
        self.parts, self.size = [], 0

    def add(self, array):
        """The place of an array's bytes, in its own order."""
        data = np.ascontiguousarray(array).tobytes()
        self.parts.append(data)
        self.size += len(data)
        return self.size - len(data)

    def text(self):
        """All of it, compressed, in base 64."""
        return base64.b64encode(zlib.compress(b"".join(self.parts), 9)).decode()


def to_bytes(values, low, high, steps=255):
    """Numbers between low and high as 0 to `steps`."""
    scale = np.where(high > low, high - low, 1)
    return np.round((values - low) / scale * steps).clip(0, steps).astype(np.uint8)


def places(side, every):
    """The pixels of a side that stand for blocks of `every`: their middles."""
    return np.minimum(np.arange(0, side, every) + every // 2, side - 1)


def spacing(shape):
    """(k, every, block) for an image [H, W, ...]: every k-th pixel is shown; of those every
    `every`-th can be touched, and a place that looks lies in the middle of `block` x `block`."""
    k = -(-max(shape[:2]) // SHOWN)
    block = -(-max(shape[:2]) // (k * CELLS))
    return k, max(1, block // 2), block


@torch.inference_mode()
def forward(model, explain, image):
    """(probabilities [K, H, W], record, size of what the network sees) of an image uint8
    [H, W, 3]."""
    height, width = image.shape[:2]
    x = normalise(image, "cpu")[None]
    x = torch.nn.functional.pad(x, (0, max(0, SMALLEST - width), 0, max(0, SMALLEST - height)))
    with attention.record(model, explain.RECORD) as seen:
        scores = scores_of(model, x)[0, :, :height, :width]
    return scores.softmax(0).numpy(), seen, tuple(x.shape[-2:])


def panel_values(values, size, pixel):
    """What explain.py gives as an array for the page: a map of at most CELLS x CELLS, a vector, or
    points [n, 3]: (x, y) beside the pixel in sides of the image, and weight."""
    if isinstance(values, dict):
        points = torch.cat(list(values.values())).float().numpy().copy()
        points[:, 0] = (points[:, 0] - pixel[1] - 0.5) / size[1]
        points[:, 1] = (points[:, 1] - pixel[0] - 0.5) / size[0]
        return points
    values = values.float().numpy()
    if values.ndim == 2:
        rows, columns = ((2 * np.arange(n) + 1) * side // (2 * n) for n, side in
                         ((min(CELLS, side), side) for side in values.shape))
        values = values[rows[:, None], columns]
    return values


def record_panels(blob, model, explain, image):
    """What every place of an image looks at, as a list of panels for the page; [] without context.

    One scale serves all places, so that they can be compared. Of each number the differences from
    place to place are kept, which pack well.
    """
    k, _, block = spacing(image.shape)
    with torch.inference_mode():
        _, seen, size = forward(model, explain, image)
        rows, columns = (k * places(-(-side // k), block) for side in image.shape[:2])
        wanted = [(int(y), int(x)) for y in rows for x in columns]
        first, last = (explain.explain(model, seen, size, at) for at in (wanted[0], wanted[-1]))
        fixed = all(isinstance(a, torch.Tensor) and torch.equal(a, b)
                    for (_, a), (_, b) in zip(first, last, strict=True))
        if fixed:
            wanted = wanted[:1]
        looks = [explain.explain(model, seen, size, at) for at in wanted]
    panels = []
    for number, (title, values) in enumerate(looks[0]):
        found = np.stack([panel_values(look[number][1], image.shape[:2], at)
                          for look, at in zip(looks, wanted, strict=True)])     # [places, ...]
        panel = {"title": title.split(";")[0], "fixed": fixed, "shape": found.shape[1:]}
        if isinstance(values, dict):
            panel["kind"] = "points"
            panel["names"] = {name: len(points) for name, points in values.items()}
            low, high = np.array([-SPAN, -SPAN, 0]), np.array([SPAN, SPAN, found[..., 2].max()])
            steps = np.array([255, 255, STEPS])
        else:
            panel["kind"] = "map" if values.ndim == 2 else "bars"
            low, high, steps = found.min(), found.max(), STEPS
        panel["low"], panel["high"] = (float(np.atleast_1d(b)[-1]) for b in (low, high))
        packed = to_bytes(found, low, high, steps).reshape(len(found), -1).T   # [numbers, places]
        panel["at"] = blob.add(np.diff(packed, axis=1, prepend=np.uint8(0)))  # modulo 256
        panels.append(panel)
    return panels


def record_state(blob, model, explain, image):
    """Class of every pixel and its probability at the places that can be touched."""
    k, every, _ = spacing(image.shape)
    probabilities = forward(model, explain, image)[0][:, ::k, ::k]
    rows, columns = (places(side, every) for side in probabilities.shape[1:])
    chosen = probabilities.max(0)[rows[:, None], columns]
    return {"classes": blob.add(probabilities.argmax(0).astype(np.uint8)),
            "certain": blob.add(to_bytes(chosen, 0, 1))}


def record_picture(blob, title, image, label, classes, palette, networks):
    """One picture with all networks, {paper: {(context, trained): network}}, for the page.

    label: uint8 [H, W], or None where nobody knows.
    """
    k, every, block = spacing(image.shape)
    shown = image[::k, ::k]
    found = {"title": title, "height": shown.shape[0], "width": shown.shape[1], "every": every,
             "block": block, "classes": list(classes), "pixels": blob.add(shown), "papers": {},
             "palette": [list(map(int, colour)) for colour in palette]}
    if label is not None:
        found["label"] = blob.add(label[::k, ::k])
    for paper, states in networks.items():
        explain, kept = importlib.import_module(f"papers.{paper}.explain"), {}
        for (context, trained), model in states.items():
            state = record_state(blob, model, explain, image)
            if context:
                state["panels"] = record_panels(blob, model, explain, image)
            kept[f"{int(context)}{int(trained)}"] = state
        found["papers"][paper] = kept
    return found


def describe(paper):
    """Name, sentence, formula and line of model.py of a paper, for the page."""
    name, place, sentence, formula = WORDS.get(paper, (paper, "build", "", ""))
    return {"name": name, "sentence": sentence, "formula": formula, "place": place,
            "link": f"../papers/{paper}/model.py#L{line_of(paper, place)}"}


def line_of(paper, place):
    """The line of model.py at which a function or Class.method begins."""
    text, line = (ROOT / "papers" / paper / "model.py").read_text(encoding="utf-8"), 0
    for name in place.split("."):
        line = re.compile(rf"^ *(?:def|class) {name}\b", re.MULTILINE).search(text, line).start()
    return text[:line].count("\n") + 1


def write(target, blob, pictures, papers, note, limit=None):
    """The page with these pictures, as one file. note: what the networks are. Returns its size.

    Raises ValueError if it has more than `limit` bytes.
    """
    head = {"note": note, "pictures": pictures, "papers": dict.fromkeys(papers), "span": SPAN,
            "steps": STEPS}
    data = fill(head, blob.text()).encode("utf-8")
    if limit and len(data) > limit:
        raise ValueError(f"{target}: {len(data)} bytes, more than {limit}")
    write_atomically(target, data)
    return len(data)


def fill(head, packed):
    """The text of the page: today's template, words and links around what was recorded."""
    head["papers"] = {paper: describe(paper) for paper in head["papers"]}
    head = json.dumps(head, separators=(",", ":")).replace("</", "<\\/")
    text = TEMPLATE.read_text(encoding="utf-8")
    return text.replace('"HEAD"', head).replace("BLOB", packed)


def recorded(text):
    """(head, packed) of the text of a page: what `fill` needs to make it again."""
    head, packed = DATA.search(text).groups()
    return json.loads(head), packed


def explore(model, config, arguments, protocol, out, device):
    """What `eval.py --explore` does: the page of one trained network and one picture, --image or
    the first of the dataset, as the network sees it in one pass at its own size. On the CPU.

    Raises UserError where no dataset is named.
    """
    blob, paper, label = Blob(), config["paper"], None
    if arguments.image:
        name, image = arguments.image.stem, read_image(arguments.image)
    else:
        datasets.refuse_folder(arguments.dataset or config["dataset"], arguments.data)
        dataset = datasets.load(arguments.dataset or config["dataset"] or "", arguments.data,
                                arguments.split)
        keep_out(dataset, arguments.data, out, "--out")
        name, (image, label) = dataset.sample_name(0), dataset[0]
    networks = {paper: {(config["options"].get("context", True), True): model.cpu()}}
    picture = record_picture(blob, name, image, label, config["classes"], config["palette"],
                             networks)
    target = check_free(make_folder(out) / f"{name}-explore.html")
    write(target, blob, [picture], [paper], f"{paper} {config['preset']}, one run.")
    print(f"page: {target}")
