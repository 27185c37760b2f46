"""What explain.py shows of UN-EPT is what the network reads."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from .. import explain
from ..model import build

attention = pytest.importorskip("papers.attention", reason="the folder was taken alone")
SIZE, PIXEL = (64, 96), (13, 70)  # 70 is no row: rows and columns cannot change places unnoticed
AT_8 = (1, 8)  # where PIXEL lies on a map of 1/8 of the size


def passed(**options):
    """(model, record of one forward pass): a network whose points and weights are not uniform."""
    torch.manual_seed(0)
    model = build(3, **options).eval()
    for name, parameter in model.named_parameters():
        if "sampling_offsets" in name or "attention_weights" in name or not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    with attention.record(model, explain.RECORD) as record, torch.no_grad():
        model(torch.randn(1, 3, *SIZE))
    return model, record


def close(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1), (a - b).abs().max()


@pytest.mark.parametrize("options", [{}, {"levels": 2, "heads": 2, "depth": 2}, {"fast": False}])
@torch.no_grad()
def test_what_is_shown_is_used(options):
    """Reading the maps at the circles that are drawn, and weighing them, gives the output of the
    attention."""
    model, record = passed(**options)
    panels = explain.explain(model, record, SIZE, PIXEL)
    heads = len(model.decoder) * model.decoder[0].cross_attention.heads
    assert len(panels) == len(model.encoder) + heads
    for name, ((query, reference, source, shapes), output) in record.items():
        module = model.get_submodule(name)
        number = AT_8[0] * (SIZE[1] // 8) + AT_8[1]
        locations, weights = explain.sampling_points(module, query, reference, shapes, number)
        close(weights.sum((1, 2)), torch.ones(module.heads))
        value, out = module.value_proj(source)[0].unflatten(1, (module.heads, -1)), 0  # [S, M, D]
        parts = value.split([height * width for height, width in shapes])
        for level, part in enumerate(parts):
            maps = part.permute(1, 2, 0).unflatten(2, shapes[level])  # [M, D, H, W]
            grid = locations[:, level, None] * 2 - 1
            read = F.grid_sample(maps, grid, align_corners=False)[:, :, 0]  # [M, D, N]
            out = out + (read * weights[:, level, None]).sum(-1)  # [M, D]
        close(module.output_proj(out.flatten()), output[0, number])
        if "decoder" in name:
            layer = f"decoder layer {int(name.split('.')[1]) + 1},"
            mine = [panel for title, panel in panels if title.startswith(layer)]
            assert len(mine) == module.heads
            for head, panel in enumerate(mine):
                points = torch.stack(list(panel.values()))  # [L, N, 3]
                close(points[..., :2], locations[head] * torch.tensor([SIZE[1], SIZE[0]]))
                close(points[..., 2], weights[head])
        else:
            points = torch.cat(list(panels[int(name.split(".")[1])][1].values()))
            close(points[:, 2].sum(), torch.ones(()))


def test_it_starts_around_the_pixel():
    """Before training the points lie evenly around the reference: so their mean is the pixel."""
    image = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    torch.manual_seed(0)
    for title, panel in attention.look(build(3).eval(), explain, image, PIXEL)[1]:
        if title.startswith("encoder"):
            x, y = np.concatenate(list(panel.values()))[:, :2].mean(0)
            assert abs(x * SIZE[1] - PIXEL[1]) < 8 and abs(y * SIZE[0] - PIXEL[0]) < 8


@torch.no_grad()
def test_points_of_a_padded_image():
    """Where 50 x 70 pixels are padded to 64 x 80, points are in pixels of that, not stretched."""
    model, panels = build(3).eval(), []
    model.multiple = 16
    with attention.record(model, explain.RECORD) as record:
        model(torch.randn(1, 3, 64, 80))
    for size in ((64, 80), (50, 70)):
        panels.append(explain.explain(model, record, size, (20, 30)))
    for (_, padded), (_, image) in zip(*panels, strict=True):
        for whole, part in zip(padded.values(), image.values(), strict=True):
            close(whole, part)


def test_names_of_maps():
    assert explain.map_names(96, [(12, 5), (6, 3)]) == ["1/8", "1/16"]
    assert explain.map_names(96, [(12, 5), (12, 5)]) == ["map 1", "map 2"]
