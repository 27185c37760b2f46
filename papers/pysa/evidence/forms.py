"""Forms of PySA-Series that tests/bench.py measures, and what one might take instead.

There is no official code. The first form enlarges every region with `interpolate`, as the figure
draws it; `level by level` is model.SeriesHead with fast=False; `ours` is fast.series. Others, with
C channels in and out but for the last:

full attention           between all pixels, keys of C / 8
criss-cross, two rounds  CCNet (Huang et al., ICCV 2019): each pixel looks along its row and column,
                         the second round carries it everywhere; keys of C / 8, the same weights
pyramid pooling          PSPNet (Zhao et al., CVPR 2017): means on 1, 2, 3 and 6 cells a side, each
                         reduced to C / 4 channels, enlarged, and put beside the map: 2 C channels
"""

import torch
import torch.nn.functional as F
from torch import nn

from studies.measure import FullAttention, one_pass

from .. import fast, model


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


class CrissCross(nn.Module):
    """Criss-cross attention, `rounds` times with the same weights. [B, C, H, W] -> the same.

        A[i, j] = softmax over the H + W - 1 pixels j in the row or column of i of q_i . k_j
        y_i = gamma * sum over j of A[i, j] v_j + x_i

    with k and q of C / 8 channels. gamma is learned and starts at 0.
    """

    def __init__(self, channels, rounds=2):
        super().__init__()
        self.rounds = rounds
        self.query, self.key = (nn.Conv2d(channels, channels // 8, 1) for _ in range(2))
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        for _ in range(self.rounds):
            x = self.gamma * self.attend(x) + x
        return x

    def attend(self, x):
        """One round without the addition."""
        q, k, v = (f(x).permute(0, 2, 3, 1) for f in (self.query, self.key, self.value))
        height = x.shape[2]
        column = (q.transpose(1, 2) @ k.transpose(1, 2).mT).transpose(1, 2)     # [B, H, W, H]
        itself = torch.eye(height, dtype=torch.bool, device=x.device)[:, None]  # it is in the row
        column = column.masked_fill(itself, -torch.inf)
        a = torch.cat([column, q @ k.mT], dim=-1).softmax(-1)                   # [B, H, W, H + W]
        along_column = (a[..., :height].transpose(1, 2) @ v.transpose(1, 2)).transpose(1, 2)
        return (along_column + a[..., height:] @ v).permute(0, 3, 1, 2)


class PyramidPooling(nn.Module):
    """PSPNet's module. [B, C, H, W] -> [B, 2 C, H, W]."""

    def __init__(self, channels, cells=(1, 2, 3, 6)):
        super().__init__()
        self.cells = cells
        self.reductions = nn.ModuleList(
            model.conv_norm(channels, channels // len(cells), 1) for _ in cells)

    def forward(self, x):
        parts = [reduce(F.adaptive_avg_pool2d(x, n))
                 for n, reduce in zip(self.cells, self.reductions, strict=True)]
        parts = [F.interpolate(p, x.shape[2:], mode="bilinear", align_corners=True) for p in parts]
        return torch.cat([x, *parts], dim=1)


SERIES = {"interpolate per region": by_interpolation, "level by level": level_by_level,
          "ours": fast.series}
INSTEAD = {
    "full attention": lambda channels: FullAttention(channels, keys=channels // 8),
    "criss-cross, two rounds": CrissCross,
    "pyramid pooling": PyramidPooling,
}
FORMS, OTHERS = tuple(SERIES), tuple(INSTEAD)
# Channels last, as train.py runs networks; "contiguous" is PyTorch's default.
CASES = {  # name: images, channels, side of the map, its layout, whether with gradients
    f"{batch} x {channels} x {side} x {side}{', contiguous' * (not last)}"
    f"{', forward and backward' * train}": (batch, channels, side, last, train)
    for batch, channels, side, last, train in (
        (1, 512, 32, True, False), (1, 512, 32, True, True), (1, 512, 64, True, False),
        (1, 512, 64, True, True), (1, 512, 64, False, False), (1, 512, 128, True, False),
        (8, 64, 16, True, False), (8, 64, 16, True, True), (8, 64, 32, True, False),
        (8, 64, 32, True, True))}


def make(form, batch, channels, side, last, train, device="cpu"):
    """Four levels R = 1, 2, 4, 8 with G = 2 on one map, or what stands in their place."""
    torch.manual_seed(0)
    with torch.device(device):
        x = torch.randn(batch, channels, side, side)
        if form in INSTEAD:
            module = INSTEAD[form](channels)
        else:
            module = nn.ModuleList(model.PySALevel(channels, regions) for regions in (1, 2, 4, 8))
    layout = torch.channels_last if last else torch.contiguous_format
    # BatchNorm, in pyramid pooling alone, with fixed statistics: one image has one cell to average.
    x, module = x.to(memory_format=layout), module.to(memory_format=layout).eval()
    x.requires_grad_(train)
    run = module if form in INSTEAD else lambda x: SERIES[form](x, module)
    return one_pass(lambda: run(x), [x, *module.parameters()], train)
