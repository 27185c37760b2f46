"""The official forward of PSANet, transcribed, with the weights of this folder's network.

The authors' compiled kernel, psamask, copies the windows of the over-complete map into [B, N, H,
W]; here the copy is PyTorch's. All else is as they call it: 1x1 convolution, softmax over the
sources, product of matrices, bilinear resizing both ways, the whole 3x3 classifier.
"""

import torch
import torch.nn.functional as F


def official_attention(direction, q, table, v):
    """q: [B, C, H, W], table: [(2H-1)(2W-1), C], v: [B, D, H, W] -> [B, D, H, W].

    Pixels are listed in reverse, so that the windows are a view with positive strides, which
    `reshape` copies.
    """
    batch, _, height, width = q.shape
    pixels, columns = height * width, 2 * width - 1
    h = F.conv2d(q.flip(2, 3), table[:, :, None, None]).contiguous()
    strides = (h.stride(0), columns * pixels, pixels, columns * pixels + width, pixels + 1)
    p = h.as_strided((batch, height, width, height, width), strides)  # [B, others, owners]
    if direction == "collect":
        attention = p.reshape(batch, pixels, pixels).softmax(1)
        return (v.flatten(2) @ attention).flip(2).view_as(v)
    attention = p.permute(0, 3, 4, 1, 2).reshape(batch, pixels, pixels).softmax(1)
    return (v.flatten(2).flip(2) @ attention).view_as(v)


def resize(x, size):
    """Bilinear, corners onto corners."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def official_scores(network, images):
    """What `network` answers to images of 1 + 8 s k pixels a side, without its last enlargement.
    [B, 3, H, W] -> [B, K, (H-1)/8+1, (W-1)/8+1]."""
    x, psa, parts = network.backbone(images)[-1], network.psa, []
    size = [(side - 1) // psa.shrink_factor + 1 for side in x.shape[-2:]]
    for branch in psa.branches:
        v = resize(branch.reduce(x), size)
        parts.append(official_attention(branch.direction, branch.query(v), branch.table, v))
    context = resize(psa.project(torch.cat(parts, dim=1)), x.shape[-2:])
    return network.classifier(torch.cat([x, context], dim=1))
