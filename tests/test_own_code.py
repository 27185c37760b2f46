"""What docs/data.md shows for your own code runs as it stands."""

import re
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.inference import normalise
from tests.test_cli import data, trained  # noqa: F401, fixtures

ROOT = Path(__file__).resolve().parent.parent


def test_the_page(trained, tmp_path, monkeypatch):
    """Blocks from top to bottom, in a folder with a run, a picture and a copied paper."""
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    shutil.copytree(trained, tmp_path / "runs" / "pysa-tiny-shapes")
    shutil.copytree(ROOT / "papers" / "pan", tmp_path / "your_project" / "pan")
    picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = {}
    for block in blocks:
        exec(block, names)  # noqa: S102, it is the page that is tested
    assert names["logits"].shape == (2, 40, 56) and names["label"].shape == (40, 56)
    assert np.array_equal(names["logits"].argmax(0), names["label"])
    alone = names["model"](normalise(names["image"])[None])["out"][0]
    assert torch.allclose(alone, names["logits"], atol=1e-5) and names["config"]["num_classes"] == 2
    assert torch.allclose(names["found"], names["model"](torch.zeros(1, 3, 128, 160))["out"],
                          atol=1e-5)
