"""Mistakes that people make with this paper. `make mutants` plants them one by one in a copy of the repository and
reports whether the tests of this folder notice.

(what, old text, new text): `old` occurs exactly once in model.py.
"""

MUTANTS = [
    (
        "x divided by the height, y by the width",
        "[(width, height) for height, width in shapes]",
        "[(height, width) for height, width in shapes]",
    ),
    (
        "x and y swapped",
        "x = (locations[..., 0] * width - 0.5).clamp(-1, width)\n    y = (locations[..., 1]",
        "x = (locations[..., 1] * width - 0.5).clamp(-1, width)\n    y = (locations[..., 0]",
    ),
    (
        "locations read with align_corners=True",
        "x = (locations[..., 0] * width - 0.5).clamp",
        "x = (locations[..., 0] * (width - 1)).clamp",
    ),
    (
        "the edge repeated outside instead of zeros",
        "return F.pad(pixels, (0, 0, 1, 1, 1, 1)).flatten(0, 3)",
        'return F.pad(pixels.flatten(0, 1), (0, 0, 1, 1, 1, 1), mode="replicate").flatten(0, 2)',
    ),
    (
        "a softmax per level",
        "logits.softmax(-1).unflatten(3, (levels, points))",
        "logits.unflatten(3, (levels, points)).softmax(-1)",
    ),
    (
        "offsets in parts of the image instead of pixels of the level",
        "+ offsets / sizes[:, None]  # Eq. (4)",
        "+ offsets",
    ),
    (
        "points averaged instead of weighed",
        "logits.softmax(-1).unflatten",
        "torch.full_like(logits, 1 / logits.shape[-1]).unflatten",
    ),
    (
        "weights of upper right and lower left corner exchanged",
        "[upper_share - upper_right, upper_right, lower_share - lower_right, lower_right]",
        "[upper_share - upper_right, lower_share - lower_right, upper_right, lower_right]",
    ),
    ("the ring forgotten in the row index", "(width + 2) + left.int()", "width + left.int()"),
    ("tables of all heads taken for one", "return row + maps * ((shape[0]", "return row + 0 * maps * ((shape[0]"),
    (
        "backward: the gradient of a clamped point passes",
        "across = across * ((x >= -1) & (x <= width)) * width",
        "across = across * width",
    ),
    (
        "backward: columns not shifted back",
        "table_gradient[shift:] += part[: len(part) - shift]",
        "table_gradient += part",
    ),
    (
        "backward: offsets in pixels, not in parts of the map",
        "((y >= -1) & (y <= height)) * height",
        "((y >= -1) & (y <= height))",
    ),
    (
        "heads and channels of a head exchanged",
        "value = module.value_proj(source).unflatten(2, (module.heads, -1))",
        "value = module.value_proj(source).unflatten(2, (-1, module.heads)).transpose(2, 3)",
    ),
    ("the compass on a circle", "compass = compass / compass.abs().amax(-1, keepdim=True)", "compass = compass"),
    ("the batch mixed where images should be left alone", 'if self.mixing == "none":', 'if self.mixing == "never":'),
    ("mixing options exchanged", "q, k, v = (t.transpose(0, 2) for t in (q, k, v))", "pass"),
    ("the key projection taken for the value projection", "tensor.chunk(3)[2]", "tensor.chunk(3)[1]"),
    (
        "halves of the position embedding exchanged",
        "torch.cat([y, x], dim=-1).flatten(0, 1)",
        "torch.cat([x, y], dim=-1).flatten(0, 1)",
    ),
    (
        "positions counted from 0",
        "torch.arange(1, size + 1, dtype=torch.float64)",
        "torch.arange(0, size, dtype=torch.float64)",
    ),
    ("level embedding dropped", "x.shape[2], x) + embed for", "x.shape[2], x) for"),
    (
        "position added to the values too",
        "self.attention(x + position, reference, x, shapes)",
        "self.attention(x + position, reference, x + position, shapes)",
    ),
    (
        "no query embedding",
        "queries = queries + detail.flatten(2).transpose(1, 2)",
        "queries = detail.flatten(2).transpose(1, 2)",
    ),
    (
        "a ReLU behind the third spatial convolution",
        "return nn.Sequential(*layers[:-1])",
        "return nn.Sequential(*layers)",
    ),
    (
        "taps off by one stage",
        "maps = self.backbone(images)[-len(self.pyramid) :]",
        "maps = self.backbone(images)[-len(self.pyramid) - 1 : -1]",
    ),
    ("stage 3 and 4 start with their own dilation", "(1, 1, 2, 4), contract=True", "(1, 1, 2, 4), contract=False"),
    (
        "norms of self and cross attention exchanged",
        "x = self.norm_self(x + self.dropout(self.self_attention(x)))",
        "x = self.norm_cross(x + self.dropout(self.self_attention(x)))",
    ),
    (
        "no norm behind the cross attention",
        "x = self.norm_cross(x + self.dropout(self.cross_attention(x, reference, memory, shapes)))\n        return",
        "x = x + self.dropout(self.cross_attention(x, reference, memory, shapes))\n        return",
    ),
    (
        "boundary scores enlarged without aligned corners",
        'return F.interpolate(logits, size, mode="bilinear", align_corners=True)',
        'return F.interpolate(logits, size, mode="bilinear", align_corners=False)',
    ),
    (
        "directions point outwards",
        "y = torch.arange(height, device=logits.device)[:, None] + step[..., 0]",
        "y = torch.arange(height, device=logits.device)[:, None] - step[..., 0]",
    ),
    (
        "boundary by probability in the refinement",
        "(mask_logits[:, 1] > 0.5)[..., None]",
        "(mask_logits[:, 1] > mask_logits[:, 0])[..., None]",
    ),
    ("rows and columns of the slope exchanged", "torch.atan2(down, across)", "torch.atan2(across, down)"),
    (
        "angles not stored as bytes",
        "angle = 2 * ((torch.rad2deg(torch.atan2(down, across)) + 180) / 2).floor() - 180",
        "angle = torch.rad2deg(torch.atan2(down, across))",
    ),
    ("small classes get an inside", "hollow = small | void", "hollow = void"),
    (
        "classes weigh their share instead of the rest",
        "weights = 1 - counts / counts.sum().clamp(min=1)",
        "weights = counts / counts.sum().clamp(min=1)",
    ),
    (
        "the refined term compares with the pixel's own scores",
        "cross_entropy(refine(logits, mask_logits, direction_logits), label)",
        "cross_entropy(logits, label)",
    ),
    (
        "direction loss on all pixels",
        "direction = direction.where(mask_logits[:, 1] > mask_logits[:, 0], VOID)",
        "pass",
    ),
    ("the gradient of one image keeps its odd strides", "detail.register_hook(torch.Tensor.contiguous)", "pass"),
    ("refined while training", "if self.refine and not self.training:", "if self.refine:"),
    ("`context=False` reads the coarse map", "(2, 2, 2, 2) if context else (2, 2)", "(2, 2, 2, 2)"),
]
