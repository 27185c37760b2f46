"""Feature Pyramid Attention and Global Attention Upsample exactly as their equations read: Python
loops over pixels, no tricks.

Made to be read beside paper.md and to be wrong nowhere; hopelessly slow on purpose. A function
takes its maps and the module of model.py (or readings.py) that it is the definition of, and uses of
the module the weights and the options, never the code: fpa(x, module) is what module(x) must be.

Index arithmetic is done in integers. Tensors only hold the numbers (and carry the gradients).
"""

import torch
from torch import nn

# ----------------------------------------------------------------------------------- convolution


def stack(rows):
    """Nested lists [H][W] of tensors [B, C] -> one tensor [B, C, H, W]."""
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def convolve(x, module):
    """C_k: convolution, BatchNorm, activation. [B, C, H, W] -> [B, D, H / stride, W / stride]."""
    return activate(normalise(sum_taps(x, module.conv), module.bn), module.activation)


def sum_taps(x, conv):
    """y[o, i, j] = sum over c, u, v of W[o, c, u, v] x[c, s i + u - p, s j + v - p] + b[o], s:
    stride.

    What lies outside the map counts as zero. [B, C, H, W] -> [B, D, H / stride, W / stride], up.
    """
    (height, width), (kernel, _) = x.shape[-2:], conv.kernel_size
    (pad, _), (stride, _) = conv.padding, conv.stride
    rows = []
    for i in range(0, height, stride):
        row = []
        for j in range(0, width, stride):
            total = 0 if conv.bias is None else conv.bias
            for u in range(kernel):
                for v in range(kernel):
                    m, n = i + u - pad, j + v - pad
                    if 0 <= m < height and 0 <= n < width:
                        total = total + x[:, :, m, n] @ conv.weight[:, :, u, v].T  # the sum over c
            row.append(total)
        rows.append(row)
    return stack(rows)


def normalise(x, bn):
    """BatchNorm. [B, D, H, W] -> the same shape.

    In training by the statistics of this batch (the running ones are left alone), else the running
    ones.
    """
    channels = []
    for o in range(x.shape[1]):
        if bn.training:
            values = x[:, o]  # of the whole batch
            mean = values.sum() / values.numel()
            variance = ((values - mean) ** 2).sum() / values.numel()
        else:
            mean, variance = bn.running_mean[o], bn.running_var[o]
        channels.append((x[:, o] - mean) / (variance + bn.eps) ** 0.5 * bn.weight[o] + bn.bias[o])
    return torch.stack(channels, dim=1)


def activate(y, activation):
    """ReLU, ELU, sigmoid or nothing at all, as the module says."""
    if isinstance(activation, nn.ReLU):
        return y.clamp(min=0)
    if isinstance(activation, nn.ELU):
        return torch.where(y > 0, y, torch.exp(y.clamp(max=0)) - 1)  # exp of a large y is infinite
    return 1 / (1 + torch.exp(-y)) if isinstance(activation, nn.Sigmoid) else y


# --------------------------------------------------------------------------------------- resizing


def pool(x, reduction="avg"):
    """P: half the size. [B, C, H, W] -> [B, C, H // 2, W // 2], but a side of 1 stays 1."""
    height, width = x.shape[-2:]
    tall, wide = min(2, height), min(2, width)  # of one window
    rows = []
    for i in range(height // tall):
        row = []
        for j in range(width // wide):
            pixels = [x[:, :, tall * i + u, wide * j + v] for u in range(tall) for v in range(wide)]
            largest = torch.stack(pixels).amax(0)
            row.append(largest if reduction == "max" else sum(pixels) / len(pixels))
        rows.append(row)
    return stack(rows)


def bilinear_taps(i, small, large):
    """Where pixel i of `large` lies among `small` ones, corners on corners: two (pixel, weight)."""
    a, rest = divmod(i * (small - 1), large - 1) if large > 1 else (0, 0)
    t = rest / (large - 1) if large > 1 else 0.0
    return [(a, 1 - t), (min(a + 1, small - 1), t)]


def enlarge(x, size):
    """up: bilinear, corners onto corners. [B, C, h, w] -> [B, C, H, W] with (H, W) = size."""
    height, width = size
    rows = []
    for i in range(height):
        row = []
        for j in range(width):
            total = 0
            for m, wm in bilinear_taps(i, x.shape[-2], height):
                for n, wn in bilinear_taps(j, x.shape[-1], width):
                    total = total + wm * wn * x[:, :, m, n]
            row.append(total)
        rows.append(row)
    return stack(rows)


def mean(x):
    """The mean over all positions. [B, C, H, W] -> [B, C, 1, 1]."""
    height, width = x.shape[-2:]
    total = sum(x[:, :, i, j] for i in range(height) for j in range(width))
    return (total / (height * width))[:, :, None, None]


# -------------------------------------------------------------------------------------- the paper


def pyramid(x, module):
    """The attention map A of an FPA. [B, C, H, W] -> [B, K, H, W], not squashed, not normalised."""
    x1 = convolve(pool(x, module.reduction), module.down1)
    x2 = convolve(pool(x1, module.reduction), module.down2)
    x3 = convolve(pool(x2, module.reduction), module.down3)             # (A)
    a3 = convolve(x3, module.side3)                                     # (B)
    a2 = convolve(x2, module.side2) + enlarge(a3, x2.shape[-2:])
    a1 = convolve(x1, module.side1) + enlarge(a2, x1.shape[-2:])
    return enlarge(a1, x.shape[-2:])                                    # (C)


def fpa(x, module):
    """Feature Pyramid Attention: what model.FPA computes. [B, C, H, W] -> [B, D, H, W]."""
    m = convolve(x, module.master)                                      # (D)
    a = pyramid(x, module)
    g = convolve(mean(x), module.pooled)                                # (E)
    rows = []
    for i in range(m.shape[-2]):
        row = []
        for j in range(m.shape[-1]):
            row.append(m[:, :, i, j] * a[:, :, i, j] + g[:, :, 0, 0])   # (F)  a: 1 or D channels
        rows.append(row)
    return stack(rows)


def gau(y, low, module):
    """Global Attention Upsample: what model.GAU computes.

    y: coarse [B, D, h, w], low: fine [B, C, H, W] -> [B, D, H, W].
    """
    w = convolve(mean(y), module.channel)                               # (G)
    detail = convolve(low, module.low)                                  # (H)
    return add_weighted(enlarge(y, low.shape[-2:]), w, detail)


def add_weighted(up, w, detail):
    """up + w * detail, pixel by pixel. w: [B, D, 1, 1], the others [B, D, H, W]."""
    rows = []
    for i in range(up.shape[-2]):
        row = []
        for j in range(up.shape[-1]):
            row.append(up[:, :, i, j] + w[:, :, 0, 0] * detail[:, :, i, j])     # (I)
        rows.append(row)
    return stack(rows)


def decode(features, network):
    """From the deepest map upwards. features: (res2, ..., res5) -> [B, D, H, W] of res2's size."""
    y = fpa(features[-1], network.fpa)
    for number, module in enumerate(network.gaus):
        y = gau(y, features[-2 - number], module)                       # (J)
    return y


def classify(y, head, size):
    """Scores at a quarter of the size, enlarged last. [B, D, h, w] -> [B, classes, H, W]."""
    return enlarge(sum_taps(y, head), size)                             # (K)


# ------------------------------------------------------------------ other readings: readings.py


def partial_fpa(x, module):
    """What readings.PartialFPA computes. [B, C, H, W] -> [B, D, H, W]."""
    f = convolve(x, module.master)
    if module.attention == "pyramid":
        f = f * pyramid(x, module)
    elif module.attention == "se":
        f = f * factors(f, module)
    return f if module.pooled is None else f + convolve(mean(x), module.pooled)


def factors(m, module):
    """Squeeze-and-excitation: one factor per channel. [B, D, H, W] -> [B, D, 1, 1]."""
    pooled = mean(m)[:, :, 0, 0]
    hidden = []
    for weight, bias in zip(module.squeeze.weight, module.squeeze.bias, strict=True):
        score = sum(weight[c] * pooled[:, c] for c in range(len(weight))) + bias
        hidden.append(score.clamp(min=0))
    channels = []
    for weight, bias in zip(module.excite.weight, module.excite.bias, strict=True):
        score = sum(weight[c] * hidden[c] for c in range(len(weight))) + bias
        channels.append(1 / (1 + torch.exp(-score)))                    # (M)
    return torch.stack(channels, dim=1)[:, :, None, None]


def positions(y, size, module):
    """The spatial gate: one weight per position. [B, D, h, w] -> [B, 1, H, W]."""
    return 1 / (1 + torch.exp(-enlarge(sum_taps(y, module.spatial), size)))     # (L)


def gated_gau(y, low, module):
    """What readings.GatedGAU computes. [B, D, h, w], [B, C, H, W] -> [B, D, H, W]."""
    detail = convolve(low, module.low)
    if module.spatial is not None:
        detail = positions(y, low.shape[-2:], module) * detail
    up = enlarge(y, low.shape[-2:])
    w = torch.ones_like(up[:, :, :1, :1])
    if module.channel is not None:
        w = convolve(mean(y), module.channel)
    return add_weighted(up, w, detail)


def paint(x, module, size):
    """What readings.TransposedConvNorm computes. [B, C, h, w] -> [B, D, *size].

    y[o, 2 i + u - 1, 2 j + v - 1] gathers W[c, o, u, v] x[c, i, j]: every pixel paints 4 x 4
    pixels, over at least twice the size; what the finer map has less is cut after the norm.
    """
    weight = module.conv.weight
    height, width = (max(n, 2 * side) for n, side in zip(size, x.shape[-2:], strict=True))
    rows = [[x.new_zeros(x.shape[0], weight.shape[1])] * width for _ in range(height)]
    for i in range(x.shape[-2]):
        for j in range(x.shape[-1]):
            for u in range(4):
                for v in range(4):
                    m, n = 2 * i + u - 1, 2 * j + v - 1
                    if 0 <= m < height and 0 <= n < width:
                        rows[m][n] = rows[m][n] + x[:, :, i, j] @ weight[:, :, u, v]  # sum over c
    y = activate(normalise(stack(rows), module.bn), module.activation)
    return y[:, :, : size[0], : size[1]]


def jw_pyramid(x, module):
    """The attention maps of readings.JwFPA. [B, C, H, W] -> the same shape."""
    x1 = convolve(x, module.down1)
    x2 = convolve(x1, module.down2)
    a3 = convolve(convolve(x2, module.down3), module.side3)
    a2 = (convolve(x2, module.side2) + paint(a3, module.up3, x2.shape[-2:])).clamp(min=0)
    a1 = (convolve(x1, module.side1) + paint(a2, module.up2, x1.shape[-2:])).clamp(min=0)
    return paint(a1, module.up1, x.shape[-2:])


def jw_fpa(x, module):
    """What readings.JwFPA computes. [B, C, H, W] -> the same shape."""
    f = convolve(x, module.master)
    if module.attention:
        f = f * jw_pyramid(x, module)
    if module.pooled is not None:
        f = f + convolve(mean(x), module.pooled)
    return f.clamp(min=0)


def jw_gau(y, low, module):
    """What readings.JwGAU computes. [B, high, h, w], [B, low, H, W] -> [B, low, H, W]."""
    up = paint(y, module.up, low.shape[-2:]) if module.enlarges else convolve(y, module.up)
    w = torch.ones_like(up[:, :, :1, :1])
    if module.channel is not None:
        w = convolve(mean(y), module.channel)
    return add_weighted(up, w, convolve(low, module.low)).clamp(min=0)


def jw_classify(y, head, size):
    """Scores at a quarter of the size, then the nearest one. [B, D, h, w] -> [B, classes, H, W]."""
    scores = sum_taps(y, head)
    (small_height, small_width), (height, width) = scores.shape[-2:], size
    rows = []
    for i in range(height):
        row = []
        for j in range(width):
            row.append(scores[:, :, i * small_height // height, j * small_width // width])
        rows.append(row)
    return stack(rows)


def note_pyramid(x, module):
    """The attention maps of readings.NoteFPA. [B, C, H, W] -> [B, D, H, W]."""
    x1 = convolve(x, module.down1)
    a2 = convolve(convolve(x1, module.down2), module.side2)
    a1 = convolve(x1, module.side1) + enlarge(a2, x1.shape[-2:])
    return enlarge(a1, x.shape[-2:])                                    # (N)


def note_fpa(x, module):
    """What readings.NoteFPA computes. [B, C, H, W] -> [B, D, H, W]."""
    m = convolve(x, module.master)
    if not module.context:
        return m
    return m * note_pyramid(x, module) + sum_taps(mean(x), module.pooled)
