"""Feature Pyramid Attention and Global Attention Upsample exactly as their equations read: Python loops over
pixels, no tricks.

Made to be read beside paper.md and to be wrong nowhere; hopelessly slow on purpose. model.py holds the fast form of
every function below under the same name, with the same arguments and the same results. A `block` is a module of
model.py of which only the weights and the options are used, never the code.

Index arithmetic is done in integers. Tensors only hold the numbers (and carry the gradients).
"""

import torch


def stack(rows):
    """Nested lists [H][W] of tensors [B, C] -> one tensor [B, C, H, W]."""
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def normalise(x, block):
    """BatchNorm and activation of a block. x: [B, D, H, W] -> the same shape.

    In training the statistics are those of this batch (the running ones are left alone), else the running ones.
    """
    bn, channels = block.bn, []
    for o in range(x.shape[1]):
        if bn.training:
            values = x[:, o]  # of the whole batch
            mean = values.sum() / values.numel()
            variance = ((values - mean) ** 2).sum() / values.numel()
        else:
            mean, variance = bn.running_mean[o], bn.running_var[o]
        y = (x[:, o] - mean) / (variance + bn.eps) ** 0.5 * bn.weight[o] + bn.bias[o]
        if block.activation == "relu":
            y = y.clamp(min=0)
        elif block.activation == "sigmoid":
            y = 1 / (1 + torch.exp(-y))
        channels.append(y)
    return torch.stack(channels, dim=1)


def convolve(x, block):
    """Convolution, BatchNorm, activation. x: [B, C, H, W] -> [B, D, H / stride, W / stride], rounded up."""
    return normalise(sum_taps(x, block.conv), block)


def sum_taps(x, conv):
    """y[o, i, j] = sum over c, u, v of W[o, c, u, v] x[c, stride i + u - p, stride j + v - p] (+ bias); what lies
    outside the map counts as zero. x: [B, C, H, W] -> [B, D, H / stride, W / stride], rounded up."""
    (height, width), (kernel, _), (pad, _), (stride, _) = x.shape[-2:], conv.kernel_size, conv.padding, conv.stride
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


def sum_transposed(x, conv, height, width):
    """y[o, 2 i + u - 1, 2 j + v - 1] gathers W[c, o, u, v] x[c, i, j]: every pixel paints 4 x 4 pixels.
    x: [B, C, h, w] -> [B, D, height, width]."""
    rows = [[x.new_zeros(x.shape[0], conv.weight.shape[1])] * width for _ in range(height)]
    for i in range(x.shape[-2]):
        for j in range(x.shape[-1]):
            for u in range(4):
                for v in range(4):
                    m, n = 2 * i + u - 1, 2 * j + v - 1
                    if 0 <= m < height and 0 <= n < width:
                        rows[m][n] = rows[m][n] + x[:, :, i, j] @ conv.weight[:, :, u, v]  # the sum over c
    return stack(rows)


def pool(x, reduction="avg"):
    """P: half the size. x: [B, C, H, W] -> [B, C, H // 2, W // 2], but a side of 1 stays 1.

    reduction: "avg", "max", or "stride" for nothing at all: the next convolution then has stride 2.
    """
    if reduction == "stride":
        return x
    height, width = x.shape[-2:]
    tall, wide = min(2, height), min(2, width)  # of one window
    rows = []
    for i in range(height // tall):
        row = []
        for j in range(width // wide):
            pixels = [x[:, :, tall * i + u, wide * j + v] for u in range(tall) for v in range(wide)]
            row.append(sum(pixels) / len(pixels) if reduction == "avg" else torch.stack(pixels).amax(0))
        rows.append(row)
    return stack(rows)


def bilinear_taps(i, small, large):
    """Where pixel i of `large` lies among `small` ones, corners on corners: [(pixel, weight), (pixel, weight)]."""
    a, rest = divmod(i * (small - 1), large - 1) if large > 1 else (0, 0)
    t = rest / (large - 1) if large > 1 else 0.0
    return [(a, 1 - t), (min(a + 1, small - 1), t)]


def enlarge(x, size, block=None):
    """To the size of a finer map. x: [B, C, h, w] -> [B, C, H, W] with (H, W) = size; with a block learned:
    [B, D, H, W], normalised over at least twice the size and cut where the finer map is smaller."""
    height, width = size
    if block is not None and isinstance(block.conv, torch.nn.ConvTranspose2d):
        painted = sum_transposed(x, block.conv, max(height, 2 * x.shape[-2]), max(width, 2 * x.shape[-1]))
        return normalise(painted, block)[:, :, :height, :width]
    if block is not None:
        return convolve(x, block)
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
    """GAP: the mean over all positions. x: [B, C, H, W] -> [B, C, 1, 1]."""
    height, width = x.shape[-2:]
    total = sum(x[:, :, i, j] for i in range(height) for j in range(width))
    return (total / (height * width))[:, :, None, None]


def project_mean(x, block):
    """Global average pooling, then a 1x1 block. x: [B, C, H, W] -> [B, D, 1, 1]."""
    return convolve(mean(x), block)


def pyramid(x, block):
    """Eq. (1) to (3): the attention map A. x: [B, C, H, W] -> [B, K, H, W], neither squashed nor normalised."""
    d1 = convolve(pool(x, block.pool), block.down1)
    d2 = convolve(pool(d1, block.pool), block.down2)
    d3 = convolve(pool(d2, block.pool), block.down3)  # Eq. (1)
    a3 = convolve(d3, block.side3)  # Eq. (2)
    a2 = after_sum(convolve(d2, block.side2) + enlarge(a3, d2.shape[-2:], block.up3), block)
    a1 = after_sum(convolve(d1, block.side1) + enlarge(a2, d1.shape[-2:], block.up2), block)
    return enlarge(a1, x.shape[-2:], block.up1)  # Eq. (3)


def after_sum(x, block):
    """The place of the ReLU: behind every convolution (then nothing happens here) or behind the sums."""
    return x.clamp(min=0) if block.relu == "sums" else x


def squeeze_excite(m, block):
    """Eq. (13): the paper's rival of the pyramid, one factor per channel. m: [B, D, H, W] -> the same shape."""
    pooled = mean(m)[:, :, 0, 0]
    hidden = []
    for weight, bias in zip(block.squeeze.weight, block.squeeze.bias):
        hidden.append((sum(weight[c] * pooled[:, c] for c in range(len(weight))) + bias).clamp(min=0))
    channels = []
    for o, (weight, bias) in enumerate(zip(block.excite.weight, block.excite.bias)):
        score = sum(weight[c] * hidden[c] for c in range(len(weight))) + bias
        channels.append(m[:, o] * (1 / (1 + torch.exp(-score)))[:, None, None])  # Eq. (13)
    return torch.stack(channels, dim=1)


def fpa(x, block):
    """Eq. (4) to (6): Feature Pyramid Attention. x: [B, C, H, W] -> [B, D, H, W]."""
    m = convolve(x, block.master)  # Eq. (4)
    a = pyramid(x, block) if block.attention == "pyramid" else torch.ones_like(m)
    if block.attention == "se":
        m = squeeze_excite(m, block)
    g = torch.zeros_like(m[:, :, :1, :1]) if block.pooled is None else project_mean(x, block.pooled)  # Eq. (5)
    rows = []
    for i in range(m.shape[-2]):
        row = []
        for j in range(m.shape[-1]):
            row.append(m[:, :, i, j] * a[:, :, i, j] + g[:, :, 0, 0])  # Eq. (6); a has 1 or D channels
        rows.append(row)
    return after_sum(stack(rows), block)


def channel_gate(high, block):
    """Eq. (7): one weight per channel. high: [B, D, h, w] -> w [B, D, 1, 1]."""
    return project_mean(high, block.channel)  # Eq. (7)


def spatial_gate(high, size, block):
    """Eq. (12): one weight per position. high: [B, D, h, w] -> s [B, 1, H, W] with (H, W) = size."""
    return 1 / (1 + torch.exp(-enlarge(sum_taps(high, block.spatial), size)))  # Eq. (12)


def gau(high, low, block):
    """Eq. (8) and (9): Global Attention Upsample. high: Y [B, D, h, w], low: L [B, C, H, W] -> [B, D, H, W]."""
    height, width = low.shape[-2:]
    detail = convolve(low, block.low)  # Eq. (8)
    up = enlarge(high, (height, width), block.up)
    w = torch.ones_like(up[:, :, :1, :1]) if block.channel is None else channel_gate(high, block)
    s = torch.ones_like(up[:, :1]) if block.spatial is None else spatial_gate(high, (height, width), block)
    rows = []
    for i in range(height):
        row = []
        for j in range(width):
            row.append(up[:, :, i, j] + w[:, :, 0, 0] * s[:, :, i, j] * detail[:, :, i, j])  # Eq. (9)
        rows.append(row)
    return after_sum(stack(rows), block)


def decode(features, fpa_block, gau_blocks):
    """Eq. (10): from the deepest map upwards. features: (res2, ..., res5), finest first; gau_blocks: coarsest
    first. Returns [B, D, H, W] of the size of res2."""
    y = fpa(features[-1], fpa_block)
    for number, block in enumerate(gau_blocks):
        y = gau(y, features[-2 - number], block)  # Eq. (10)
    return y


def classify(y, head, size, interpolation="bilinear"):
    """Eq. (11): scores at a quarter of the size, enlarged last. y: [B, D, h, w] -> [B, classes, H, W].

    interpolation: "bilinear" (corners on corners) or "nearest".
    """
    scores = sum_taps(y, head)
    if interpolation == "bilinear":
        return enlarge(scores, size)  # Eq. (11)
    (small_height, small_width), (height, width) = scores.shape[-2:], size
    rows = []
    for i in range(height):
        rows.append([scores[:, :, i * small_height // height, j * small_width // width] for j in range(width)])
    return stack(rows)
