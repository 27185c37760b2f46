"""What low-resolution self-attention costs, against full attention and against the official code's
way of writing it.

  python -m papers.lrformer.evidence.cost            all tables (a quarter of an hour)
  python -m papers.lrformer.evidence.cost attention  module and block of LRFormer-T against full
  python -m papers.lrformer.evidence.cost network    LRFormer-T against the official forward
  python -m papers.lrformer.evidence.cost steps      each short cut against what it replaces
  python -m papers.lrformer.evidence.cost counts     parameters and multiply-adds; no timing

One thread, float32, one image, inference. Candidates take turns; medians and ratios between medians
are printed.
"""

import copy
import sys

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from .. import fast
from .. import model as lrformer

from studies.measure import peak_memory, times

SIZES = 256, 512, 1024  # side of the image

# ------------------------------------------------------------------------ the official forward,
# transcribed


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


def official_block(x, block, convs, explicit=True):
    """x: [B, C, H, W], contiguous -> [B, C, H, W]."""
    if block.pre_norm is not None:
        x = block.pre_norm(x)
    x = x + block.position(x)
    x = x.permute(0, 2, 3, 1).contiguous()

    def norm(layer):
        if isinstance(layer, torch.nn.BatchNorm2d):
            return layer(x.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1).contiguous()
        return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)

    y = official_attention(norm(block.norm1), block.attention, convs, explicit)
    x = x + (y if block.scale1 is None else block.scale1 * y)
    y = official_feed_forward(norm(block.norm2), block.feed_forward)
    x = x + (y if block.scale2 is None else block.scale2 * y)
    return x.permute(0, 3, 1, 2).contiguous()


def official_scores(network, images, explicit=True):
    """The official forward with the weights of `network`. [B, 3, H, W] -> [B, K, H/8, W/8]."""
    x, outputs = images, []
    for stage in network.backbone.stages:
        x = stage.embed(x).permute(0, 2, 3, 1).contiguous()
        x = F.layer_norm(x, x.shape[-1:], stage.norm.weight, stage.norm.bias, stage.norm.eps)
        x = x.permute(0, 3, 1, 2).contiguous()
        for block in stage.blocks:
            x = official_block(x, block, stage.convs, explicit)
        outputs.append(x)
    c2, c3, c4 = outputs[1:]
    c3, c4 = (
        F.interpolate(c, c2.shape[-2:], mode="bilinear", align_corners=False) for c in (c3, c4)
    )
    head = network.head
    p = head.bn1(head.squeeze1(torch.cat([c2, c3, c4], dim=1))).relu()
    p = official_block(p, head.fuse1, (), explicit)
    p = head.bn2(head.squeeze2(torch.cat([p, c4], dim=1))).relu()
    p = official_block(p, head.fuse2, (), explicit)
    return head.classifier(head.dropout(p))


# ------------------------------------------------------------------------ full attention in the
# same block


def full_attention(x, attention):
    """Ordinary self-attention among all positions with the weights of `attention`, PyTorch's fused
    kernel."""
    size = x.shape[-2:]
    tokens = lrformer.as_tokens(x)  # [B, N, C]
    k, v = attention.key_value(attention.norm(tokens)).chunk(2, dim=-1)
    q, k, v = (lrformer.by_head(t, attention.heads) for t in (attention.query(tokens), k, v))
    o = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return lrformer.as_map(attention.output(o), size)


def full_block(x, block):
    """A block whose attention looks at all positions. x: [B, C, H, W], same shape."""
    x = x + block.position(x)
    x = x + lrformer.scaled(full_attention(block.norm1(x), block.attention), block.scale1)
    return x + lrformer.scaled(block.feed_forward(block.norm2(x)), block.scale2)


# ------------------------------------------------------------------------ tables


def maps(*sizes):
    """`map_of` for several sizes."""
    return [map_of(*size) for size in sizes]


def map_of(channels, side):
    """A random map in the memory layout of the network."""
    return torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)


def attention():
    """Attention module and whole block, low resolution against full, for square images of three
    sizes."""
    network = lrformer.build(19, "t").eval()
    print(
        "| image | stage | map | module: LRSA ms | full ms | full / LRSA | block: LRSA ms | full ms | full / LRSA |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for size in SIZES:
        for number, stage in enumerate(network.backbone.stages, 1):
            block, side = stage.blocks[0], size >> (number + 1)
            x = map_of(block.position.in_channels, side)
            seconds = times(
                {
                    "module": lambda: block.attention(x, stage.convs),
                    "module, full": lambda: full_attention(x, block.attention),
                    "block": lambda: block(x, stage.convs),
                    "block, full": lambda: full_block(x, block),
                },
                rounds=3 if side > 128 else 5,
            )
            low, full, block_low, block_full = seconds.values()
            print(
                f"| {size} px | {number} | {side} x {side} | {low * 1e3:.1f} | {full * 1e3:.1f} | {full / low:.1f}x "
                f"| {block_low * 1e3:.1f} | {block_full * 1e3:.1f} | {block_full / block_low:.1f}x |",
                flush=True,
            )


def forms(network, images):
    """{name: function}: LRFormer-T's scores at stride 8 in three forms."""
    return {
        "official": lambda: official_scores(network, images),
        "official, fused attention": lambda: official_scores(network, images, explicit=False),
        "ours": lambda: network.scores(images),
    }


def make_form(name, size):
    """A function that runs one of `forms` at this image size; for measuring memory in a process of
    its own."""
    torch.manual_seed(0)
    network, images = lrformer.build(150, "t").eval(), torch.randn(1, 3, size, size)
    forms(network, torch.randn(1, 3, 64, 64))[name]()  # libraries allocate on first use

    def run():
        with torch.inference_mode():
            return forms(network, images)[name]()

    return run


def network():
    """The whole LRFormer-T: agreement, time, memory."""
    model = lrformer.build(150, "t", layer_scale=1.0).eval()
    print(
        "| image | form | ms | official / form | extra peak memory, MiB | largest difference / std of the scores |"
    )
    print("|---|---|---|---|---|---|")
    for size in SIZES[1:]:
        images = torch.randn(1, 3, size, size)
        candidates = forms(model, images)
        reference = candidates["official"]()
        seconds = times(candidates, rounds=5)
        for name, function in candidates.items():
            error = ((function() - reference).abs().max() / reference.std()).item()
            print(
                f"| {size} px | {name} | {seconds[name] * 1e3:.0f} | {seconds['official'] / seconds[name]:.2f}x "
                f"| {peak_memory(make_form, name, size):.0f} | {error:.0e} |",
                flush=True,
            )


def steps():
    """Each short cut of fast.py against the plain form it replaces, LRFormer-T at 512 px."""
    network = lrformer.build(150, "t").eval()
    stage, last, head = network.backbone.stages[0], network.backbone.stages[3], network.head
    ffn, deep = stage.blocks[0].feed_forward, last.blocks[0].attention
    x, small = maps((48, 128), (384, 16))
    plain = copy.deepcopy(deep)
    plain.fast = False
    grids = [lrformer.grid((128, 128), side) for side in (16, *deep.sides)]
    features = maps((96, 64), (240, 32), (384, 16))
    pairs = {
        "pooling, stage 1": (
            lambda: [lrformer.pool(x, cells) for cells in grids], lambda: fast.pool_all(x, grids)
        ),
        "attention, stage 4": (lambda: plain(small, last.convs), lambda: deep(small, last.convs)),
        "feed-forward in strips, stage 1": (
            lambda: fast.all_rows(x, ffn), lambda: fast.feed_forward(x, ffn)
        ),
        "squeeze before enlarging": (
            lambda: lrformer.enlarge_and_squeeze(features, head.squeeze1),
            lambda: fast.squeeze(features, head.squeeze1),
        ),
    }
    print("| step | plain ms | short cut ms | plain / short cut |")
    print("|---|---|---|---|")
    for name, (plain, short) in pairs.items():
        a, b = times({"plain": plain, "short": short}, rounds=9).values()
        print(f"| {name} | {a * 1e3:.1f} | {b * 1e3:.1f} | {a / b:.1f}x |", flush=True)


def multiply_adds(function):
    """(total, {module: count}) in G: convolutions and matrix products only, half of torch's count
    of operations."""
    with FlopCounterMode(display=False) as counter:
        function()
    per_module = {name: sum(ops.values()) / 2e9 for name, ops in counter.get_flop_counts().items()}
    return counter.get_total_flops() / 2e9, per_module


def counts():
    """Parameters, and multiply-adds of the official form and of ours, on the meta device: nothing
    is computed."""
    print(
        "| | parameters, 150 classes | encoder | decoder | 512 x 512: official G | ours G "
        "| 640 x 640: official G | 1024 x 2048, 19 classes: official G |"
    )
    print("|---|---|---|---|---|---|---|---|")
    kinds = ("embed", "position", "attention", "feed_forward")
    shares = {}
    with torch.device("meta"):
        for preset in ("t", "s", "b", "l"):
            model, roads = lrformer.build(150, preset).eval(), lrformer.build(19, preset).eval()
            encoder, decoder = (
                sum(p.numel() for p in part.parameters()) for part in (model.backbone, model.head)
            )
            images = {
                size: torch.empty(1, 3, *size) for size in ((512, 512), (640, 640), (1024, 2048))
            }
            official = [
                multiply_adds(lambda m=m, size=size: official_scores(m, images[size]))[0]
                for m, size in ((model, (512, 512)), (model, (640, 640)), (roads, (1024, 2048)))
            ]
            ours, modules = multiply_adds(lambda: model.scores(images[512, 512]))
            print(
                f"| {preset} | {encoder + decoder:,} | {encoder:,} | {decoder:,} | {official[0]:.2f} | {ours:.2f} "
                f"| {official[1]:.2f} | {official[2]:.2f} |",
                flush=True,
            )
            parts = dict.fromkeys(
                ((part, kind) for part in ("Encoder", "Decoder") for kind in kinds), 0
            )
            for name, value in modules.items():
                key = name.partition(".")[0], name.rpartition(".")[2]
                if key in parts:
                    parts[key] += value
            shares[preset] = [*parts.values(), ours - sum(parts.values())]
    print("\nOurs at 512 x 512, G multiply-adds by part:\n")
    print(
        "| | encoder: embeddings | position 3x3 | LRSA | feed-forward | decoder: position 3x3 | LRSA | feed-forward "
        "| squeezes, classifier |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for preset, values in shares.items():
        values = [
            value for index, value in enumerate(values) if index != 4
        ]  # the decoder embeds nothing
        print(f"| {preset} | " + " | ".join(f"{value:.2f}" for value in values) + " |")


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tables = {"counts": counts, "steps": steps, "network": network, "attention": attention}
    wanted = sys.argv[1:] or list(tables)
    for name in wanted:
        if name not in tables:
            sys.exit(f"unknown table {name!r}; valid: {', '.join(tables)}")
        if name == "counts":
            tables[name]()
        else:
            with torch.inference_mode():
                tables[name]()
        print()


if __name__ == "__main__":
    main()
