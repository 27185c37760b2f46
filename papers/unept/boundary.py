"""What UN-EPT does at class boundaries: heads, targets, losses, refinement. naive.py says the same
with loops.

The idea is SegFix's (Yuan et al., ECCV 2020): scores inside an object are better than at its rim,
so a rim pixel takes over those of its neighbour inside. B images of H x W pixels, K classes
(not the keys of model.py).
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from .fast import kept

VOID = 255  # label of pixels that count nowhere
# (dy, dx) of direction 0 .. 7: the compass in steps of 45 degrees, direction 4 points to the right.
STEPS = ((0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1))
LOSS_WEIGHTS = {"segmentation": 0.8, "mask": 5.0, "direction": 0.6, "refined": 1.0}


def boundary_head(channels, outputs):
    """[B, C, h, w] -> [B, outputs, h, w]; without a bias, as released."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.Conv2d(channels, outputs, 1, bias=False),
    )


def enlarge(outputs, size):
    """The scores "mask" and "direction" of a network's outputs at full size, a pair.

    The released code aligns corners here, unlike elsewhere. [B, 2 or 8, h, w] -> [.., *size].
    """
    return tuple(
        F.interpolate(outputs[name], size, mode="bilinear", align_corners=True)
        for name in ("mask", "direction")
    )


# ------------------------------------------------------------------------------------------ losses


def total_loss(terms):
    """The sum of the terms of `boundary_loss`, each with its weight: a scalar."""
    return sum(LOSS_WEIGHTS[name] * term for name, term in terms.items())


def boundary_loss(logits, mask_logits, direction_logits, label, targets=None):
    """The four terms as a dictionary, before their weights.

        0.8 CE(s, y) + 5 CE_mask + 0.6 CE_dir + CE(refine(s), y)                            (N)

    logits s [B, K, H, W], mask_logits [B, 2, H, W], direction_logits [B, 8, H, W], all at the size
    of the label y, int64 [B, H, W], 255 = void. targets: (mask, direction) as of
    `boundary_targets`, made from the label if None.

    CE divides by *all* pixels, as the released training does: void ones cost nothing but are
    counted, so an image that is half void pulls half as hard. PyTorch's mean is over valid ones.
    CE_mask and CE_dir leave void out, where the released targets say boundary, direction 4.
    """
    mask, direction = boundary_targets(label) if targets is None else targets
    # Directions count where a boundary is *predicted*: by probability, while `refine` asks the
    # logit. Both as released.
    direction = direction.where(mask_logits[:, 1] > mask_logits[:, 0], VOID)
    return {                                                                # (N)
        "segmentation": mean_cross_entropy(logits, label),
        "mask": balanced_cross_entropy(mask_logits, mask),
        "direction": balanced_cross_entropy(direction_logits, direction),
        "refined": mean_cross_entropy(refine(logits, mask_logits, direction_logits), label),
    }


def mean_cross_entropy(scores, label):
    """Cross-entropy of the valid pixels divided by the number of all pixels, void ones included.
    scores [B, K, H, W], label int64 [B, H, W] -> scalar."""
    total = F.cross_entropy(fine(scores), label, ignore_index=VOID, reduction="sum")
    return total / label.numel()


def balanced_cross_entropy(scores, target):
    """Weighted mean in which a class weighs 1 minus its share of the valid pixels; 0 where the
    weights sum to 0: no valid pixel, or a single class.

    scores [B, K, H, W], target int64 [B, H, W], 255 = void -> scalar.
    """
    counts = torch.bincount(target[target != VOID], minlength=scores.shape[1]).to(fine(scores))
    weights = 1 - counts / counts.sum().clamp(min=1)
    total = F.cross_entropy(fine(scores), target, weights, ignore_index=VOID, reduction="sum")
    return total / (weights * counts).sum().clamp(min=1e-6)


def fine(scores):
    """In float32 at least: losses are never taken in half precision."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


# -------------------------------------------------------------------------------------- refinement


def refine(logits, mask_logits, direction_logits):
    """A boundary pixel takes over the scores of its neighbour one step further inside.

        refine(s)(p) = s(p + o(p))                                                          (M)

    o: the step of the likeliest direction where the mask says boundary, else (0, 0). logits s
    [B, K, H, W], mask_logits [B, 2, H, W], direction_logits [B, 8, H, W] -> [B, K, H, W]. No
    gradient reaches mask and direction: steps are whole pixels.
    """
    height, width = logits.shape[2:]
    direction = direction_logits.argmax(1)                                  # [B, H, W]
    # The released code compares the logit, not the probability, with one half.
    step = steps_like(direction)[direction]                                 # [B, H, W, 2]
    step = step * (mask_logits[:, 1] > 0.5)[..., None]
    y = torch.arange(height, device=logits.device)[:, None] + step[..., 0]
    x = torch.arange(width, device=logits.device) + step[..., 1]
    source = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(1)     # [B, H*W]
    index = source[:, None].expand(-1, logits.shape[1], -1)                 # [B, K, H*W]
    return logits.flatten(2).gather(2, index).view_as(logits)               # (M)


@kept
def steps_like(like):
    """STEPS as a tensor of the type of `like`, [8, 2]."""
    return like.new_tensor(STEPS)


# ----------------------------------------------------------------------------------------- targets


def boundary_targets(label, reach=9):
    """Which pixels lie near a boundary, and in which of eight directions their interior lies.

        mask = [floor(T) <= 5],   direction = angle of (G_y * T, G_x * T) in 8 sectors      (L)

    T, `depth`: distance to the nearest pixel of another class; G_y[i, j] = i / (i^2 + j^2) and
    G_x[i, j] = j / (i^2 + j^2) for i, j in -2 .. 2: the slope of T, which points inside.

    label: int [B, H, W], 255 = void. Returns mask [B, H, W] (1 = boundary, 0 = not, 255 = void) and
    direction [B, H, W] (0 .. 7, or 255 where void or so deep inside that distances up to `reach`
    do not decide it), int64. Made from the label as the network sees it, so flips and scales need
    no care. Regions of fewer than 100 pixels have T = 0, and void is a class of its own. `reach` 9:
    the mask ends below 6, and the slope looks 2.83 further.
    """
    label = label.to(torch.uint8)
    void = label == VOID
    counts = torch.stack([torch.bincount(image.flatten(), minlength=256) for image in label])
    small = (counts < 100).gather(1, label.flatten(1).long()).view_as(label)
    hollow = small | void                           # such regions have no inside
    depth = boundary_depth(label, reach).masked_fill(hollow, 0)             # [B, H, W]
    down, across = slope(depth, label)                                      # each [B, H, W]
    # The published targets store angles as bytes, in steps of two degrees, rounded down.
    angle = 2 * ((torch.rad2deg(torch.atan2(down, across)) + 180) / 2).floor() - 180
    direction = ((angle + 180 - 22.5) / 45).ceil().long() % 8               # (L)
    direction = direction.masked_fill(hollow, 4)    # no inside: angle 0 there
    direction = direction.masked_fill(void | (depth.floor() > reach - 4), VOID)
    mask = (depth.floor() <= 5).long().masked_fill(void, VOID)              # (L)
    return mask, direction


def boundary_depth(label, reach):
    """Distance in pixels from each pixel to the nearest one of another label, exact up to `reach`,
    larger beyond. The border of the image is no boundary. uint8 [B, H, W] -> float64 [B, H, W].

    Two passes, as for every squared Euclidean distance: along columns, then the minimum over a row
    of the sum.
    """
    column = torch.full_like(label, reach + 1, dtype=torch.int16)
    for d in range(min(reach, label.shape[1] - 1), 0, -1):  # the nearest one writes last
        other = label[:, d:] != label[:, :-d]
        column[:, d:].masked_fill_(other, d)
        column[:, :-d].masked_fill_(other, d)
    column = column * column
    squared = column.clone()
    for d in range(1, min(reach, label.shape[2] - 1) + 1):
        other = label[..., d:] != label[..., :-d]
        for here, there in ((slice(d, None), slice(None, -d)), (slice(None, -d), slice(d, None))):
            found = column[..., there].masked_fill(other, 0) + d * d
            squared[..., here] = torch.minimum(squared[..., here], found)
    # Angles are rounded down to bytes later, so whole degrees must come out whole.
    return squared.to(torch.float32 if label.device.type == "mps" else torch.float64).sqrt()


def slope(depth, label):
    """G_y * T and G_x * T, which see the pixel's own class only. [B, H, W] -> twice [B, H, W]."""
    height, width = label.shape[1:]
    labels = F.pad(label.short(), (2, 2, 2, 2), value=-1)
    depths = F.pad(depth, (2, 2, 2, 2))
    down, across = torch.zeros_like(depth), torch.zeros_like(depth)
    for dy, dx in itertools.product(range(-2, 3), repeat=2):
        if dy or dx:
            there = (..., slice(dy + 2, dy + 2 + height), slice(dx + 2, dx + 2 + width))
            inside = depths[there].masked_fill(labels[there] != label, 0)
            down.add_(inside, alpha=dy / (dy * dy + dx * dx))
            across.add_(inside, alpha=dx / (dy * dy + dx * dx))
    return down, across
