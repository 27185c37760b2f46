"""python -m tests.fuzz [--inputs N] [--seed S] [--only N]: hostile inputs, thousands of them.

Each is drawn from (seed, number), so a failure is repeated by --only. Kinds: flags, options of
networks and recipes, checkpoints, folders of data, tensors, signals. Most call a program's `main`
in this process; some, and all signals, start a real one. What counts as a failure: an exception or
a traceback, more than one line, an exit code that means nothing, LIMIT seconds without an end, a
file that was there and is changed or gone, a process that is left. Exit code 1 if there is any.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import eval as eval_program
import train as train_program
from common import checkpoint, cli, recipe
from common.errors import run
from common.run import FILES
from datasets import check as check_program
from datasets import shapes
from papers import options
from tests import crash

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 240  # seconds; a real process takes some to start
SLOW = 180
PROGRAMS = {"train": train_program, "eval": eval_program, "datasets.check": check_program}
QUICK = ("--steps=1", "--batch-size=2", "--crop-size=32", "--device=cpu")
CODES = {"train": (0, 2), "eval": (0, 2), "datasets.check": (0, 1, 2)}
LONG = "n" * 300
WORDS = ("", "--", "-1", "0", "1", "2", "1.5", "1e308", "1e-400", "nan", "inf", "-inf", "true",
         "None", "1,2", "1,,2", "0.5,-1", "()", "[1]", "{1: 2}", "{}", "'", "\\", "a=b", "\u9053",
         "e\u0301", " ", "\n", LONG, "data/../mine", ".", "~", "C:\\data", "1" * 400, "1_0", "0x10",
         "__import__('os')", "[" * 200, "1e400", "9" * 19, str(2**63), "cpu", "off", "auto")
PLACES = ("data", "run", "run/last.pt", "photo.png", "text.txt", "nowhere", "pipe", "mine",
          "mine/p09.png", "data/images", "data/labels", "data/classes.txt", LONG, "", "/dev/null",
          "/dev/zero", "loop", "new", "weights.pth", "new/deep/er", "text.txt/below")
FLAGS = {
    "train": {"--paper": (*cli.papers(), "unet"), "--preset": ("tiny", "huge"), "--set": WORDS,
              "--dataset": ("folder", "shapes", "camvid", "shapes-count"), "--data": PLACES,
              "--train-split": ("train", "val", "trainaug"), "--weights": PLACES,
              "--steps": ("0", "1", "-1"), "--batch-size": ("2", "3", "0", "1", "1000000"),
              "--accumulate": ("1", "2", "99"), "--crop-size": ("32", "33", "31", "100000"),
              "--lr": ("0.1", "1e36", "1e37", "1e30"), "--optimizer": recipe.OPTIMIZERS,
              "--schedule": recipe.SCHEDULES, "--eval-every": ("1", "99"),
              "--seed": ("0", "-1", str(2**63)), "--precision": recipe.PRECISIONS,
              "--device": ("cpu", "cuda", "mps", "cpu:1"), "--workers": ("0", "0", "2", "9999"),
              "--out": PLACES, "--recipe": ("flip=off", "lr=0", "scale=2,1", "steps=1", "x=1"),
              "--start-from": PLACES, "--freeze": ("backbone",),
              "--loss": ("dice", "cross-entropy"), "--class-weights": ("auto", "1,2", "1"),
              "--options": None, "--dry-run": None, "--resume": None},
    "eval": {"--official": PLACES, "--paper": cli.papers(), "--preset": ("tiny", "resnet50"),
             "--set": WORDS, "--dataset": ("folder", "shapes", "camvid"), "--data": PLACES,
             "--split": ("train", "val", "test"), "--crop-size": ("32", "48", "1", "100000"),
             "--protocol": ("whole", "sliding", "multiscale", "paper"),
             "--scales": ("1", "0.5,1.5", "0", "1e9", "1e-9", "1000"),
             "--save-predictions": (None, *PLACES), "--image": PLACES, "--summary": None,
             "--attention": ("1,1", "0,0", "-1,0", "1e3,1", "1"), "--explore": None,
             "--device": ("cpu", "tpu"), "--out": PLACES},
    "datasets.check": {},
}


def prepare(folder):
    """What every input finds in its working directory: data, a run, a picture, files of others."""
    crash.make_data(folder / "data", count=12, side=48)
    with called(folder, "train", ["--dataset=folder", "--data=data", "--workers=0", *QUICK,
                                  "--set=channels=8", "--out=run"]) as (code, _, error):
        assert code == 0, error
    Image.fromarray(shapes.make_scene(0, "val", 0, 40, 50)[0]).save(folder / "photo.png")
    (folder / "text.txt").write_text("hello", encoding="utf-8")
    model = checkpoint.load(folder / "run" / "last.pt")["model"]
    torch.save({name.removeprefix("backbone."): value for name, value in model.items()
                if name.startswith("backbone.")}, folder / "weights.pth")
    (folder / "mine").mkdir()
    for name in ("p09.png", "folder-val.png", "photo-segmented.png", "folder-val.csv", "9.png",
                 "9-explore.html", "photo-explore.html", "photo.png"):
        (folder / "mine" / name).write_bytes(b"my own " + name.encode())


def odd_places(folder):
    """What cannot be copied: a pipe, and a link to itself."""
    with contextlib.suppress(AttributeError, OSError):  # Windows
        os.mkfifo(folder / "pipe")
        (folder / "loop").symlink_to("loop")


class Late(BaseException):
    """The time is over."""


def late(*_):
    raise Late


@contextlib.contextmanager
def called(folder, program, words):
    """Yields (exit code or what was raised, stdout, stderr) of a program's main, called here."""
    out, err, before, code = io.StringIO(), io.StringIO(), os.getcwd(), "no exit"
    argv, sys.argv = sys.argv, [f"{program}.py", *words]
    os.chdir(folder)
    alarm = hasattr(signal, "setitimer") and signal.signal(signal.SIGALRM, late)
    try:
        if alarm is not False:
            signal.setitimer(signal.ITIMER_REAL, LIMIT)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run(PROGRAMS[program].main)
    except SystemExit as error:
        code = error.code or 0
    except Late:
        code = f"no end within {LIMIT} s"
    except BaseException as error:
        code = f"{type(error).__name__}: {error}"
    finally:
        if alarm is not False:
            signal.setitimer(signal.ITIMER_REAL, 0)
        os.chdir(before)
        sys.argv = argv
    yield code, out.getvalue(), err.getvalue()


def started(folder, program, words):
    """The same by a real process, in a group of its own."""
    path = {"datasets.check": "datasets/check.py"}.get(program, f"{program}.py")
    return subprocess.Popen([sys.executable, str(ROOT / path), *words], cwd=folder,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0)


def group_left(group):
    """Whether a process of the group runs ten seconds after it should have ended; then it is
    killed."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return False
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return True


def state_of(folder):
    """{file: (size, time of change)}, links and pipes as well."""
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns)
            for path in folder.rglob("*") if not path.is_dir()}


# ------------------------------------------------------------------------------------- the inputs


def flag_words(rng, program):
    """A random command line."""
    words = []
    for name in rng.sample(sorted(FLAGS[program]), min(len(FLAGS[program]), rng.randint(1, 5))):
        values = FLAGS[program][name]
        value = None if values is None else rng.choice(values if rng.random() < 0.75 else WORDS)
        words += [name] if value is None else [f"{name}={value}"] if rng.random() < 0.8 else [
            name, value]
    return words


def flags(rng, folder):
    """Flags of both programs, in any combination."""
    program = rng.choice(("train", "eval", "eval"))
    words = flag_words(rng, program)
    if program == "eval":
        start = rng.choice((["run"], ["run"], ["run/last.pt"], [rng.choice(PLACES)], []))
        return program, [*start, *words]
    given = {word.partition("=")[0] for word in words}
    small = [word for word in (*QUICK, "--dataset=folder", "--data=data", "--workers=0",
                               "--set=channels=8") if word.partition("=")[0] not in given]
    return program, [*small, *words]


def option(rng, folder):
    """Options of networks and numbers of recipes, of any type."""
    paper = rng.choice(cli.papers())
    words = [f"--paper={paper}", *QUICK, "--dataset=folder", "--data=data", "--workers=0"]
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.7:
            known = options.defaults(paper)
            name = rng.choice(sorted(known))
            value = rng.choice((*WORDS, *map(str, known[name])))
            words.append(f"--set={name}={value}")
        else:
            words.append(f"--recipe={rng.choice(sorted(vars(recipe.Recipe())))}="
                         f"{rng.choice(WORDS)}")
    return "train", [*words, *rng.choice(((), ("--dry-run",)))]


def odd_value(rng):
    """A value that a checkpoint should not hold."""
    return rng.choice((
        None, True, -1, 0, 2**70, 1.5, float("nan"), "text", b"", [], {}, (), [[]], {"a": 1}, 1j,
        torch.zeros(0), torch.zeros(2, 2), torch.tensor(float("inf")), torch.zeros(3).byte(),
        torch.eye(3).to_sparse(), torch.empty(2, device="meta"), torch.ones(2) * 1j, "x" * 9999))


def spoil(rng, value, depth=0):
    """The value with a random part of it replaced, removed or added."""
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.8):
        value, key = dict(value), rng.choice(list(value))
        what = rng.random()
        if what < 0.15:
            del value[key]
        elif what < 0.2:
            value["more"] = odd_value(rng)
        else:
            value[key] = spoil(rng, value[key], depth + 1)
        return value
    if isinstance(value, list) and value and rng.random() < 0.5:
        place = rng.randrange(len(value))
        return [*value[:place], spoil(rng, value[place], depth + 1), *value[place + 1 :]]
    return odd_value(rng)


def stored(rng, folder):
    """Checkpoints and weights that hold something else, or are damaged."""
    from tests.test_fuzz import mutate
    name = rng.choice(("run/last.pt", "run/best.pt", "weights.pth"))
    path = folder / name
    if rng.random() < 0.7:
        torch.save(spoil(rng, torch.load(path, weights_only=True)), path)
    else:
        path.write_bytes(mutate(path.read_bytes(), rng))
    if name == "weights.pth":
        return rng.choice((
            ("train", [*QUICK, "--dataset=folder", "--data=data", "--workers=0", "--out=new",
                       "--weights=weights.pth"]),
            ("eval", ["--official=weights.pth", f"--paper={rng.choice(cli.papers())}",
                      "--image=photo.png", "--out=new"])))
    return rng.choice((
        ("eval", [name, "--image=photo.png", "--out=new"]), ("eval", ["run", "--out=new"]),
        ("eval", [name, "--summary"]), ("train", ["--resume", "--out=run", "--data=data",
                                                  "--device=cpu", "--workers=0"]),
        ("train", [*QUICK, f"--start-from={name}", "--dataset=folder", "--data=data",
                   "--workers=0", "--out=new"])))


def damage(rng, path):
    """Something done to a file of a data set."""
    content = path.read_bytes() if path.is_file() else b""
    what = rng.randrange(8)
    if what == 0:
        path.unlink()
    elif what == 1:
        path.write_bytes(content[: rng.randrange(len(content) + 1)])
    elif what == 2:
        path.write_bytes(rng.choice((b"", b"\0" * 99, b"text", "\u9053".encode("utf-16"))))
    elif what == 3:
        path.rename(path.with_name(rng.choice(("odd name.png", "e\u0301.PNG", ".hidden", "a"))))
    elif what == 4:
        path.unlink()
        path.mkdir()
    elif what == 5 and hasattr(os, "mkfifo"):
        path.unlink()
        os.mkfifo(path)
    elif what == 6 and path.suffix == ".png":
        shape = rng.choice(((48, 48), (1, 1), (48, 49), (48, 48, 3), (48, 48, 4)))
        kind = rng.choice((np.uint8, np.uint16)) if len(shape) == 2 else np.uint8
        Image.fromarray(np.full(shape, rng.choice((0, 1, 11, 12, 200, 255)), kind)).save(path)
    else:
        path.write_bytes(content + rng.choice((b"\n", b"\n\n \n", b"x", b"\nroad #12345", b"\xff")))


def folders(rng, folder):
    """Folders of data in which something is wrong."""
    for _ in range(rng.randint(1, 3)):
        files = [path for path in (folder / "data").rglob("*") if path.is_file()]
        damage(rng, rng.choice([*files, folder / "data" / "classes.txt"]
                               if (folder / "data" / "classes.txt").is_file() else files))
    return rng.choice((
        ("datasets.check", ["folder", "data"]),
        ("train", [*QUICK, "--dataset=folder", "--data=data", "--set=channels=8", "--out=new",
                   f"--workers={rng.choice((0, 0, 2))}"]),
        ("eval", ["run", "--data=data", "--out=new", *rng.choice(((), ("--save-predictions",)))]),
        ("eval", ["run", "--image=data/images", "--out=new"])))


def tensors(rng, folder):
    """What is no batch of images, given to a network: a ValueError or scores. Returns what is
    wrong."""
    paper = rng.choice(cli.papers())
    rank = rng.choice((0, 3, 4, 4, 4, 5))
    sizes = [rng.choice((0, 1, 2, 3, 3, 3, 7, 32, 33)) for _ in range(rank)]
    dtype = rng.choice((torch.float32, torch.float32, torch.uint8, torch.int64, torch.bool,
                        torch.complex64))
    images = torch.zeros(sizes, dtype=dtype)
    try:
        model = options.build_model(paper, "tiny", rng.choice((3, 0, -1, True)), {}).eval()
        with torch.no_grad():
            scores = model(images)["out"]
    except ValueError as error:
        return "" if "\n" not in str(error) else f"{paper}: {error}"
    except Exception as error:
        return f"{paper} {sizes} {dtype}: {type(error).__name__} {error}"
    fine = scores.shape == (sizes[0], 3, *sizes[2:]) and scores.isfinite().all()
    return "" if fine else f"{paper} {sizes} {dtype}: {scores.shape}"


def signals(rng, folder):
    """A training that gets a signal at any time, and is resumed. Returns what is wrong."""
    number = rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL))
    words = [*QUICK[1:], "--steps=3", "--dataset=folder", "--data=data", "--set=channels=8",
             "--out=new", f"--workers={rng.choice((0, 2))}"]
    process = started(folder, "train", words)
    time.sleep(rng.uniform(1, 12))  # before that Python itself starts
    process.send_signal(number)
    try:
        _, error = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return f"{number.name}: no end"
    if "Traceback" in error.decode() or process.returncode not in (0, -number, 128 + number):
        return f"{number.name}: exit code {process.returncode}: {error.decode()[-500:]}"
    if group_left(process.pid):
        return f"{number.name}: a process is left"
    begun = (folder / "new" / "last.pt").exists()
    with called(folder, "train", [*words, *["--resume"] * begun]) as (code, _, error):
        return "" if code == 0 else f"{number.name}, then the same again: {code} {error[-300:]}"


KINDS = {"flags": (flags, 44), "options": (option, 20), "checkpoints": (stored, 16),
         "folders": (folders, 12), "tensors": (tensors, 7.5), "signals": (signals, 0.5)}
REAL = 0.01  # share of the others that start a real process


def judge(folder, before, program, words, code, out, err):
    """What is wrong with the end of a program, "" if nothing is."""
    last = err.replace("\r", "\n").strip("\n").rpartition("\n")[2]
    if code not in CODES[program] or "Traceback" in out + err:
        return f"exit code {code}: {err[-600:]}"
    if code == 2 and not (last.startswith("error: ") and err.count("error: ") == 1):
        return f"not one line: {err[-600:]}"
    if code == 2 and len(last.replace(LONG, "").replace("1" * 400, "")) > 600:
        return f"a line of {len(last)} characters: {last[:200]}"
    after = state_of(folder)
    goes_on = "--resume" in words and (code == 0 or "holds the trained" in err)
    lost = [path for path in before if after.get(path) != before[path]
            and not (goes_on and path.name in FILES) and path.suffix != ".part"]
    return f"changed: {', '.join(str(path.relative_to(folder)) for path in lost)}" if lost else ""


def attempt(base, folder, number, seed, kind=None):
    """Try one input. Returns (kind, the command as text, what is wrong or "")."""
    rng = random.Random(f"{seed}/{number}")
    weights = [share for _, share in KINDS.values()]
    kind = kind or rng.choices(list(KINDS), weights)[0]
    shutil.copytree(base, folder)
    odd_places(folder)
    found = KINDS[kind][0](rng, folder)
    if isinstance(found, str):
        return kind, kind, found
    program, words = found
    before = state_of(folder)
    if rng.random() < REAL and all("\0" not in word for word in words):
        process = started(folder, program, words)
        try:
            out, err = (part.decode(errors="replace")
                        for part in process.communicate(timeout=LIMIT))
            wrong = judge(folder, before, program, words, process.returncode, out, err)
            wrong = wrong or "a process is left" * group_left(process.pid)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            wrong = "no end"
    else:
        with called(folder, program, words) as (code, out, err):
            wrong = judge(folder, before, program, words, code, out, err)
        wrong = wrong or "a process is left" * bool(multiprocessing.active_children())
    return kind, f"{program} {' '.join(map(repr, words))}", wrong


def fuzz(inputs, seed=0, kinds=None, report=print, bar=True):
    """Try `inputs`: a range of numbers. Returns ({kind: how many}, [failures as text])."""
    counts, failures = Counter(), []
    shapes.LENGTHS["val"], many = 2, shapes.LENGTHS["val"]
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = Path(place)
        (place / "base").mkdir()
        try:
            prepare(place / "base")
            for number in tqdm(inputs, unit="input", disable=not bar):
                begun, kind = time.monotonic(), kinds and kinds[number % len(kinds)]
                kind, command, wrong = attempt(place / "base", place / "case", number, seed, kind)
                shutil.rmtree(place / "case")
                counts[kind] += 1
                seconds = time.monotonic() - begun
                wrong = wrong or f"slow: {seconds:.0f} s" * (seconds > SLOW)
                if wrong:
                    failures.append(f"--seed {seed} --only {number} ({kind})\n  {command}\n  "
                                    + wrong.replace(str(place), ""))
                    report(failures[-1])
        finally:
            shapes.LENGTHS["val"] = many
    return counts, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this input alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with contextlib.suppress(ImportError, ValueError):  # what asks for too much is told so
        import resource
        resource.setrlimit(resource.RLIMIT_DATA, (6 * 10**9, 6 * 10**9))
    one = arguments.only
    counts, failures = fuzz(range(arguments.inputs) if one is None else [one], arguments.seed,
                            report=tqdm.write)
    print(f"{sum(counts.values())} inputs ({', '.join(f'{n} {k}' for k, n in counts.items())}): "
          f"{len(failures)} failures")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
