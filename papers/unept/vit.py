"""A vision transformer for dense prediction: DeiT-base, distilled (Touvron et al., ICML 2021),
without its heads.

Parameter names are those of the published DeiT files.
Input  [B, 3, H, W], H and W multiples of the patch side.
Output a tuple with one map [B, width, H / patch, W / patch] for every block listed in `taps`: the
patch tokens as they leave that block, with no norm behind them.
"""

import torch
import torch.nn.functional as F
from torch import nn


def resize_position(position, grid):
    """Position embedding [1, 2 + n * n, width] for another grid of patches (rows, columns), 2 +
    rows * columns
    long: the two special tokens stay, the rest is a square picture and is resized bicubically."""
    side = round((position.shape[1] - 2) ** 0.5)
    if grid == (side, side):
        return position
    picture = position[:, 2:].transpose(1, 2).unflatten(2, (side, side))  # [1, width, n, n]
    picture = F.interpolate(picture, grid, mode="bicubic", align_corners=False)
    return torch.cat([position[:, :2], picture.flatten(2).transpose(1, 2)], dim=1)


class Attention(nn.Module):
    """Full self-attention among all tokens. [B, T, width] -> [B, T, width]."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                            # each [B, M, T, D]
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))  # [B, T, width]


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width, hidden):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """One token per patch x patch pixels. [B, 3, H, W] -> [B, H / patch * W / patch, width],
    row-major."""

    def __init__(self, patch, width):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images):
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """DeiT, distilled: a class and a distillation token in front of the patches.

    size: side of the image that the position embedding is made for; others are resized on the way.
    taps: the blocks whose output is returned, counted from 1.
    """

    def __init__(self, size, patch=16, width=768, heads=12, taps=(4, 8, 12)):
        super().__init__()
        self.patch, self.taps = patch, taps
        self.channels = [width] * len(taps)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 2 + (size // patch) ** 2, width))
        self.patch_embed = PatchEmbed(patch, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(max(taps)))
        for tensor in [self.cls_token, self.pos_embed]:
            nn.init.trunc_normal_(tensor, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images):
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        x = self.patch_embed(images)
        special = torch.cat([self.cls_token, self.dist_token], dim=1).expand(len(x), -1, -1)
        position = resize_position(self.pos_embed, grid)
        x = torch.cat([special, x], dim=1) + position                   # [B, 2 + T, width]
        maps = []
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            if number in self.taps:
                maps.append(x[:, 2:].transpose(1, 2).unflatten(2, grid))  # [B, width, H/16, W/16]
        return tuple(maps)


def load_imagenet(backbone, state_dict):
    """Copy the weights of a published DeiT, distilled, of any resolution, into a VisionTransformer.

    The file may be bare or wrapped in "state_dict" or "model", its names may start with "module."
    or "backbone."; its classifiers and last norm are left aside, its position embedding is resized.
    Returns a sentence that says what was loaded. Raises ValueError that lists what is missing,
    unexpected or of another shape; the backbone is then left as it was.
    """
    for wrapper in ("state_dict", "model"):
        state_dict = state_dict.get(wrapper, state_dict)
    found = {}
    for name, value in state_dict.items():
        name = name.removeprefix("module.").removeprefix("backbone.")
        if not name.startswith(("head.", "head_dist.", "norm.")):
            found[name] = value
    wanted = backbone.state_dict()
    if "pos_embed" in found:
        side = round((wanted["pos_embed"].shape[1] - 2) ** 0.5)
        found["pos_embed"] = resize_position(found["pos_embed"], (side, side))
    problems = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "of another shape": [n for n in wanted if n in found and found[n].shape != wanted[n].shape],
    }
    if any(problems.values()):
        raise ValueError("these weights are of another backbone: " + "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in problems.items() if names
        ))
    backbone.load_state_dict(found)
    return f"loaded {len(found)} tensors into the backbone"
