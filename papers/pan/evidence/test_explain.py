"""What explain.py shows of PAN is what the network computes with."""

import pytest
import torch

from .. import explain
from ..model import build, enlarge

attention = pytest.importorskip("papers.attention", reason="the folder was taken alone")
SIZE, PIXEL = (64, 96), (37, 70)


def passed(*more, **options):
    """(model, record of one forward pass with the modules `more` watched as well)."""
    torch.manual_seed(0)
    model = build(3, **options).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    images = torch.randn(1, 3, *SIZE)
    with attention.record(model, (*explain.RECORD, *more)) as record, torch.no_grad():
        model(images)
    return model, record


def close(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1), (a - b).abs().max()


@pytest.mark.parametrize(
    "options", [{}, {"pyramid_channels": 64}, {"gate": "both", "gate_activation": "sigmoid"}])
@torch.no_grad()
def test_what_is_shown_is_used(options):
    """Features times map plus mean, then details times gates: what is shown leads to what the
    classifier reads."""
    model, record = passed("fpa.master", "gaus.*.low", "head", **options)
    panels = explain.explain(model, record, SIZE, PIXEL)
    shown = {title.split(",")[0].split(" for")[0]: values for title, values in panels}
    attention_map = model.fpa.pyramid(record["fpa"][0][0])
    close(shown["FPA: pyramid attention"], enlarge(attention_map, SIZE)[0].mean(0))
    y = record["fpa.master"][1] * attention_map + shown["FPA: global mean"][:, None, None]
    for number, gau in enumerate(model.gaus):
        detail = record[f"gaus.{number}.low"][1]
        gated = detail * shown[f"GAU {number + 1}: channel gates"][:, None, None]
        if "gate" in options:
            gate = gau.positions(y, detail.shape[-2:])
            close(shown[f"GAU {number + 1}: spatial gate"], enlarge(gate, SIZE)[0, 0])
            gated = gated * gate
        y = enlarge(y, detail.shape[-2:]) + gated
    close(y, record["head"][0][0])


@torch.no_grad()
def test_squeeze_and_excitation_is_shown():
    model, record = passed("fpa.master", attention="se", global_pool=False)
    (title, factors), *_ = explain.explain(model, record, SIZE, PIXEL)
    assert title.startswith("FPA: squeeze")
    close(record["fpa.master"][1] * factors[:, None, None], record["fpa"][1])


@torch.no_grad()
def test_shut_gates_are_counted():
    """A gate of exactly 0, as ReLU makes it, lets nothing through."""
    model, record = passed()
    gates = record["gaus.0.channel"][1].fill_(1)
    gates.view(-1)[:3] = 0
    titles = [title for title, _ in explain.explain(model, record, SIZE, PIXEL)]
    assert f"3 of {gates.numel()} shut" in " ".join(titles)


@torch.no_grad()
def test_the_value_at_the_pixel_is_said():
    model, record = passed()
    (x,), output = record["fpa"]  # ten times as large, so that no two pixels have the same value
    title, values = explain.explain(
        model, {**record, "fpa": ((10 * torch.randn_like(x),), output)}, SIZE, PIXEL
    )[0]
    assert values.std() > 0.1 and title.endswith(f"{values[PIXEL]:.2f} at the pixel")
