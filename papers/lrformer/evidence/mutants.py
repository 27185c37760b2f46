"""Mistakes that people make with this paper. `make mutants` plants them one by one in a copy of the repository and
reports whether the tests of this folder notice.

(what, old text, new text): `old` occurs exactly once in model.py.
"""

MUTANTS = [
    (
        "grid: Python's rounding alone, half to even",
        "round(width * side / height + 0.001)",
        "round(width * side / height)",
    ),
    ("grid: rounded down", "round(height * side / width + 0.001)", "int(height * side / width)"),
    (
        "a square grid on maps that are not square",
        "    if width >= height:\n",
        "    if True:\n        return side, side\n",
    ),
    ("the long side fixed instead of the short one", "if width >= height:", "if width < height:"),
    ("pyramid sides rounded half to even", "round(t * side / 16 + 0.001)", "round(t * side / 16)"),
    ("pyramid fixed whatever the query grid", "round(t * side / 16 + 0.001)", "t"),
    ("pyramid in another order", "PYRAMID = (11, 8, 6, 4)", "PYRAMID = (4, 6, 8, 11)"),
    ("bins end at the floor", "-(-(i + 1) * size // n)", "(i + 1) * size // n"),
    ("enlarged with align_corners=True", "align_corners=False)  # Eq. (7)", "align_corners=True)  # Eq. (7)"),
    ("enlarged by repeating the nearest cell", 'size, mode="bilinear", align_corners=False)', 'size, mode="nearest")'),
    ("eps of the token norm like that of the other norms", "eps=1e-5", "eps=1e-6"),
    ("eps of the block norms like that of the tokens", "eps=1e-6", "eps=1e-5"),
    (
        "keys and values exchanged",
        "return attention.key_value(attention.norm(tokens)).chunk(2, dim=-1)",
        "return attention.key_value(attention.norm(tokens)).chunk(2, dim=-1)[::-1]",
    ),
    ("tokens not normalised", "attention.key_value(attention.norm(tokens))", "attention.key_value(tokens)"),
    ("no residual around the pyramid's convolutions", "maps = [z + conv(z) for", "maps = [conv(z) for"),
    (
        "every level gets the first convolution",
        "maps = [z + conv(z) for z, conv",
        "maps = [z + convs[0](z) for z, conv",
    ),
    (
        "a set of pyramid convolutions for each block",
        "for _ in PYRAMID if context",
        "for _ in PYRAMID * len(blocks) if context",
    ),
    (
        "heads interleaved instead of side by side",
        "t.unflatten(2, (heads, -1)).transpose(1, 2)",
        "t.unflatten(2, (-1, heads)).permute(0, 3, 1, 2)",
    ),
    (
        "scores divided by the root of all channels",
        "scaled_dot_product_attention(q, k, v)",
        "scaled_dot_product_attention(q, k, v, scale=(heads * q.shape[-1]) ** -0.5)",
    ),
    ("queries not pooled", "    if cells[0] % size[0] == 0 and", "    if True or"),
    (
        "short cut taken where the grid is no whole multiple",
        "cells[0] % size[0] == 0 and cells[1] % size[1] == 0",
        "cells[0] >= size[0] and cells[1] >= size[1]",
    ),
    (
        "residual added at low resolution",
        "    o = attention.output(o)  # [B, m, C]",
        "    o = attention.output(o) + maps[0].flatten(2).transpose(1, 2)  # [B, m, C]",
    ),
    ("output projection left out", "    o = attention.output(o)  # [B, m, C]", "    pass"),
    ("layer scale of the attention left out", "        o = scale * o\n", "        pass\n"),
    (
        "GELU in its tanh form",
        "F.gelu(at_each_position(ffn.widen, x))",
        'F.gelu(at_each_position(ffn.widen, x), approximate="tanh")',
    ),
    (
        "an activation behind the feed-forward convolution",
        "    u = add_depthwise(u, ffn.conv)\n",
        "    u = F.gelu(add_depthwise(u, ffn.conv))\n",
    ),
    ("no residual around the feed-forward convolution", "middle[:, :, 1, 1] = 1", "middle[:, :, 1, 1] = 0"),
    ("layer scale not applied to the bias", "scale[:, None] * weight, scale * bias", "scale[:, None] * weight, bias"),
    ("strips without the row above", "above = min(first, 1)", "above = 0"),
    ("strips without the row below", "first + rows + 1], ffn", "first + rows], ffn"),
    ("no position encoding", "    x = x + module.position(x)\n", ""),
    ("XL's extra norm inside a residual", "x = module.pre_norm(x)", "x = x + module.pre_norm(x)"),
    ("XL's extra norm in other blocks", "j in (7, 15)", "j in (8, 16)"),
    ("drop path not divided by the probability to keep", ".to(y.dtype) / keep", ".to(y.dtype)"),
    ("drop path per batch", "torch.rand(len(y), 1, 1, 1", "torch.rand(1, 1, 1, 1"),
    ("drop path the same in all blocks", "rates[sum(depths[:i]) + j]", "drop_path"),
    ("layer scale in the wrong stages", "layer_scale if i >= 2 else None", "layer_scale if i < 2 else None"),
    (
        "pyramid convolutions in the decoder too",
        "x = x + drop_path(module.attention(module.norm1(x), convs, module.scale1), module)",
        "x = x + drop_path(module.attention(module.norm1(x), convs or [module.position] * 4, module.scale1), module)",
    ),
    ("c3 and c4 exchanged", "((c3, first[1]), (c4, first[2]))", "((c4, first[1]), (c3, first[2]))"),
    (
        "second squeeze: c4 before the fused map",
        "second = decoder.squeeze2.weight.split([decoder.bn1.num_features, widths[-1]], dim=1)",
        "second = decoder.squeeze2.weight.split([widths[-1], decoder.bn1.num_features], dim=1)[::-1]",
    ),
    ("no ReLU in the first squeeze", "decoder.fuse1(decoder.bn1(p).relu())", "decoder.fuse1(decoder.bn1(p))"),
    (
        "second attention of the decoder left out",
        "p = decoder.fuse2(decoder.bn2(p).relu())",
        "p = decoder.bn2(p).relu()",
    ),
    ("four heads in the decoder", "dict(heads=8,", "dict(heads=4,"),
    ("no norm behind the embedding", "x = self.norm(self.embed(x))", "x = self.embed(x)"),
    ("decoder fed with the first stages", "self.backbone(images)[1:]", "self.backbone(images)[:3]"),
    (
        "scores left at stride 8",
        'return {"out": enlarge(self.scores(images), size)}',
        'return {"out": self.scores(images)}',
    ),
    (
        "loss over the valid pixels although all are asked for",
        "return total / label.numel()",
        "return total / (label != IGNORE).sum()",
    ),
    (
        "`context=False` keeps the attention",
        "Attention(channels, heads, side) if context else None",
        "Attention(channels, heads, side)",
    ),
]
