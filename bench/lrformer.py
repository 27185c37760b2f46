"""What low-resolution self-attention costs, against full attention and against the official code's way of writing it.

  python -m bench.lrformer              all tables (about ten minutes, mostly full attention at 1024 px)
  python -m bench.lrformer attention    attention module and block at stages 1 to 4, against full attention
  python -m bench.lrformer network      LRFormer-T and its steps, against the official forward: time and memory
  python -m bench.lrformer counts       parameters and multiply-adds; no timing

One thread, float32, batch 1, inference. Candidates take turns; medians and their ratios are printed.
"""

import statistics
import sys

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench.measure import peak_memory, times
from papers.lrformer import model as lrformer

# ------------------------------------------------------------------------ the official forward, transcribed


def official_attention(x, attention, convs, explicit=True):
    """x: [B, H, W, C] -> [B, H, W, C]: five adaptive poolings, scores as an explicit matrix."""
    b, h, w, c = x.shape
    x = x.permute(0, 3, 1, 2).contiguous()
    pooled = F.adaptive_avg_pool2d(x, lrformer.grid((h, w), attention.side))
    q = attention.query(pooled.flatten(2).transpose(1, 2).contiguous())
    q = q.reshape(b, -1, attention.heads, c // attention.heads).permute(0, 2, 1, 3).contiguous()
    pools = []
    for level, side in enumerate(attention.sides):
        z = F.adaptive_avg_pool2d(x, lrformer.grid((h, w), side))
        pools.append((z + convs[level](z) if convs else z).flatten(2))
    tokens = attention.norm(torch.cat(pools, dim=2).permute(0, 2, 1).contiguous())
    kv = attention.key_value(tokens).reshape(b, -1, 2, attention.heads, c // attention.heads)
    k, v = kv.permute(2, 0, 3, 1, 4).contiguous()
    if explicit:
        weights = (q @ k.transpose(-2, -1) * (c // attention.heads) ** -0.5).softmax(dim=-1)
        o = weights @ v
    else:
        o = F.scaled_dot_product_attention(q, k, v)
    o = attention.output(o.transpose(1, 2).contiguous().reshape(b, -1, c))
    o = o.transpose(1, 2).reshape(b, c, *pooled.shape[-2:])
    o = F.interpolate(o, (h, w), mode="bilinear", align_corners=False)
    return o.permute(0, 2, 3, 1).contiguous()


def official_feed_forward(x, ffn):
    """x: [B, H, W, C] -> [B, H, W, C], by way of contiguous [B, C, H, W]."""
    x = x.permute(0, 3, 1, 2).contiguous()
    u = F.gelu(F.conv2d(x, ffn.widen.weight[:, :, None, None], ffn.widen.bias))
    u = u + ffn.conv(u)
    u = F.conv2d(u, ffn.narrow.weight[:, :, None, None], ffn.narrow.bias)
    return u.permute(0, 2, 3, 1).contiguous()


def official_block(x, block, convs):
    """x: [B, C, H, W], contiguous -> [B, C, H, W]."""
    if block.pre_norm is not None:
        x = block.pre_norm(x)
    x = x + block.position(x)
    x = x.permute(0, 2, 3, 1).contiguous()

    def norm(layer):
        if isinstance(layer, torch.nn.BatchNorm2d):
            return layer(x.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1).contiguous()
        return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)

    y = official_attention(norm(block.norm1), block.attention, convs)
    x = x + (y if block.scale1 is None else block.scale1 * y)
    y = official_feed_forward(norm(block.norm2), block.feed_forward)
    x = x + (y if block.scale2 is None else block.scale2 * y)
    return x.permute(0, 3, 1, 2).contiguous()


def official_scores(network, images):
    """The official forward with the weights of `network`. [B, 3, H, W] -> [B, K, H/8, W/8]."""
    x, outputs = images, []
    for stage in network.backbone.stages:
        x = stage.embed(x).permute(0, 2, 3, 1).contiguous()
        x = F.layer_norm(x, x.shape[-1:], stage.norm.weight, stage.norm.bias, stage.norm.eps)
        x = x.permute(0, 3, 1, 2).contiguous()
        for block in stage.blocks:
            x = official_block(x, block, stage.convs)
        outputs.append(x)
    c2, c3, c4 = outputs[1:]
    c3, c4 = (F.interpolate(c, c2.shape[-2:], mode="bilinear", align_corners=False) for c in (c3, c4))
    head = network.head
    p = head.bn1(head.squeeze1(torch.cat([c2, c3, c4], dim=1))).relu()
    p = official_block(p, head.fuse1, ())
    p = head.bn2(head.squeeze2(torch.cat([p, c4], dim=1))).relu()
    p = official_block(p, head.fuse2, ())
    return head.classifier(head.dropout(p))


# ------------------------------------------------------------------------ full attention in the same block


def full_attention(x, attention, convs=(), scale=None):
    """Ordinary self-attention among all positions with the weights of `attention`, PyTorch's fused kernel."""
    size = x.shape[-2:]
    tokens = x.permute(0, 2, 3, 1).flatten(1, 2)  # [B, N, C]
    k, v = attention.key_value(attention.norm(tokens)).chunk(2, dim=-1)
    o = attention.output(lrformer.attend(attention.query(tokens), k, v, attention.heads))
    return (o if scale is None else scale * o).unflatten(1, size).permute(0, 3, 1, 2)


def full_block(x, block):
    """A block whose attention looks at all positions. x: [B, C, H, W], same shape."""
    x = x + block.position(x)
    x = x + full_attention(block.norm1(x), block.attention, (), block.scale1)
    return x + block.feed_forward(block.norm2(x), block.scale2)
