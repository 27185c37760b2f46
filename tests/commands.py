"""python -m tests.commands [PAGE ...]: run every command of README.md, docs/ and the papers' notes,
with tiny budgets.

Meant for a copy of the repository (tests/test_commands.py makes one): it writes runs/, docs/ and
what the commands write. Commands run in the order of their page, one after another, in this
process, because importing torch takes longer than most of them. Each is taken as it stands but for
    one training step of two images; few scenes and few, small files in place of datasets,
        weights and photos
    small sizes in place of the benchmarks' own, everything measured once
Not run are those of ELSEWHERE, and pytest only collects its tests.
"""

import importlib
import itertools
import re
import runpy
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from PIL import Image

import datasets
from common.recipe import Recipe
from datasets import shapes
from tests import layouts

ROOT = Path(__file__).resolve().parent.parent
PAGES = [str(path.relative_to(ROOT))
         for pattern in ("*.md", "papers/*/paper.md", "papers/*/evidence/*.md", "docs/*.md")
         for path in sorted(ROOT.glob(pattern)) if path.name != "adding_a_paper.md"]
ELSEWHERE = {
    "make test": "runs this", "make mutants": "runs tests often", "make crash": "takes minutes",
    "make bench": "test_bench does, for every paper", "make endtoend": "test_endtoend does",
    "make fuzz": "takes long",
    "make explore": "trains for hours where nothing is trained yet",
    "python -m venv": "makes an environment", ".venv/bin/python -m pip": "fetches packages",
}
# Sizes of benchmarks: module, what is replaced.
SMALL = {
    "studies.shapes_table": {"SEEDS": (0,)},
    "studies.probes": {
        "SEEDS": (0,), "STEPS": {"global": None, "thin": 1}, "LONG": 1,
        "LONGER": [("PAN", "nearest", "pan", ())],
    },
    "studies.results": {"SEEDS": (0,), "STEPS": 1, "SHOWN": (0,)},
    "studies.cost": {
        "SIDES": (8, 16), "SHOWN": 8, "FROM": 8,
        "NETWORKS": (("pysa", "tiny", 64), ("psanet", "tiny", 65)),
    },
    "papers.pysa.evidence.camvid": {"SHOWN": (0,)},
    "tests.bench": {"ROUNDS": 1},
    "tests.endtoend": {
        "STEPS": 1, "WARM_UP": 1, "IMAGES": 1, "ROUNDS": 1, "PHOTO": (40, 50), "FRAME": (40, 50),
        "STREET": (40, 50), "CLASSES": (3,), "CROPS": (32,), "LARGER": {"pysa": "tiny"},
    },
    "papers.pysa.evidence.forms": {"CASES": {"small": (1, 32, 16, True, True)}},
    "papers.pan.evidence.forms": {"CASES": {
        "small": ("resnet18", 1, 128, False, False), "decoder": ("resnet18", 2, 128, True, True)}},
    "papers.psanet.evidence.forms": {"CASES": {
        "collect": ("collect", 9, 2, 16, True), "small": ("tiny", 129, 2, 32, True)}},
    "papers.lrformer.evidence.forms": {"CASES": {"small": ("tiny", 64, True)}},
    "papers.unept.evidence.forms": {"CASES": {
        "queries": (None, 4, 2, True), "small": ("tiny", 64, 4, True)}},
    "papers.pan.evidence.cost": {"SIDES": (4, 8)},
    "papers.psanet.evidence.cost": {"CHANNELS": 8, "CROSSING": (4,), "TILED": (8,)},
    "papers.lrformer.evidence.cost": {"SIZES": (64, 128), "PRESETS": ("t",)},
    "papers.unept.evidence.boundary_bound": {"SCENES": 1, "FIT": 2, "TASKS": ("",)},
}
EXTRA = {
    "train.py": ["--steps", "1", "--batch-size", "2", "--device", "cpu", "--workers", "0"],
    "eval.py": ["--device", "cpu"],
    "datasets.speed": ["--images", "2", "--crop-size", "64"],
    "studies.receptive_field": ["--images", "2"],
    "pytest": ["--collect-only", "-q"],
}
DATA = {
    "ade20k": layouts.ade20k, "camvid": layouts.camvid, "voc2012": layouts.voc_augmented,
    "cityscapes": layouts.cityscapes,
    "pascal_context60": lambda root: layouts.context_published(root / "VOC2010", root / "trainval"),
    "folder": layouts.folder,
}


def commands(text):
    """The commands of a page: lines of its blocks, then those inside sentences."""
    blocks = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
    found = [line.partition(" #")[0].strip() for block in blocks.findall(text)
             for line in block.splitlines()]
    found += re.findall(r"`([^`\n]+)`", blocks.sub("", text))
    return [line for line in found if re.match(r"(\S*python|make|pytest|torchrun) \S", line)]


def of_make(line):
    """The commands behind `make TARGET NAME=VALUE ...`, read from the Makefile."""
    target, *given = line.split()[1:]
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text, re.MULTILINE)
    if not found:
        raise ValueError(f"the Makefile has no target {target}")
    variables = dict(re.findall(r"^(\w+) \?=[ ]*(.*)$", text,
                                re.MULTILINE)) | dict(pair.split("=") for pair in given)
    variables["RUN"] = "python"
    steps = re.sub(r"\$\((\w+)\)", lambda name: variables[name[1]], found[1].strip())
    return steps.split("\n\t")


def prepare():
    """The files that pages take for granted."""
    Image.fromarray(shapes.make_scene(0, "val", 0)[0]).save("photo.jpg")
    for name, make in DATA.items():
        make(Path("data", name))
    layouts.ade20k(Path("data/ADEChallengeData2016"))
    for name in ("my_data", "four"):
        layouts.folder(Path(name))


def weights(paper, preset, options):
    """A file of random weights for the backbone, in the layout of the published one."""
    network = importlib.import_module(f"papers.{paper}.model").build(3, preset, **options)
    torch.save(network.backbone.state_dict(), "backbone.pth")
    return "backbone.pth"


def official(paper, classes):
    """A checkpoint of the official code with random weights: the names and shapes of a recorded
    one."""
    path = Path(f"{paper}-official-{classes}.pth")
    if not path.exists():
        case = {"psanet": "psanet_r50_bi", "unept": "unept_res50",
                "pan": "pan_smp_resnet34_256x256",
                "lrformer": "lrformer_t_256x320"}[paper]
        seeded = importlib.import_module(f"papers.{paper}.evidence.golden.seeded")
        stored = seeded.load_case(ROOT / "papers" / paper / "evidence" / "golden"
                                  / f"{case}.npz")["shapes"]
        state = {name: torch.from_numpy(np.asarray(value))
                 for name, value in seeded.seeded_state(stored).items()}
        state |= {name: torch.zeros(shape) for name, shape in stored.items() if name not in state}
        of_paper = importlib.import_module(f"papers.{paper}.official")
        known = of_paper.build_arguments(state)["num_classes"]
        state = {name: value.new_zeros(classes, *value.shape[1:]) if value.shape[:1] == (known,)
                 else value
                 for name, value in state.items()}
        torch.save(state, path)
    return str(path)


def stand_ins(words):
    """The command with files that exist in place of the page's."""
    given = dict(itertools.pairwise(words))
    paper, preset = given.get("--paper", "pysa"), given.get("--preset", "tiny")
    dataset = next((name for name in DATA if name in " ".join(words)), "camvid")
    meant = {
        "NAME": dataset, "PATH": f"data/{dataset}", "RUN": "runs/pysa-tiny-shapes",
        "ROW,COL": "40,100", "CHECKPOINT": "runs/pan-spatial/best.pt",
    }
    before, result = "", []
    for word in words:
        if before == "--weights":
            word = weights(paper, preset, {"stem": ()} if "stem=()" in words else {})
        elif before == "--official":
            word = official(paper, 150 if dataset == "ade20k" else 21)
        elif before == "--side":
            word = str(int(word) // 8)
        result.append(meant.get(word, word))
        before = word
    return result


def run(words):
    """One command without its `python`: a program or `-m` and a module. Raises if it fails."""
    words = stand_ins(words)
    name = words[1] if words[0] == "-m" else words[0]
    sys.argv = [name, *words[2 if words[0] == "-m" else 1 :]]
    if not {"--help", "--options"} & {*words}:
        sys.argv += EXTRA.get(name, [])
        if name == "train.py" and "--dataset" in words:
            sys.argv += ["--crop-size", "64"]
        if name == "eval.py" and "--data" in words:
            sys.argv += ["--scales", "0.1"]
            sys.argv += ["--crop-size", "65"] if "--protocol" in words else []
    try:
        if name.startswith(("studies.", "papers.", "tests.bench")):
            importlib.import_module(name).main()
        elif words[0] == "-m":
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    except SystemExit as stop:
        if stop.code not in (None, 0):
            raise RuntimeError(f"exit code {stop.code}") from stop


def in_process(command, **_):
    """Takes the place of subprocess.run([python, program, ...]) in the benchmarks."""
    before = sys.argv
    with mock.patch.object(signal, "signal"):
        run(command[1:])  # handlers are for the main thread alone
    sys.argv = before
    return SimpleNamespace(returncode=0)


def shrink():
    """Make scenes few, benchmarks small."""
    shapes.LENGTHS.update(val=4, test=30)
    for name in datasets.LOADERS:
        # no number of images is the published one
        datasets.SAMPLES[name] = dict.fromkeys(datasets.SAMPLES[name])
    places = [*ROOT.glob("studies/[a-z]*.py"), *ROOT.glob("papers/*/evidence/cost.py")]
    places += [ROOT / "tests" / "bench.py", *ROOT.glob("papers/*/evidence/forms.py")]
    places += [*ROOT.glob("papers/*/evidence/camvid.py"),
               *ROOT.glob("papers/*/evidence/boundary_bound.py")]
    for name in sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in places):
        module = importlib.import_module(name)
        for what in ("times", "peak_memory"):
            if hasattr(module, what):
                setattr(module, what, globals()[f"{what}_once"])
        if hasattr(module, "ROWS"):
            module.ROWS = {paper: rows[:2] for paper, rows in module.ROWS.items()}
        if hasattr(module, "load_recipe"):
            module.load_recipe = lambda *_: Recipe(steps=1)
        if hasattr(module, "subprocess"):
            module.subprocess = SimpleNamespace(run=in_process)
        for what, value in SMALL.get(name, {}).items():
            assert hasattr(module, what), f"{module.__name__} has no {what} to replace"
            setattr(module, what, value)


def times_once(candidates, rounds=1, processors=False):
    """studies.measure.times without repetition."""
    for function in candidates.values():
        function()
    return dict.fromkeys(candidates, 1.0)


def peak_memory_once(make, *arguments, device="cpu"):
    """studies.measure.peak_memory without a process of its own."""
    make(*arguments)()
    return 1.0


def main():
    prepare()
    shrink()
    done, number = set(), 0
    for page in sys.argv[1:] or PAGES:
        # Every page starts afresh, but for the runs of the benchmarks, which go on with what there
        # is.
        done = {words for words in done if words[0] == "-m"}
        for out in Path("runs").glob("*"):
            if out.name not in ("shapes-table", "probes", "results"):
                shutil.rmtree(out)
        for line in commands((ROOT / page).read_text(encoding="utf-8")):
            if any(line.startswith(start) for start in ELSEWHERE):
                continue
            try:
                for step in of_make(line) if line.startswith("make ") else [line]:
                    words = shlex.split(step)
                    words = words[1:] if words[0].endswith("python") else ["-m", *words]
                    if tuple(words) in done:  # pages may say the same
                        continue
                    done.add(tuple(words))
                    number += 1
                    print(f"$ {page}: {step}", flush=True)
                    started = time.perf_counter()
                    run(words)
                    print(f"  {time.perf_counter() - started:.1f} s", flush=True)
            except BaseException:
                print(f"FAILED {page}: {line}", file=sys.stderr, flush=True)
                raise
    print(f"{number} commands")


if __name__ == "__main__":
    main()
