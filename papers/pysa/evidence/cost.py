"""python -m papers.pysa.evidence.cost: PySA's Series against full attention and its slower forms.

Four levels R = 1, 2, 4, 8 with G = 2, C = 512 channels, keys of 64, one image, one thread, float32.
Prints the largest difference of the outputs where two forms are the same thing, then time and extra
peak memory, absolute and as ratios.
"""

import torch
import torch.nn.functional as F

from studies.measure import peak_memory, times

from .. import fast, model

FORMS = ("nothing", "interpolation", "level by level", "cell space", "full attention")
SIDES = 64, 128  # of the map


def levels():
    """The four levels, the same weights every time."""
    torch.manual_seed(0)
    return torch.nn.ModuleList(model.PySALevel(512, regions) for regions in (1, 2, 4, 8))


def by_interpolation(x, levels):
    """(F) with library calls: adaptive pooling, and every region enlarged by `interpolate`."""
    for level in levels:
        r, g = level.regions, level.cells
        o = level.attend(F.adaptive_avg_pool2d(x, level.grid))
        blocks = o.unflatten(2, (r, g)).unflatten(4, (r, g)).permute(0, 2, 4, 1, 3, 5)
        size = (x.shape[2] // r, x.shape[3] // r)
        blocks = F.interpolate(blocks.flatten(0, 2), size, mode="bilinear", align_corners=False)
        blocks = blocks.unflatten(0, (-1, r, r))
        x = x + blocks.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
    return x


def level_by_level(x, levels):
    """(F) as model.SeriesHead has it with fast=False."""
    for level in levels:
        x = x + level(x)
    return x


def full_attention(x, level):
    """Attention between all pixels with the same projections, PyTorch's own kernel."""
    projections = (level.query, level.key, level.value)
    q, k, v = (p(x).flatten(2).transpose(1, 2)[:, None] for p in projections)
    return x + F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)


def make(form, side, backward):
    """The function to measure: one of FORMS on a side x side map, with or without the backward
    pass."""
    some = levels()
    forms = {
        "nothing": lambda x: x * 1,
        "interpolation": lambda x: by_interpolation(x, some),
        "level by level": lambda x: level_by_level(x, some),
        "cell space": lambda x: fast.series(x, some),
        "full attention": lambda x: full_attention(x, some[0]),
    }
    x = torch.randn(1, 512, side, side, requires_grad=backward)
    gradient = torch.randn_like(x)

    def step():
        if backward:
            forms[form](x).backward(gradient)
        else:
            with torch.inference_mode():
                forms[form](x)

    return step


def main():
    torch.set_num_threads(1)
    some, x = levels(), torch.randn(1, 512, SIDES[0], SIDES[0])
    with torch.inference_mode():
        reference = fast.series(x, some)
        for name, other in (
            ("level by level", level_by_level),
            ("interpolation", by_interpolation),
        ):
            difference = (other(x, some) - reference).abs().max()
            print(f"largest difference, {name} against cell space: {difference:.1e}")
    for side in SIDES:
        for backward in (False, True):
            last = len(FORMS) - (backward and side == SIDES[1])
            forms = FORMS[:last]
            candidates = {form: make(form, side, backward) for form in forms}
            seconds = times(candidates, rounds=5 if side == SIDES[0] else 3)
            del candidates
            print(f"\n{side} x {side}, {'forward + backward' if backward else 'forward'}")
            print(f"{'':16}{'ms':>9}{'ratio':>8}{'MiB':>9}{'ratio':>8}   (ratio: to cell space)")
            memory = {form: peak_memory(make, form, side, backward) for form in forms}
            for form in forms:
                print(
                    f"{form:16}{1e3 * seconds[form]:9.1f}"
                    f"{seconds[form] / seconds['cell space']:8.2f}"
                    f"{memory[form]:9.0f}{memory[form] / memory['cell space']:8.2f}"
                )


if __name__ == "__main__":
    main()
