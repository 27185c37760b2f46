"""The official forward of LRFormer, transcribed, with the weights of this folder's network.

Tokens [B, N, C] and maps [B, C, H, W] are views of one another wherever PyTorch allows it, nothing
is made contiguous, pooling reads the reshaped tokens, and the attention forms the matrix of scores.
"""

import torch
import torch.nn.functional as F

from ..model import grid


def as_tokens(x):
    """[B, C, H, W] -> [B, N, C]: the same numbers, transposed."""
    return x.flatten(2).transpose(1, 2)


def as_map(tokens, size):
    """[B, N, C] -> [B, C, H, W] with (H, W) = size: the same numbers, transposed."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *size)


def resize(x, size):
    """Bilinear, as everywhere in this network."""
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def official_attention(tokens, size, attention, convs, fused):
    """[B, N, C] -> [B, N, C]: five adaptive poolings, scores as a matrix unless `fused`."""
    x, heads = as_map(tokens, size), attention.heads
    pooled = F.adaptive_avg_pool2d(x, grid(size, attention.side))
    q = attention.query(as_tokens(pooled)).unflatten(2, (heads, -1)).transpose(1, 2)  # [B, h, m, d]
    levels = []
    for number, side in enumerate(attention.sides):
        z = F.adaptive_avg_pool2d(x, grid(size, side))
        levels.append(as_tokens(z + convs[number](z) if convs else z))
    kv = attention.key_value(attention.norm(torch.cat(levels, dim=1)))
    k, v = kv.unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)  # [B, h, n, d] each
    if fused:
        o = F.scaled_dot_product_attention(q, k, v)
    else:
        o = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
    o = attention.output(o.transpose(1, 2).flatten(2))
    return as_tokens(resize(as_map(o, pooled.shape[-2:]), size))


def official_feed_forward(tokens, size, ffn):
    """[B, N, C] -> [B, N, C], by way of maps."""
    u = as_map(tokens, size)
    u = F.gelu(F.conv2d(u, ffn.widen.weight[:, :, None, None], ffn.widen.bias))
    u = u + ffn.conv(u)
    return as_tokens(F.conv2d(u, ffn.narrow.weight[:, :, None, None], ffn.narrow.bias))


def official_norm(tokens, size, layer):
    """LayerNorm of tokens in the encoder, BatchNorm of a map in the decoder. [B, N, C], same."""
    if isinstance(layer, torch.nn.BatchNorm2d):
        return as_tokens(layer(as_map(tokens, size)))
    return F.layer_norm(tokens, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def official_block(x, size, block, convs, fused):
    """[B, N, C] -> [B, N, C]."""
    x = as_map(x, size)
    if block.pre_norm is not None:
        x = block.pre_norm(x)
    x = as_tokens(x + block.position(x))
    y = official_attention(official_norm(x, size, block.norm1), size, block.attention, convs, fused)
    x = x + (y if block.scale1 is None else block.scale1 * y)
    y = official_feed_forward(official_norm(x, size, block.norm2), size, block.feed_forward)
    return x + (y if block.scale2 is None else block.scale2 * y)


def official_scores(network, images, fused=False):
    """The official forward with the weights of `network`. [B, 3, H, W] -> [B, K, H/8, W/8]."""
    x, outputs, head = images, [], network.head
    for stage in network.backbone.stages:
        x = stage.embed(x)
        size = x.shape[-2:]
        x = official_norm(as_tokens(x), size, stage.norm)
        for block in stage.blocks:
            x = official_block(x, size, block, stage.convs, fused)
        x = as_map(x, size)
        outputs.append(x)
    size = outputs[1].shape[-2:]
    c2, c3, c4 = outputs[1], *(resize(c, size) for c in outputs[2:])
    p = head.bn1(head.squeeze1(torch.cat([c2, c3, c4], dim=1))).relu()
    p = as_map(official_block(as_tokens(p), size, head.fuse1, (), fused), size)
    p = head.bn2(head.squeeze2(torch.cat([p, c4], dim=1))).relu()
    p = as_map(official_block(as_tokens(p), size, head.fuse2, (), fused), size)
    return head.classifier(head.dropout(p))
