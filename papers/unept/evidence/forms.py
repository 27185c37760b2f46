"""Forms of UN-EPT's sparse attention that tests/bench.py measures, and full attention.

official: the released code's form without its compiled kernel, `grid_sample` on all levels, whose
samples are stored, stacked and then weighed. One attention is measured without its projections:
M = 8 heads of D = 32 channels, L = 3 levels of the size of the query map, points around their query
as at the start of training. Full attention looks at one level.
"""

from unittest.mock import patch

import torch
import torch.nn.functional as F

from studies.measure import one_pass

from .. import fast, model

HEADS, WIDTH, LEVELS = 8, 32, 3


def all_levels_at_once(value, shapes, locations, weights):
    """The released form; arguments and result of `model.deformable_attention`."""
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


def bags(value, shapes, locations, weights):
    """fast.py with the gradients of `embedding_bag` itself, as on a GPU."""
    with patch.object(fast.LevelAttention, "apply", fast.level_attention):
        return ATTENTIONS["ours"](value, shapes, locations, weights)


ATTENTIONS = {
    "official": all_levels_at_once,
    "grid_sample, per level": model.deformable_attention,
    "bags, PyTorch's gradients": bags,
    "ours": fast.deformable_attention,
}
FORMS, OTHERS = tuple(ATTENTIONS), ("full attention to one level",)
CASES = {  # name: preset or None, side of image or query map, points, whether with gradients
    **{f"{side} x {side} queries, {points} points{', forward and backward' * train}": (
        None, side, points, train)
        for side, points in ((32, 16), (64, 4), (64, 16), (128, 16)) for train in (False, True)},
    "UN-EPT, ResNet-50, 480 px": ("resnet50", 480, 16, False),
}


def inputs(side, points):
    """[value, locations, weights] of one attention, see model.deformable_attention."""
    queries, shapes = side * side, [(side, side)] * LEVELS
    value = torch.randn(1, LEVELS * queries, HEADS, WIDTH)
    centres = model.pixel_centres(side, side, value)[None]
    attention = model.DeformableAttention(HEADS * WIDTH, HEADS, LEVELS, points)
    offsets = attention.sampling_offsets.bias.detach().view(1, 1, HEADS, LEVELS, points, 2)
    offsets = offsets + torch.randn(1, queries, HEADS, LEVELS, points, 2)
    weights = torch.randn(1, queries, HEADS, LEVELS * points).softmax(-1)
    return [value, model.sampling_locations(centres, offsets, shapes),
            weights.unflatten(3, (LEVELS, points))]


def make(form, preset, side, points, train, device="cpu"):
    """One attention, or a whole network with it."""
    torch.manual_seed(0)
    with torch.device(device):
        if preset:
            return whole_network(form, preset, side, points, train)
        if form in OTHERS:
            leaves = [*torch.randn(3, 1, HEADS, side * side, WIDTH)]
        else:
            leaves = inputs(side, points)
    leaves = [tensor.requires_grad_(train) for tensor in leaves]
    if form in OTHERS:
        return one_pass(lambda: F.scaled_dot_product_attention(*leaves), leaves, train)
    value, *rest = leaves
    shapes = [(side, side)] * LEVELS
    return one_pass(lambda: ATTENTIONS[form](value, shapes, *rest), leaves, train)


def whole_network(form, preset, side, points, train):
    """A network without dropout, whose attention takes a form; full attention: the pyramid's pixels
    look at all of the finest level."""
    network = model.build(150, preset, points=points, dropout=0.0).train(train)
    images = torch.randn(1, 3, side, side)
    for module in network.modules():  # at the start points lie on pixels, where gradients jump
        if isinstance(module, model.DeformableAttention):
            bias = module.sampling_offsets.bias
            bias.data.add_(torch.rand_like(bias))

    def full(value, shapes, locations, weights):
        first = value[:, : shapes[0][0] * shapes[0][1]].transpose(1, 2)
        queries = locations.shape[1]
        q = value[:, :queries].transpose(1, 2)
        return F.scaled_dot_product_attention(q, first, first).transpose(1, 2).flatten(2)

    def run():
        with patch.object(fast, "deformable_attention", ATTENTIONS.get(form, full)):
            return network(images)["out"]

    return one_pass(run, [*network.parameters()], train)
