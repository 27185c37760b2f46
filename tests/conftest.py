"""Shared by the tests: the two programs called in this process, as a user would call them."""

import contextlib
import io
import sys

import pytest
import torch

import eval as eval_program
import train as train_program
from common.errors import run


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """cli("train", "--steps", 2) -> (exit code, stdout, stderr), in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def call(program, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{program}.py", *map(str, arguments)])
        out, err = io.StringIO(), io.StringIO()
        main = {"train": train_program, "eval": eval_program}[program].main
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            with pytest.raises(SystemExit) as exit_:
                run(main)
        return exit_.value.code or 0, out.getvalue(), err.getvalue()

    yield call
    torch.set_num_threads(threads)
