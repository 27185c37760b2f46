"""Nothing is lost: one training per folder, steps before scores, foreign files left alone."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from common import checkpoint, stop
from common.errors import UserError
from datasets import memory
from papers import runs
from tests import crash
from tests.helpers import contents
from tests.test_cli import QUICK, data, make_pair, trained  # noqa: F401, fixtures
from tests.test_training import Few, run, same

ROOT = crash.ROOT
needs_fork = pytest.mark.skipif(os.name == "nt", reason="uses signals of Unix")


def in_another_process(folder, code):
    """Run code that knows `out`, the folder, and `locked`. Returns the process, once it printed."""
    text = ("import pathlib, sys, time; from papers.runs import locked; "
            f"out = pathlib.Path({str(folder)!r})\n{code}")
    process = subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


@needs_fork
def test_one_training_per_folder(tmp_path):
    """Held, another process is refused; killed, nobody is; in the end the lock is gone."""
    holder = in_another_process(tmp_path, "with locked(out, True):\n  print(flush=True)\n"
                                          "  time.sleep(600)")
    try:
        for new in (True, False):
            with pytest.raises(UserError, match="--out .*: another process trains there"):
                with runs.locked(tmp_path, new):
                    pass
    finally:
        holder.kill()
        holder.communicate()
    assert (tmp_path / "lock").exists()
    with runs.locked(tmp_path, new=True):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "last.pt").touch()
    with pytest.raises(UserError, match="has just begun a run"), runs.locked(tmp_path, new=True):
        pass
    with runs.locked(tmp_path, new=False):
        pass


def test_every_writer_has_its_own_temporary_file(tmp_path):
    """Four writers and a reader, who sees whole contents only."""
    path, bodies = tmp_path / "a", [bytes([number]) * 10**6 for number in range(4)]
    checkpoint.write_atomically(path, bodies[0])
    writers = [threading.Thread(target=lambda body=body: [
        checkpoint.write_atomically(path, body) for _ in range(20)]) for body in bodies]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in bodies
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name,content", [
    ("config.json", b"mine"), ("config.json", b"null"), ("config.json", b"{}"), ("log.csv", b"1,2"),
    ("curves.png", b""), ("predictions.png", b"x")])
def test_resume_leaves_foreign_files_alone(cli, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    code, _, err = cli("train", "--steps", 1, "--out", ".", "--resume")
    assert code == 2 and f"holds {name} but no checkpoint" in err
    assert contents(tmp_path) == {tmp_path / name: content}


class Broken(Few):
    """The second image cannot be read after `good` times."""

    def __init__(self, good):
        super().__init__("val")
        self.good = good

    def __getitem__(self, index):
        self.good -= index == 1
        if self.good < 0:
            raise UserError("b.png is damaged")
        return super().__getitem__(index)


@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_failing_evaluation_does_not_cost_the_training(tmp_path, capsys, monkeypatch, good):
    """It goes on to its end, and once the image is mended --resume makes up for the score."""
    with monkeypatch.context() as patch:
        val_set = Broken(good)
        patch.setattr("tests.test_training.Few", lambda split: val_set if split == "val"
                      else Few(split))
        with pytest.raises(UserError, match="b.png is damaged; .*last.pt holds the trained"):
            run(tmp_path)
    assert "step 6 is not evaluated: b.png is damaged" in capsys.readouterr().err
    state = checkpoint.load(tmp_path / "last.pt")
    assert state["step"] == 6 and len(state["log"]) == min(good, 2)
    (tmp_path / "whole").mkdir()
    whole = run(tmp_path / "whole")
    same(state["model"], whole["model"])
    same(run(tmp_path, resume=True)["log"][-1]["miou"], whole["log"][-1]["miou"])


def test_killed_while_it_is_evaluated(tmp_path, monkeypatch):
    """The state is saved before, and resuming ends with the same bits."""
    def die(self, index):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Few, "__getitem__", lambda self, index: die(self, index)
                      if self.split == "val" else super(Few, self).__getitem__(index))
        with pytest.raises(ZeroDivisionError):
            run(tmp_path)
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 2
    whole = run(tmp_path / "whole")
    same(run(tmp_path, resume=True), whole)


def test_what_an_evaluation_needs_is_tried_first(cli, tmp_path):
    """Another size than a compact PSANet knows, a damaged file, a value that is no class."""
    image, label = np.zeros((40, 48, 3), np.uint8), np.ones((40, 48), np.uint8)
    label[:9] = 0
    make_pair(tmp_path / "data", image, label)
    flags = ("--dataset", "folder", "--data", "data", "--workers", 0, "--out", "run")
    code, _, err = cli("train", "--paper", "psanet", "--set", "compact=yes", "--crop-size", 128,
                       "--batch-size", 2, "--steps", 1, *flags)
    assert code == 2 and err.startswith("error: validation images: ") and "129 x 129" in err, err
    for name, content in (("images/val/a.png", b"x"), ("labels/val/a.png", None)):
        path = tmp_path / "data" / name
        whole = path.read_bytes()
        path.write_bytes(content or b"")
        if content is None:
            Image.fromarray(label * 9).save(path)
        code, _, err = cli("train", *QUICK, *flags)
        assert code == 2 and name in err and err.count("\n") == 1, err
        path.write_bytes(whole)
    assert not (tmp_path / "run").exists()


def test_little_memory_is_one_line(tmp_path, capsys, monkeypatch):
    def lacking(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate ...")

    monkeypatch.setattr("common.inference.scores_of", lacking)
    with pytest.raises(UserError, match="too little memory for a whole image; eval.py --protocol"):
        run(tmp_path)
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 6
    said = "step 2 is not evaluated: validation images: too little memory"
    assert said in capsys.readouterr().err


@needs_fork
@pytest.mark.parametrize("ignored", [False, True])
def test_a_lost_terminal_saves(ignored):
    """As SIGTERM does; under nohup it stays ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with stop.Stop() as caught:
            os.kill(os.getpid(), signal.SIGHUP)
            assert caught.requested("cpu") == (0 if ignored else signal.SIGHUP)
        wanted = signal.SIG_IGN if ignored else signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) == wanted
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_no_memory_holds_is_not_even_drawn(cli, tmp_path, monkeypatch):
    """A batch of a million images would take an hour to draw."""
    make_pair(tmp_path / "data", np.zeros((40, 48, 3), np.uint8), np.zeros((40, 48), np.uint8))
    flags = (*QUICK, "--dataset", "folder", "--data", "data", "--workers", 0, "--out", "run")
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**10)
    monkeypatch.setattr("train.rehearse", lambda *_: 1 / 0)
    for more in (("--batch-size", 10**6), ("--crop-size", 10**5)):
        code, _, err = cli("train", *flags, *more)
        assert code == 2 and f"{more[0]} {more[1]}" in err and "10.0 GB are free" in err, err
        assert err.count("\n") == 1 and not (tmp_path / "run").exists()


@needs_fork
@pytest.mark.parametrize("words", [["train.py"], ["eval.py", "x"],
                                   ["datasets/check.py", "folder", "x"]])
def test_interrupted_while_it_is_imported(tmp_path, words):
    """Silent, exit code 130, nothing written; in the background, where Ctrl-C is ignored, it goes
    on."""
    begun = "import os, signal; os.kill(os.getpid(), signal.SIGINT); os._exit(7)"
    (tmp_path / "torch.py").write_text(begun, encoding="utf-8")  # in the middle of an import
    for handler, code in ((signal.default_int_handler, 130), (signal.SIG_IGN, 7)):
        before = signal.signal(signal.SIGINT, handler)
        result = subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:]], cwd=tmp_path,
                                env={**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=100,
                                capture_output=True, check=False)
        signal.signal(signal.SIGINT, before)
        assert (result.returncode, result.stdout, result.stderr) == (code, b"", b"")
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["torch.py"]


@needs_fork
def test_interrupted_before_the_first_step(cli, tmp_path, monkeypatch):
    """What is left is in nobody's way: the same command starts."""
    make_pair(tmp_path / "data", np.zeros((40, 48, 3), np.uint8), np.zeros((40, 48), np.uint8))
    flags = ("train", *QUICK, "--dataset", "folder", "--data", "data", "--workers", 0, "--out",
             "run")

    def interrupt(*_):
        raise KeyboardInterrupt

    for place in ("papers.rehearsal.predict", "datasets.statistics.warnings",
                  "papers.describe.open_training", "common.run.Run.__init__"):
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupt)
            code, out, err = cli(*flags)
            assert (code, out) == (130, "") and err.endswith("interrupted\n")
    code, _, err = cli(*flags)
    assert code == 0, err
