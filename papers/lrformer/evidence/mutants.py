"""Mistakes that people make with this paper. `make mutants` plants them one by one in a copy of the
repository and reports whether the tests of this folder notice.

{file: [(what, old text, new text), ...]}: `old` occurs exactly once in the file.
"""

MUTANTS = {
    "model.py": [
        (
            "grid: Python's rounding alone, half to even",
            "round(width * side / height + 0.001)",
            "round(width * side / height)",
        ),
        (
            "grid: rounded down",
            "round(height * side / width + 0.001)",
            "int(height * side / width)",
        ),
        (
            "a square grid on maps that are not square",
            "    if width >= height:\n",
            "    if True:\n        return side, side\n",
        ),
        (
            "the long side fixed instead of the short one",
            "if width >= height:",
            "if width < height:",
        ),
        (
            "pyramid sides rounded half to even",
            "round(t * side / 16 + 0.001)",
            "round(t * side / 16)",
        ),
        ("pyramid fixed whatever the query grid", "round(t * side / 16 + 0.001)", "t"),
        ("pyramid in another order", "PYRAMID = (11, 8, 6, 4)", "PYRAMID = (4, 6, 8, 11)"),
        (
            "pooled by the maximum",
            "F.adaptive_avg_pool2d(x, cells)",
            "F.adaptive_max_pool2d(x, cells)",
        ),
        (
            "enlarged with align_corners=True",
            'mode="bilinear", align_corners=False)',
            'mode="bilinear", align_corners=True)',
        ),
        (
            "enlarged by repeating the nearest cell",
            'size, mode="bilinear", align_corners=False)',
            'size, mode="nearest")',
        ),
        ("eps of the token norm like that of the other norms", "eps=1e-5", "eps=1e-6"),
        (
            "eps of the block norms like that of the tokens",
            "channels, eps=1e-6",
            "channels, eps=1e-5",
        ),
        (
            "keys and values exchanged",
            "return self.key_value(self.norm(tokens)).chunk(2, dim=-1)",
            "return self.key_value(self.norm(tokens)).chunk(2, dim=-1)[::-1]",
        ),
        ("tokens not normalised", "self.key_value(self.norm(tokens))", "self.key_value(tokens)"),
        (
            "no residual around the pyramid's convolutions",
            "levels = [z + conv(z) for",
            "levels = [conv(z) for",
        ),
        (
            "every level gets the first convolution",
            "levels = [z + conv(z) for z, conv",
            "levels = [z + convs[0](z) for z, conv",
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
            "/ q.shape[-1] ** 0.5, dim=-1)",
            "/ (self.heads * q.shape[-1]) ** 0.5, dim=-1)",
        ),
        ("softmax over the queries", "q.shape[-1] ** 0.5, dim=-1)", "q.shape[-1] ** 0.5, dim=-2)"),
        (
            "queries not pooled",
            "q = self.query(as_tokens(pool(x, cells)))",
            "q = self.query(as_tokens(pool(x, size)))\n        cells = size",
        ),
        (
            "residual added at low resolution",
            "o = self.output((a @ v).transpose(1, 2).flatten(2))",
            "o = self.output((a @ v).transpose(1, 2).flatten(2)) + as_tokens(pool(x, cells))",
        ),
        (
            "output projection left out",
            "o = self.output((a @ v).transpose(1, 2).flatten(2))",
            "o = (a @ v).transpose(1, 2).flatten(2)",
        ),
        (
            "gamma_1 left out",
            "self.drop(scaled(y, self.scale1))",
            "self.drop(y)",
        ),
        (
            "gamma_2 left out",
            "self.drop(scaled(y, self.scale2))",
            "self.drop(y)",
        ),
        (
            "GELU in its tanh form",
            "F.gelu(at_each_position(self.widen, x))",
            'F.gelu(at_each_position(self.widen, x), approximate="tanh")',
        ),
        (
            "an activation behind the feed-forward convolution",
            "u = u + self.conv(u)",
            "u = F.gelu(u + self.conv(u))",
        ),
        (
            "no residual around the feed-forward convolution",
            "u = u + self.conv(u)",
            "u = self.conv(u)",
        ),
        ("no position encoding", "x + self.position(x) ", "x "),
        (
            "position encoding without its residual",
            "else x + self.position(x)",
            "else self.position(x)",
        ),
        ("pre_norm inside a residual", "x = self.pre_norm(x)", "x = x + self.pre_norm(x)"),
        ("XL's extra norm in other blocks", "NORMED_BLOCKS = (7, 15)", "NORMED_BLOCKS = (8, 16)"),
        ("XL's extra norm in every size", "if i == 2 and depth > 20 else ()", "if i == 2 else ()"),
        ("drop path not divided by the probability to keep", ".to(y.dtype) / keep", ".to(y.dtype)"),
        ("drop path per batch", "torch.rand(len(y), 1, 1, 1", "torch.rand(1, 1, 1, 1"),
        ("drop path the same in all blocks", "rates[sum(depths[:i]) + j]", "drop_path"),
        (
            "drop path of the attention left out",
            "self.drop(scaled(y, self.scale1))",
            "scaled(y, self.scale1)",
        ),
        (
            "layer scale in the wrong stages",
            "layer_scale if i >= 2 else None",
            "layer_scale if i < 2 else None",
        ),
        (
            "pyramid convolutions in the decoder too",
            "y = self.attention(self.norm1(x), convs)",
            "y = self.attention(self.norm1(x), convs or [self.position] * 4)",
        ),
        (
            "c3 and c4 exchanged",
            "squeeze((c2, c3, c4), self.squeeze1)",
            "squeeze((c2, c4, c3), self.squeeze1)",
        ),
        (
            "second squeeze: c4 before the fused map",
            "squeeze((p, c4), self.squeeze2)",
            "squeeze((c4, p), self.squeeze2)",
        ),
        (
            "coarse maps enlarged by repeating the nearest pixel",
            "*(enlarge(c, size) for c in maps[1:])",
            "*(F.interpolate(c, size) for c in maps[1:])",
        ),
        ("no ReLU in the first squeeze", "self.squeeze1)).relu()", "self.squeeze1))"),
        ("second block of the decoder left out", "p = self.fuse2(p)", "p = p"),
        ("four heads in the decoder", "dict(heads=8,", "dict(heads=4,"),
        ("no norm behind the embedding", "x = self.norm(self.embed(x))", "x = self.embed(x)"),
        (
            "decoder fed with the first stages",
            "self.backbone(images)[1:]",
            "self.backbone(images)[:3]",
        ),
        (
            "scores left at stride 8",
            'return {"out": enlarge(self.scores(images), images.shape[-2:])}',
            'return {"out": self.scores(images)}',
        ),
        (
            "loss over the valid pixels although all are asked for",
            "return total / label.numel()",
            "return total / (label != IGNORE).sum()",
        ),
        (
            "`context=False` keeps the attention",
            "Attention(channels, heads, side, fast) if context else None",
            "Attention(channels, heads, side, fast)",
        ),
        (
            "`fast=False` is not heard by the attention",
            "self.heads, self.side, self.sides, self.fast = heads, side, pyramid(side), fast",
            "self.heads, self.side, self.sides, self.fast = heads, side, pyramid(side), True",
        ),
    ],
    "fast.py": [
        ("bins end at the floor", "((i + 1) * size + n - 1) // n", "(i + 1) * size // n"),
        (
            "pooling matrices of rows and columns exchanged",
            "((height, heights), (width, widths))",
            "((height, widths), (width, heights))",
        ),
        ("queries not pooled", "    if cells[0] % size[0] == 0 and", "    if True or"),
        (
            "short cut taken where the grid is no whole multiple",
            "cells[0] % size[0] == 0 and cells[1] % size[1] == 0",
            "cells[0] >= size[0] and cells[1] >= size[1]",
        ),
        (
            "scores divided by the root of all channels",
            "scaled_dot_product_attention(q, k, v)",
            "scaled_dot_product_attention(q, k, v, scale=(module.heads * q.shape[-1]) ** -0.5)",
        ),
        ("output projection left out", "module.output(o)", "o"),
        (
            "residual added at low resolution",
            "model.as_map(module.output(o), cells)",
            "model.as_map(module.output(o), cells) + z",
        ),
        (
            "GELU in its tanh form",
            "F.gelu(model.at_each_position(module.widen, x))",
            'F.gelu(model.at_each_position(module.widen, x), approximate="tanh")',
        ),
        (
            "an activation behind the feed-forward convolution",
            "plus(hidden(x, module), module.conv)",
            "F.gelu(plus(hidden(x, module), module.conv))",
        ),
        (
            "an activation behind the feed-forward convolution of a strip",
            "plus(u, module.conv)",
            "F.gelu(plus(u, module.conv))",
        ),
        (
            "no residual around the feed-forward convolution",
            "plus(hidden(x, module), module.conv)",
            "module.conv(hidden(x, module))",
        ),
        (
            "no residual around the feed-forward convolution of a strip",
            "plus(u, module.conv)",
            "module.conv(u)",
        ),
        ("the 1 beside the middle of the kernel", "(1, 1, 1, 1))", "(0, 2, 1, 1))"),
        (
            "a 1 in the kernel in half precision, too",
            "if mixed or",
            "if",
        ),
        ("rows and columns of the enlargement exchanged", "(rows @ o", "(columns @ o"),
        ("enlarged corner onto corner", "align_corners=False)[0].mT", "align_corners=True)[0].mT"),
        ("the matrix kept from inference", "@torch.inference_mode(False)", "@torch.no_grad()"),
        ("strips without the rows before", "[u[:, :, -2:]]", "[u[:, :, -2:] * 0]"),
        ("strips that begin with the row before", "min(first, 1) : end", "0 : end"),
        ("the last row of a strip twice", "None if first + rows >= height else -1", "None"),
        ("the last row lost", "None if first + rows >= height else -1", "-1"),
        (
            "strips in training too",
            'x.device.type != "cpu" or torch.is_grad_enabled() or',
            'x.device.type != "cpu" or',
        ),
        (
            "c3 and c4 exchanged",
            "zip(maps, weights, strict=True))\n",
            "zip(maps, (weights[0], *weights[:0:-1]), strict=True))\n",
        ),
        ("only the first of the coarse maps added", "for c in rest)", "for c in rest[:1])"),
        (
            "kernel split by position of the map, not by its channels",
            "[c.shape[1] for c in maps], dim=1",
            "[c.shape[1] for c in maps[::-1]], dim=1",
        ),
        (
            "pooling in inference: one grid for all",
            "[model.pool(x, cells) for cells in grids]",
            "[model.pool(x, grids[0]) for cells in grids]",
        ),
    ],
}
