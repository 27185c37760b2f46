"""docs/explore.html: its numbers are the networks' own, and in a browser everything works.

The browser runs a copy of the page to which a script is appended. The script does what a reader
does, notes after each step what the page shows, and says it all on the console at the end.
"""

import base64
import importlib
import json
import os
import re
import shutil
import subprocess
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint
from datasets.shapes import Shapes
from learn import explore, page
from papers.options import build_model
from studies.trainings import NAMES

TEXT = explore.PAGE.read_text(encoding="utf-8")
HEAD, PACKED = page.recorded(TEXT)
BYTES = np.frombuffer(zlib.decompress(base64.b64decode(PACKED)), np.uint8)

# ------------------------------------------------------------------------------------ the numbers


def test_the_page_is_the_template_of_today_with_what_was_recorded():
    assert page.fill(*page.recorded(TEXT)) == TEXT, "the page is out of date: run `make links`"
    wanted = [(title, explore.QUESTIONS[task]) for title, task, _ in explore.PICTURES]
    assert [(p["title"], p["question"]) for p in HEAD["pictures"]] == wanted
    assert list(HEAD["papers"]) == list(NAMES)


def test_the_page_is_small_and_alone():
    assert explore.PAGE.stat().st_size <= explore.LIMIT
    template = page.TEMPLATE.read_text(encoding="utf-8").splitlines()
    assert len(template) <= 600 and max(map(len, template)) <= 100
    assert not re.search(r"https?:|\bsrc=|@import|url\(|fetch\(", "\n".join(template))


def shown(data, picture, paper, context, trained, row, column):
    """(class, probability, [values of a panel]) that a page has for a pixel, in numbers."""
    found = picture["papers"][paper][f"{context}{trained}"]
    width, every, block = picture["width"], picture["every"], picture["block"]
    name = data[found["classes"] + row * width + column]
    across = -(-width // every)
    certain = data[found["certain"] + row // every * across + column // every] / 255
    panels = []
    for panel in found.get("panels", []):
        places = 1 if panel["fixed"] else -(-picture["height"] // block) * -(-width // block)
        at = 0 if panel["fixed"] else row // block * -(-width // block) + column // block
        count = int(np.prod(panel["shape"]))
        steps = data[panel["at"] : panel["at"] + count * places].reshape(count, places)
        panels.append(steps[:, : at + 1].sum(1, dtype=np.int64) % 256)
    return name, certain, panels


def compare(data, picture, paper, state, model, image, pixel):
    """What a page has for a pixel, against a forward pass of now; `image` as the page shows it."""
    explain = importlib.import_module(f"papers.{paper}.explain")
    name, certain, panels = shown(data, picture, paper, *state, *pixel)
    block, (height, width) = picture["block"], image.shape[:2]
    place = [min(p // block * block + block // 2, side - 1)
             for p, side in zip(pixel, (height, width), strict=True)]
    with torch.inference_mode():
        probabilities, seen, size = page.forward(model, explain, image)
        wanted = explain.explain(model, seen, size, place) if state[0] else []
    here = probabilities[:, pixel[0], pixel[1]]
    assert here.max() - here[name] < 1e-4 and abs(here.max() - certain) < 0.51 / 255
    own = picture["papers"][paper][f"{state[0]}{state[1]}"].get("panels", [])
    assert len(own) == len(panels) == len(wanted)
    for panel, steps, (title, values) in zip(own, panels, wanted, strict=True):
        assert panel["title"] == title.split(";")[0]
        if isinstance(values, dict):
            steps = steps.reshape(-1, 3)
            values = torch.cat(list(values.values()))
            beside = values[:, :2] - torch.tensor(place).flip(0) - 0.5
            beside = (beside / torch.tensor([width, height])).clamp(-2, 2)
            error = beside - torch.from_numpy(steps[:, :2] / 255 * 4 - 2)
            assert error.abs().max() < 0.51 * 4 / 255
            steps, values = steps[:, 2], values[:, 2]
        elif values.ndim == 2:  # as many cells as the panel has, the middles of its own
            sides = zip(panel["shape"], values.shape, strict=True)
            rows, columns = ((2 * torch.arange(n) + 1) * side // (2 * n) for n, side in sides)
            values = values[rows[:, None], columns]
        scale = (panel["high"] - panel["low"]) / 63
        got = torch.from_numpy(panel["low"] + scale * steps).view(values.shape)
        assert (got - values).abs().max() < 0.51 * scale + 1e-6


@pytest.mark.parametrize("paper", NAMES)
def test_the_numbers_before_training_are_those_of_fresh_networks(paper):
    """Of the committed page; those after training need the runs that `make explore` trains."""
    rng = np.random.default_rng(0)
    for number, (_, task, sample) in list(enumerate(explore.PICTURES))[2:4]:
        scenes, picture = Shapes("test", task=task.replace("global", "")), HEAD["pictures"][number]
        image, label = scenes[sample]
        pixels = BYTES[picture["pixels"] :][: image.size].reshape(image.shape)
        assert (pixels == image).all()
        assert (BYTES[picture["label"] :][: label.size].reshape(label.shape) == label).all()
        for context in (0, 1):
            torch.manual_seed(explore.SEED)
            model = build_model(paper, "tiny", len(scenes.classes),
                                {} if context else {"context": False}).eval()
            pixel = [int(p) * 4 + 2 for p in rng.integers(0, 32, 2)]
            compare(BYTES, picture, paper, (context, 0), model, image, pixel)


@pytest.mark.parametrize("paper", NAMES)
def test_what_is_recorded_is_what_a_network_does(paper):
    """Of a picture whose sides are odd, and differ."""
    image = np.random.default_rng(1).integers(0, 255, (41, 58, 3), dtype=np.uint8)
    torch.manual_seed(2)
    model, blob = build_model(paper, "tiny", 3, {}).eval(), page.Blob()
    picture = page.record_picture(blob, "", image, None, "abc", [(0, 0, 0)] * 3,
                                  {paper: {(True, True): model}})
    data = np.frombuffer(zlib.decompress(base64.b64decode(blob.text())), np.uint8)
    for pixel in ((0, 0), (16, 37), (40, 4), (40, 57)):
        every = picture["every"]
        pixel = [min(p // every * every + every // 2, side - 1)
                 for p, side in zip(pixel, image.shape[:2], strict=True)]
        compare(data, picture, paper, (1, 1), model, image, pixel)


# ------------------------------------------------------------------------------------ the browser

NAMES_OF_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = os.environ.get("CHROME") or next(filter(None, map(shutil.which, NAMES_OF_BROWSERS)), "")
needs_browser = pytest.mark.skipif(
    not BROWSER, reason=f"no browser: none of {', '.join(NAMES_OF_BROWSERS)}, and no CHROME")

# What a page shows, as an object; what a reader does, by name. Both are texts for the browser.
SCRIPT = """
const notes = {};
const wait = () => new Promise(done => requestAnimationFrame(() => setTimeout(done, 20)));
const all = selector => [...document.querySelectorAll(selector)];
const seen = () => ({
  address: location.hash, place: $("place").textContent, truth: $("truth").textContent,
  picture: $("picture").value, question: $("question").textContent,
  error: document.body.dataset.error,
  width: document.documentElement.scrollWidth, inner: innerWidth,
  boxes: all(".card, .touch, canvas, .step, .formula").map(e => {
    const box = e.getBoundingClientRect();
    return [e.id || e.className, box.x, box.y + scrollY, box.width, box.height].join(" ");
  }),
  cut: all("p, h2, a, .formula, label").filter(e => e.scrollHeight > e.clientHeight + 1
    && e.clientHeight || e.scrollWidth > e.clientWidth + 1 && e.clientWidth)
    .map(e => `${e.id || e.className}: ${e.textContent}`),
  papers: Object.fromEntries(all("[id]").filter(e => e.id in head.papers).map(e => [e.id, {
    ...e.dataset, says: e.querySelector(".says").textContent,
    mark: e.querySelector(".says").className, caption: e.querySelector(".caption").textContent,
    last: e.querySelector(".step").max, off: e.querySelector(".step").disabled,
    drawn: drawn(e.querySelector("canvas")), link: e.querySelector("a").getAttribute("href"),
  }])),
  scene: drawn($("scene")),
});
/* A sum over 128 x 128 of its pixels, and the colours of 4 x 4 of them. */
const small = new OffscreenCanvas(128, 128);
const pen = small.getContext("2d", {willReadFrequently: true});
pen.imageSmoothingEnabled = false;
function drawn(canvas) {
  pen.drawImage(canvas, 0, 0, 128, 128);
  const {data} = pen.getImageData(0, 0, 128, 128), colours = [];
  let sum = 0;
  for (let i = 0; i < data.length; i++) sum = (sum + data[i] * (i % 9973)) % 1000003;
  for (let y = 16; y < 128; y += 32) for (let x = 16; x < 128; x += 32)
    colours.push([...data.slice(4 * (128 * y + x), 4 * (128 * y + x) + 3)]);
  return {sum, colours};
}
const key = (name, on = document.body) =>
  on.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true, cancelable: true}));
const slide = (paper, step) => {
  const slider = $(paper).querySelector(".step");
  slider.value = step;
  slider.dispatchEvent(new Event("input", {bubbles: true}));
};
const pick = number => {
  $("picture").value = number;
  $("picture").dispatchEvent(new Event("change", {bubbles: true}));
};
const pointer = (type, down, right) => {
  const box = $("scene").getBoundingClientRect();
  $("scene").dispatchEvent(new PointerEvent(type, {pointerType: "touch", bubbles: true,
    clientX: box.x + right * box.width, clientY: box.y + down * box.height}));
};
(async () => {
  while (!document.body.dataset.ready && !document.body.dataset.error) await wait();
  notes.start = seen();
  for (const [name, act] of Object.entries(ACTS)) {
    act();
    await wait();
    notes[name] = seen();
  }
  console.log("NOTES " + JSON.stringify(notes) + " END");
})();
"""


def browse(folder, text, acts, width=1300, address=""):
    """What a page shows at first ("start") and after each of `acts`, {name: JavaScript}, in a frame
    of so many pixels: the window itself can't be narrow. Fails where the console says more."""
    script = SCRIPT.replace("ACTS", "{%s}" % ",".join(f'"{name}": () => {{ {act} }}'
                                                      for name, act in acts.items()))
    text = text.replace("</body>", f"<script>{script}</script></body>")
    (folder / "page.html").write_text(text, encoding="utf-8")
    (folder / "around.html").write_text(
        f"<!DOCTYPE html><iframe width={width} height=900 src='page.html{address}'></iframe>",
        encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
               f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000",
               (folder / "around.html").as_uri()]
    said = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8") as process:
        watch = threading.Timer(120, process.kill)
        watch.start()
        for line in process.stderr:
            if "CONSOLE" in line:
                said.append(line)
                break
        process.terminate()
        watch.cancel()
    found = re.search(r'"NOTES (.*) END", source:', "".join(said))
    assert found, f"the page did not answer: {said}"
    return json.loads(found[1])


ACTS = {
    "without context": "$('context').click()",
    "without, before": "$('trained').click()",
    "before": "key('c')",
    "after": "key('t')",
    "predicted": "$('answers').click()",
    "weights": "$('answers').click()",
    **{f"{paper} {step}": f"slide('{paper}', {step})" for paper, step in
       (("pysa", 1), ("pysa", 3), ("unept", 2), ("unept", 8), ("pan", 1), ("pan", 3),
        ("psanet", 1), ("lrformer", 4))},
    "up": "key('ArrowUp', $('scene'))", "left": "key('ArrowLeft', $('scene'))",
    "down": "key('ArrowDown', $('scene'))", "right": "key('ArrowRight', $('scene'))",
    "touch": "pointer('pointerdown', 0.3, 0.1)", "drag": "pointer('pointermove', 0.99, 0.6)",
    **{f"picture {n}": f"pick({n})" for n in range(1, 6)},
    "first": "key('1')",
    "address": "location.hash = '#picture=3&row=9&column=77&context=1&trained=0&pan=2'",
}
STATE = re.compile(r"#picture=(\d)&row=(\d+)&column=(\d+)&context=(\d)&trained=(\d)&answers=(\d)"
                   r"(?:&.*)?$")


@pytest.fixture(scope="module", params=[1300, 768, 360])
def visit(request, tmp_path_factory):
    """What the committed page shows in a window, step by step."""
    return browse(tmp_path_factory.mktemp("browser"), TEXT, ACTS, request.param), request.param


@needs_browser
def test_nothing_is_cut_off_or_jumps(visit):
    notes, width = visit
    for name, note in notes.items():
        assert note["inner"] == width and note["width"] <= width and "error" not in note
        assert not note["cut"], (name, note["cut"])
        assert note["boxes"] == notes["start"]["boxes"], name


@needs_browser
def test_a_pixel_shows_the_recorded_numbers(visit):
    """In every state: class, probability, mark, the values of the panel and the largest of them."""
    for name, note in visit[0].items():
        number, row, column, context, trained, answers = map(
            int, STATE.match(note["address"]).groups())
        picture, steps = HEAD["pictures"][number], dict(re.findall(r"(\w+)=(\d+)", note["address"]))
        truth = BYTES[picture["label"] + row * picture["width"] + column]
        assert note["place"] == f"row {row}, column {column}"
        assert note["truth"] == f"truth: {picture['classes'][truth]}"
        assert note["picture"] == str(number) and note["question"] == picture["question"]
        for paper, card in note["papers"].items():
            found, certain, panels = shown(BYTES, picture, paper, context, trained, row, column)
            assert card["says"] == f"{picture['classes'][found]}, {100 * certain:.0f}%"
            assert card["mark"] == f"says {'right' if found == truth else 'wrong'}", (name, paper)
            assert (card["last"], card["off"]) == (str(max(0, len(panels) - 1)), not panels)
            assert card["link"] == page.describe(paper)["link"]
            if not panels:
                assert card["caption"].startswith("without context") and card["values"] == ""
                continue
            step = min(int(steps.get(paper, 0)), len(panels) - 1)
            panel = picture["papers"][paper][f"{context}{trained}"]["panels"][step]
            assert card["values"] == " ".join(map(str, panels[step]))
            assert card["caption"].startswith(f"{step + 1} of {len(panels)}: {panel['title']}")
            most = re.search(r"most here: ([\d.e-]+)", card["caption"])
            span = panel["high"] - panel["low"]
            if panel["kind"] != "points":
                assert float(most[1]) == pytest.approx(
                    panel["low"] + panels[step].max() / 63 * span, rel=0.06)
            if panel["kind"] == "map" and not answers:
                look(card["drawn"]["colours"], panels[step].reshape(panel["shape"]), (row, column))


def look(colours, values, pixel):
    """Where a map is drawn, its cells are the yellower the larger their values are."""
    rows, columns = ((2 * np.arange(4) + 1) * side // 8 for side in values.shape)
    wanted = values[rows[:, None], columns].astype(float).flatten() / max(1, values.max())
    red, green, blue = np.array(colours).T.astype(float)
    far = [max(abs(y * 32 + 16 - pixel[0]), abs(x * 32 + 16 - pixel[1])) > 8
           for y in range(4) for x in range(4)]  # else the ring may be there
    for found, ends in ((red - blue, [-76, 4, 186]), (green - blue, [-44, 3, 164])):
        assert np.abs(found - 0.75 * np.interp(wanted, [0, 0.5, 1], ends))[far].max() < 4


@needs_browser
def test_switches_change_what_they_say(visit):
    """Each step of the visit leads to the state that it should, and draws another picture."""
    notes, _ = visit
    states = {name: tuple(map(int, STATE.match(note["address"]).groups()))
              for name, note in notes.items()}
    number, row, column, *switches = states["start"]
    assert (number, switches) == (0, [1, 1, 0])
    assert [states[name][3:] for name in list(ACTS)[:6]] == [
        (0, 1, 0), (0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 1, 0)]
    assert [states[name][1:3] for name in ("up", "left", "down", "right")] == [
        (row - 4, column), (row - 4, column - 4), (row, column - 4), (row, column)]
    assert states["touch"][1:3] == (38, 14) and states["drag"][1:3] == (126, 78)
    assert [states[f"picture {n}"][0] for n in range(1, 6)] == [1, 2, 3, 4, 5]
    assert states["first"][0] == 0 and states["address"][:5] == (3, 10, 78, 1, 0)
    before = notes["start"]
    for name, note in notes.items():
        paper = name.split()[0]
        changed = {p for p in NAMES if note["papers"][p]["drawn"] != before["papers"][p]["drawn"]}
        if paper in NAMES:
            assert changed == {paper}, name
        elif name not in ("start", "after", "weights"):
            # Without context all look alike, whatever the training; PAN never looks at the pixel.
            allowed = {"without, before": 0, "after": 0}.get(name, 4)
            assert len(changed) >= allowed, (name, changed)
        before = note
    assert notes["after"]["papers"] == notes["start"]["papers"] == notes["weights"]["papers"]


@needs_browser
def test_a_page_of_ones_own(cli, tmp_path):
    """eval.py --explore: one network, one picture of which nobody knows the truth."""
    config = {"paper": "psanet", "preset": "tiny", "num_classes": 3, "options": {},
              "dataset": "shapes",
              "classes": ["</script>", "a rather long name of a class", "c & d"],
              "palette": [[0, 0, 0], [9, 9, 9], [200, 0, 0]]}
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "best.pt", {
        "model": build_model("psanet", "tiny", 3, {}).state_dict(), "config": config,
        "recipe": {"crop_size": 64, "test_scale": 1.0}, "optimizer": {}, "log": [], "step": 0})
    photo = np.random.default_rng(0).integers(0, 255, (48, 70, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    code, out, err = cli("eval", tmp_path / "best.pt", "--explore", "--image",
                         tmp_path / "photo.png", "--out", tmp_path, "--device", "cpu")
    assert code == 0 and "photo-explore.html" in out, err
    text = (tmp_path / "photo-explore.html").read_text(encoding="utf-8")
    acts = {"without": "$('context').click()", "with": "$('context').click()",
            "more": "slide('psanet', 1)"}
    notes = browse(tmp_path, text, acts, 360, "#row=47&column=69")
    start = notes["start"]
    assert start["truth"] == "truth unknown" and start["place"] == "row 47, column 69"
    assert re.fullmatch(r"(</script>|a rather long name of a class|c & d), \d+%",
                        start["papers"]["psanet"]["says"])
    assert notes["without"]["papers"]["psanet"]["says"] == "not recorded"
    assert notes["with"]["papers"] == start["papers"] != notes["more"]["papers"]
    assert all(note["width"] <= 360 and not note["cut"] for note in notes.values())
