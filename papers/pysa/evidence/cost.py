"""python -m papers.pysa.evidence.cost: PySA's Series against full attention and its slower forms.

Four levels R = 1, 2, 4, 8 with G = 2, C = 512 channels, keys of 64, one image, one thread, float32.
Prints the largest difference of the outputs where two forms are the same thing, then time and extra
peak memory, absolute and as ratios.
"""

import torch
import torch.nn.functional as F

from studies.measure import FullAttention, peak_memory, times

from .. import fast, model

SIDES = 64, 128  # of the map


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


SAME = {
    "interpolation": by_interpolation,
    "level by level": level_by_level,
    "cell space": lambda x, levels: fast.series(x, levels),
}
FORMS = ("nothing", *SAME, "full attention")


def levels_of():
    """The four levels, the same weights every time."""
    torch.manual_seed(0)
    return torch.nn.ModuleList(model.PySALevel(512, regions) for regions in (1, 2, 4, 8))


def make(form, side, backward):
    """The function to measure: one of FORMS on a side x side map, with the backward pass or not."""
    levels, full = levels_of(), FullAttention(512, keys=64)
    x = torch.randn(1, 512, side, side, requires_grad=backward)
    gradient = torch.randn_like(x)

    def output():
        if form in SAME:
            return SAME[form](x, levels)
        return x * 1 if form == "nothing" else x + full(x)

    def step():
        if backward:
            output().backward(gradient)
        else:
            with torch.inference_mode():
                output()

    return step


def differences():
    """Print by how much the forms that are the same thing differ."""
    levels, x = levels_of(), torch.randn(1, 512, SIDES[0], SIDES[0])
    with torch.inference_mode():
        outputs = {name: form(x, levels) for name, form in SAME.items()}
    for name, output in outputs.items():
        difference = (output - outputs["cell space"]).abs().max()
        print(f"largest difference, {name} against cell space: {difference:.1e}")


def main():
    torch.set_num_threads(1)
    differences()
    for side in SIDES:
        for backward in (False, True):
            forms = FORMS[:-1] if backward and side == SIDES[1] else FORMS
            seconds = times({form: make(form, side, backward) for form in forms},
                            rounds=5 if side == SIDES[0] else 3)
            memory = {form: peak_memory(make, form, side, backward) for form in forms}
            print(f"\n{side} x {side}, {'forward + backward' if backward else 'forward'}")
            print(f"{'':16}{'ms':>9}{'ratio':>8}{'MiB':>9}{'ratio':>8}   (ratio: to cell space)")
            for form in forms:
                print(
                    f"{form:16}{1e3 * seconds[form]:9.1f}"
                    f"{seconds[form] / seconds['cell space']:8.2f}"
                    f"{memory[form]:9.0f}{memory[form] / memory['cell space']:8.2f}")


if __name__ == "__main__":
    main()
