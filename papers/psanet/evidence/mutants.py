"""Mistakes that people make with this paper. `make mutants` plants them one by one in a copy of the
repository and reports whether the tests of this folder notice.

{file: [(what, old text, new text), ...]}: `old` occurs exactly once in the file.
"""

MUTANTS = {
    "model.py": [
        (
            "the projection padded like a 3x3 convolution, and the frame squeezed back by a resize",
            "return self.project(torch.cat(z, dim=1)) ",
            "z = torch.cat(z, dim=1)\n        y = self.project(F.pad(z, (1, 1, 1, 1)))\n"
            "        return F.interpolate(y, z.shape[-2:], mode='bilinear')",
        ),
        (
            "collect and distribute exchanged",
            'attend = collect if self.direction == "collect" else distribute',
            'attend = distribute if self.direction == "collect" else collect',
        ),
        (
            "distribute is a second collect",
            "a = h[:, s, t, height - 1 - s + k, width - 1 - t + l]",
            "a = h[:, k, l, height - 1 - k + s, width - 1 - l + t]",
        ),
        (
            "distribute reads the offset from receiver to source",
            "a = h[:, s, t, height - 1 - s + k, width - 1 - t + l]",
            "a = h[:, s, t, height - 1 - k + s, width - 1 - l + t]",
        ),
        (
            "the rows and the columns of the mask mirrored: k with s, l with t exchanged",
            "a = h[:, k, l, height - 1 - k + s, width - 1 - l + t]",
            "a = h[:, k, l, height - 1 + k - s, width - 1 + l - t]",
        ),
        (
            "the rows of the mask mirrored",
            'torch.einsum("bckl,yxc->bklyx", q, r)',
            'torch.einsum("bckl,yxc->bklyx", q, r.flip(0))',
        ),
        (
            "centre of the table off by one row",
            "height - 1 - (mask_h - 1) // 2",
            "height - 1 - (mask_h + 1) // 2",
        ),
        (
            "centre of the table off by one column",
            "width - 1 - (mask_w - 1) // 2",
            "width - 1 - (mask_w + 1) // 2",
        ),
        (
            "centre of a table with an even number of columns rounded up",
            "width - 1 - (mask_w - 1) // 2",
            "width - 1 - mask_w // 2",
        ),
        (
            "softmax over the receivers instead of the sources",
            "a = a.softmax(-1)",
            "a = a.softmax(-2)",
        ),
        ("softmax although it was switched off", "    if softmax:\n", "    if True:\n"),
        (
            "what is summed goes to the wrong receiver",
            "z = v.flatten(2) @ a.mT / divisor",
            "z = v.flatten(2) @ a / divisor",
        ),
        ("the sum is never divided", "@ a.mT / divisor", "@ a.mT"),
        (
            "the sum of positions is divided by their square",
            "softmax, factor or len(table))",
            "softmax, factor or len(table) ** 2)",
        ),
        (
            "the sum is divided by the area of the map instead of the mask's",
            "# (D)  [B, H, W, H, W]\n    return aggregate(a, v, softmax, factor or math.prod(",
            "# (D)  [B, H, W, H, W]\n"
            "    return aggregate(a, v, softmax, factor or math.prod(v.shape[-2:] or ",
        ),
        (
            "the table padded with -1e9 instead of 0",
            "return F.pad(table, (0, 0, left, right, top, bottom))",
            "return F.pad(table, (0, 0, left, right, top, bottom), value=-1e9)",
        ),
        (
            "the table read column by column",
            "table = table.unflatten(0, mask_size)",
            "table = table.unflatten(0, mask_size[::-1]).transpose(0, 1)",
        ),
        (
            "computed in bfloat16 under autocast",
            "return torch.autocast(device_type, enabled=False)",
            "return contextlib.nullcontext()",
        ),
        (
            "computed in the precision of the weights",
            "(t.dtype for t in tensors), torch.float32)",
            "(t.dtype for t in tensors))",
        ),
        ("float32 meets weights of lower precision", "return z.to(v.dtype) ", "return z"),
        (
            "enlarged with align_corners=False",
            'mode="bilinear", align_corners=True',
            'mode="bilinear", align_corners=False',
        ),
        (
            "no dilation in the first block of layers 3 and 4",
            "dilations=(1, 1, 2, 4))",
            "dilations=(1, 1, 2, 4), contract=True)",
        ),
        ("layer 4 dilated like layer 3", "dilations=(1, 1, 2, 4)", "dilations=(1, 1, 2, 2)"),
        (
            "distribute before collect in the concatenation",
            'DIRECTIONS = ("collect", "distribute")',
            'DIRECTIONS = ("distribute", "collect")',
        ),
        (
            "context in front of the features",
            "torch.cat([x, enlarge(context, self.psa.shrink_factor)], dim=1)",
            "torch.cat([enlarge(context, self.psa.shrink_factor), x], dim=1)",
        ),
        (
            "reduce shared by both directions",
            "z = [branch(x) for branch in self.branches]",
            "for branch in self.branches:\n            branch.reduce = self.branches[0].reduce\n"
            "        z = [branch(x) for branch in self.branches]",
        ),
        (
            "compact: i and j exchanged",
            'a = h if direction == "collect" else h.mT',
            'a = h if direction != "collect" else h.mT',
        ),
        (
            "the attention's input is the query, not the reduced features",
            "q = self.query(v)  ",
            "q = v = self.query(v)  ",
        ),
        (
            "compact maps of the right area but the wrong shape accepted",
            "if self.compact and (height, width) != wanted:",
            "if self.compact and height * width != wanted[0] * wanted[1]:",
        ),
        (
            "a compact network finds out late that an image does not fit",
            "if list(images.shape[-2:]) != wanted:",
            "if False:",
        ),
        (
            "a table of the wrong length is taken",
            "    if len(table) != mask_h * mask_w:\n",
            "    if False:\n",
        ),
        (
            "images padded to multiples of 8 without the one pixel more",
            "(1 - width) % self.step, 0, (1 - height)",
            "-width % self.step, 0, -height",
        ),
        (
            "the auxiliary loss counts fully",
            "return loss + 0.4 * cross_entropy",
            "return loss + cross_entropy",
        ),
        ("`context=False` keeps the attention", "        if context:\n", "        if True:\n"),
        (
            "fast=False is forgotten by the branches",
            "options = shrink_factor, psa_softmax, normalization_factor, compact, fast",
            "options = shrink_factor, psa_softmax, normalization_factor, compact, True",
        ),
        (
            "the mask of a crop does not know the shrinking",
            "side = math.ceil((crop_size - 1) / (8 * shrink_factor)) + 1",
            "side = math.ceil((crop_size - 1) / 16) + 1",
        ),
    ],
    "fast.py": [
        (
            "exchanged in the tiles only",
            "run = collect_tiles if direction",
            "run = distribute_tiles if direction",
        ),
        (
            "distribute is a second collect",
            'a = p if direction == "collect" else p.transpose(1, 2)',
            "a = p",
        ),
        (
            "softmax over the receivers instead of the sources",
            "a = a.softmax(-1)",
            "a = a.softmax(-2)",
        ),
        (
            "softmax although it was switched off",
            "    if not softmax:\n        return model.compact",
            "    if False:\n        return model.compact",
        ),
        (
            "the sum is never divided by the mask's area",
            "divisor = factor or math.prod(mask_size)",
            "divisor = factor or 1",
        ),
        (
            "the window of a pixel starts W - 1 columns too early",
            "(a - 1) * columns + b - 1 :",
            "(a - 1) * columns :",
        ),
        (
            "the window starts at the beginning of the storage",
            "return from_first.as_strided((batch, a, b, *size), strides) ",
            "return logits.as_strided((batch, a, b, *size), strides, (a - 1) * columns + b - 1)",
        ),
        (
            "the table's offsets of a tile start at the wrong end",
            "slice(height - bottom, 2 * height - 1 - top)",
            "slice(top, height + bottom - 1)",
        ),
        (
            "context in front of the features",
            "of_x, of_context = weight.split([x.shape[1], context.shape[1]], dim=1)",
            "of_context, of_x = weight.split([context.shape[1], x.shape[1]], dim=1)",
        ),
        (
            "compact: i and j exchanged",
            'if direction == "collect" else (table, q)',
            'if direction != "collect" else (table, q)',
        ),
        ("compact attention scaled like a transformer's", "values, scale=1.0)", "values)"),
        ("compact: the sum is not divided", " / (factor or table.shape[1])", ""),
        (
            "reduced after shrinking in training too: BatchNorm sees a quarter of the pixels",
            "if reduce[1].training:",
            "if False:",
        ),
        (
            "the attention's input is the query, not the reduced features",
            "q = module.query(v)  ",
            "q = v = module.query(v)  ",
        ),
        (
            "taps of the classifier in the wrong order",
            "permute(0, 3, 1, 4, 2, 5)",
            "permute(0, 3, 2, 4, 1, 5)",
        ),
        (
            "earlier tiles are not rescaled when the maximum grows",
            "z.mul_(shift[..., None])",
            "pass",
        ),
        (
            "the sum of earlier tiles is not rescaled",
            "total.mul_(shift).add_(p.sum(1))",
            "total.add_(p.sum(1))",
        ),
        (
            "gradient of the softmax without its mean",
            "dp.sub_(per_receiver(delta, rows, columns, ctx.collects)).mul_(a)",
            "dp.mul_(a)",
        ),
        (
            "table gradient of a tile overwrites that of the others",
            "dtable[offsets] += ",
            "dtable[offsets] = ",
        ),
        (
            "the gradient's memory keeps the logits of offsets that no pixel has",
            "dlogits = logits.zero_()",
            "dlogits = logits",
        ),
        (
            "computed in bfloat16 under autocast",
            "    with model.without_autocast(q.device.type):\n        q, table, v =",
            "    if True:\n        q, table, v =",
        ),
        (
            "compact computed in bfloat16 under autocast",
            "    with model.without_autocast(q.device.type):\n        q, table, values =",
            "    if True:\n        q, table, values =",
        ),
    ],
    "official.py": [
        (
            "what is told is not heard",
            'mask, compact = options.get("mask_size"), ',
            "mask, compact = None, ",
        ),
        (
            "a mask of another number of entries is taken",
            '    if math.prod(mask) != rows:\n        raise ValueError(\n            f"{source}',
            '    if False:\n        raise ValueError(\n            f"{source}',
        ),
        ("offsets with an even side are taken", "        if not compact:\n", "        if False:\n"),
        (
            "the two directions exchanged",
            'r"psa\\.reduce(_p)?\\.", lambda m: f"psa.branches.{int(bool(m[1]))}',
            'r"psa\\.reduce(_p)?\\.", lambda m: f"psa.branches.{int(not m[1])}',
        ),
        (
            "one direction is always collect",
            "{**arguments, **options, **mask_of(",
            "{**options, **arguments, **mask_of(",
        ),
        (
            "converted without what is told",
            "model.build(**build_arguments(state_dict, **options)).state_dict()",
            "model.build(**build_arguments(state_dict)).state_dict()",
        ),
        (
            "options of PSA are taken for a file without it",
            "        if useless:\n",
            "        if False:\n",
        ),
    ],
}
