"""Beyond the paper: cells that know where they stand. The paper itself is model.py."""

import torch
from torch import nn

from .model import PySALevel, as_map, by_region


class PositionedLevel(PySALevel):
    """A level whose scores depend on the relative position of two cells as well.

        A = softmax(Q K^T / sqrt(d) + S),   S[m, n] = position[offset of n from m]       (I)

    where position [1, 2G - 1, 2G - 1] is learned, the same for all regions, zero at first; the
    offset of n from m is its row and column minus those of m, plus G - 1. (I) replaces (C).
    Without it the G * G cells of a region are a set: a level cannot tell left from right.

    The arguments and forward: see PySALevel.
    """

    def __init__(self, channels, regions, cells=2, inputs=None):
        super().__init__(channels, regions, cells, inputs)
        self.position = nn.Parameter(torch.zeros(1, 2 * cells - 1, 2 * cells - 1))

    def attend(self, t):
        """Self-attention inside every region. [B, C, N, N] -> [B, C, N, N]."""
        q = by_region(self.query(t), self.regions)                  # [B, R*R, G*G, d]
        k = by_region(self.key(t), self.regions)                    # [B, R*R, G*G, d]
        v = by_region(self.value(t), self.regions)                  # [B, R*R, G*G, C]
        scores = q @ k.mT / q.shape[-1] ** 0.5 + self.relative()    # (I)  [B, R*R, G*G, G*G]
        a = torch.softmax(scores, dim=-1)                           # (I)  [B, R*R, G*G, G*G]
        return as_map(a @ v, self.regions, self.cells)              # [B, C, N, N]

    def relative(self):
        """S [G*G, G*G]: row m, column n holds what is added where cell m looks at cell n."""
        i = torch.arange(self.cells, device=self.position.device)
        offset = i[None, :] - i[:, None] + self.cells - 1           # [G, G]
        rows, columns = offset[:, None, :, None], offset[None, :, None, :]
        return self.position[0, rows, columns].flatten(2, 3).flatten(0, 1)
