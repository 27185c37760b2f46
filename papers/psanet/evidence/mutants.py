"""Mistakes that people make with this paper. `make mutants` plants them one by one in a copy of the repository and
reports whether the tests of this folder notice.

(what, old text, new text): `old` occurs exactly once in model.py.
"""

MUTANTS = [
    (
        "the projection padded like a 3x3 convolution, and the frame squeezed back by a resize",
        "return module.project(torch.cat(z, dim=1))",
        "z = torch.cat(z, dim=1)\n    return F.interpolate(module.project(F.pad(z, (1, 1, 1, 1))), z.shape[-2:], mode='bilinear')",
    ),
    ("collect and distribute exchanged", 'if direction == "collect":\n        a = p', 'if direction != "collect":\n        a = p'),
    ("exchanged in the tiles only", 'height * width, direction == "collect"', 'height * width, direction != "collect"'),
    ("distribute is a second collect", "a = p.transpose(1, 2)", "a = p"),
    ("centre of the table off by one row", "height - 1 - (mask_h - 1) // 2", "height - 1 - (mask_h + 1) // 2"),
    ("softmax over the receivers instead of the sources", "a = a.softmax(-1)", "a = a.softmax(-2)"),
    ("softmax although it was switched off", "        z = receivers @ sources.transpose(1, 2) @ v", "        z = (receivers @ sources.transpose(1, 2)).softmax(-1) @ v"),
    ("the sum is never divided by the mask's area", "divisor = mask_h * mask_w if factor is None else factor", "divisor = factor or 1"),
    (
        "offsets outside the mask get minus infinity instead of 0",
        "return F.pad(table, (0, 0, left, right, top, bottom))",
        "return F.pad(table, (0, 0, left, right, top, bottom), value=-1e9)",
    ),
    ("the table read column by column", "table = table.unflatten(0, mask_size)", "table = table.unflatten(0, mask_size[::-1]).transpose(0, 1)"),
    ("the window moves with the pixel instead of against it", "(a - 1) * columns + b - 1", "(a - 1) * columns"),
    ("scores enlarged with align_corners=False", 'mode="bilinear", align_corners=True', 'mode="bilinear", align_corners=False'),
    ("no dilation in the first block of layers 3 and 4", "dilations=(1, 1, 2, 4))", "dilations=(1, 1, 2, 4), contract=True)"),
    ("layer 4 dilated like layer 3", "dilations=(1, 1, 2, 4)", "dilations=(1, 1, 2, 2)"),
    ("distribute before collect in the concatenation", '("collect", "distribute") if psa_type', '("distribute", "collect") if psa_type'),
    ("context in front of the features", "of_x, of_context = weight.split([x.shape[1], context.shape[1]], dim=1)", "of_context, of_x = weight.split([context.shape[1], x.shape[1]], dim=1)"),
    ("reduce shared by both directions", "q, v = branch(x)", "v = module.branches[0](x)[1]\n        q = branch.query(v)"),
    ("compact: collect transposed", 'if direction == "collect" else (table, q)', 'if direction != "collect" else (table, q)'),
    ("compact attention scaled like a transformer's", "v, scale=1.0)", "v)"),
    ("reduced after shrinking in training too: BatchNorm sees a quarter of the pixels", "if self.reduce[1].training:", "if False:"),
    ("the attention's input is the query, not the reduced features", "return self.query(v), v", "return self.query(v), self.query(v)"),
    ("taps of the classifier in the wrong order", "permute(0, 3, 1, 4, 2, 5)", "permute(0, 3, 2, 4, 1, 5)"),
    ("earlier tiles are not rescaled when the maximum grows", "flat.mul_(shift[..., None])", "pass"),
    ("the sum of earlier tiles is not rescaled", "total.mul_(shift).add_(p.sum(1))", "total.add_(p.sum(1))"),
    ("gradient of the softmax without its mean", "dp.sub_(per_receiver(delta)).mul_(a)", "dp.mul_(a)"),
    ("table gradient of a tile overwrites that of the others", "dtable[offsets] += ", "dtable[offsets] = "),
    ("compact maps of the right area but the wrong shape accepted", "if self.compact and size != self.mask_size:", "if self.compact and size[0] * size[1] != self.mask_size[0] * self.mask_size[1]:"),
    ("images padded to multiples of 8 without the one pixel more", "(1 - width) % self.step, 0, (1 - height)", "-width % self.step, 0, -height"),
    ("the auxiliary loss counts fully", "return loss + 0.4 * cross_entropy", "return loss + cross_entropy"),
    ("`context=False` keeps the attention", "        if context:\n            directions", "        if True:\n            directions"),
]
