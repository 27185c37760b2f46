"""Time and memory of UN-EPT's attention: full attention, grid_sample, autograd's bags, and its own.

  python -m papers.unept.evidence.cost                 64 x 64 queries, 16 and 4 points
  python -m papers.unept.evidence.cost --side 32 --side 64 --side 128 --points 16
  python -m papers.unept.evidence.cost --macs          multiply-adds of the networks, by part

One attention without its projections: M = 8 heads of D = 32 channels, L = 3 levels of the size of
the query map, points around their query as at the start of training, float32, one thread. Full
attention looks at one level.
"""

import torch
import torch.nn.functional as F

from studies.measure import multiply_adds, peak_memory, times
from studies.trainings import parser

from .. import fast, model

HEADS, WIDTH, LEVELS = 8, 32, 3
SIDES, POINTS = (64,), (16, 4)  # unless flags say otherwise


def by_autograd(value, shapes, locations, weights):
    """The bags of fast.level_attention with the gradients of embedding_bag itself."""
    out = 0
    parts = value.split([height * width for height, width in shapes], dim=1)
    levels = zip(parts, shapes, locations.unbind(3), weights.unbind(3), strict=True)
    for part, shape, points, share in levels:
        out = out + fast.level_attention(fast.ringed_table(part, shape), points, share, shape)
    return out.view(*locations.shape[:2], -1)


def all_levels_at_once(value, shapes, locations, weights):
    """The form of the released debugging code: the samples of all levels are stored, stacked and
    then weighed."""
    batch, queries, heads, _, points, _ = locations.shape
    samples = []
    for level, part in enumerate(value.split([height * width for height, width in shapes], dim=1)):
        # [B*M, D, H, W]
        pixels = part.flatten(2).transpose(1, 2).reshape(batch * heads, -1, *shapes[level])
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        samples.append(F.grid_sample(pixels, grid, align_corners=False))  # bilinear, zeros outside
    share = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    out = (torch.stack(samples, dim=-2).flatten(-2) * share).sum(-1)
    return out.view(batch, -1, queries).transpose(1, 2).contiguous()


FULL = "full attention (SDPA)"
FORMS = {
    "grid_sample, all levels": all_levels_at_once,
    "grid_sample, per level": model.deformable_attention,
    "bags, autograd": by_autograd,
    "bags, as used": fast.deformable_attention,
}


def inputs(side, points):
    """(value, locations, weights) of one attention, see model.deformable_attention."""
    queries, shapes = side * side, [(side, side)] * LEVELS
    value = torch.randn(1, LEVELS * queries, HEADS, WIDTH)
    centres = model.pixel_centres(side, side, value)[None]
    attention = model.DeformableAttention(HEADS * WIDTH, HEADS, LEVELS, points)
    offsets = attention.sampling_offsets.bias.detach().view(1, 1, HEADS, LEVELS, points, 2)
    offsets = offsets + torch.randn(1, queries, HEADS, LEVELS, points, 2)
    weights = torch.randn(1, queries, HEADS, LEVELS * points).softmax(-1)
    locations = model.sampling_locations(centres, offsets, shapes)
    return value, locations, weights.unflatten(3, (LEVELS, points))


def make(form, side, points, backward):
    """A function that runs one form once, on inputs that are there already."""
    torch.manual_seed(0)
    if form == FULL:
        leaves = torch.randn(3, 1, HEADS, side * side, WIDTH).unbind()
    else:
        leaves = inputs(side, points)
    leaves = [tensor.detach().requires_grad_(backward) for tensor in leaves]

    def step():
        if form == FULL:
            out = F.scaled_dot_product_attention(*leaves)
        else:
            out = FORMS[form](leaves[0], [(side, side)] * LEVELS, *leaves[1:])
        if backward:
            torch.autograd.grad(out, leaves, torch.ones_like(out))

    return step


def counts():
    """Print multiply-adds of matrix products and convolutions, counted on tensors without data."""
    for preset, size in (("resnet50", 480), ("deit", 480), ("deit_cityscapes", 768), ("tiny", 128)):
        with torch.device("meta"):
            network, image = model.build(150, preset).eval(), torch.zeros(1, 3, size, size)
        with torch.no_grad():
            total, modules = multiply_adds(lambda network=network, image=image: network(image))
        parts = []
        for child, module in network.named_children():
            lists = isinstance(module, torch.nn.ModuleList)
            inside = [f"{child}.{i}" for i in range(len(module))] if lists else [child]
            part = sum(modules.get(f"UNEPT.{name}", 0) for name in inside)
            parts.append(f"{child} {part / 1e9:.2f}")
        print(f"{preset} {size}x{size}: {total / 1e9:.1f} G  ({', '.join(parts)})")


def main():
    flags = parser(__doc__)
    flags.add_argument("--side", type=int, action="append",
                       help="side of the query map (repeatable; default 64)")
    flags.add_argument("--points", type=int, action="append",
                       help="points per level (repeatable; default 16, 4)")
    flags.add_argument("--macs", action="store_true", help="multiply-adds; nothing is computed")
    arguments = flags.parse_args()
    if arguments.macs:
        counts()
        return
    torch.set_num_threads(1)
    names = [FULL, *FORMS]
    print(f"{'side':>4} {'N':>3} {'':12} {'form':26} {'ms':>8} {'MiB':>7} {'ratio ms':>9} "
          f"{'ratio MiB':>9}")
    for side in arguments.side or SIDES:
        for points in arguments.points or POINTS:
            for backward in (False, True):
                what = side, points, backward
                seconds = times({name: make(name, *what) for name in names}, rounds=3)
                memory = {name: peak_memory(make, name, *what) for name in names}
                passes = "forward+back" if backward else "forward"
                for name in names:
                    print(
                        f"{side:4} {points:3} {passes:12} {name:26} "
                        f"{1000 * seconds[name]:8.0f} {memory[name]:7.0f} "
                        f"{seconds[name] / seconds['bags, as used']:9.2f} "
                        f"{memory[name] / max(1, memory['bags, as used']):9.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
