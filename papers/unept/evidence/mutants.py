"""Mistakes that people make with this paper. `make mutants` plants them one by one in a copy of the
repository and reports whether the tests of this folder notice.

{file: [(what, old text, new text), ...]}: `old` occurs exactly once in the file.
"""

MUTANTS = {
    "model.py": [
        (
            "x divided by the height, y by the width",
            "moved[..., 0] / width, moved[..., 1] / height",
            "moved[..., 0] / height, moved[..., 1] / width",
        ),
        (
            "a softmax per level",
            "scores.softmax(-1).unflatten(3, sizes[1:])",
            "scores.unflatten(3, sizes[1:]).softmax(-1)",
        ),
        (
            "offsets in parts of the image instead of pixels of the level",
            "moved[..., 0] / width, moved[..., 1] / height",
            "moved[..., 0], moved[..., 1]",
        ),
        (
            "points averaged instead of weighed",
            "return delta, scores.softmax(-1)",
            "return delta, torch.full_like(scores, 1 / scores.shape[-1])",
        ),
        (
            "heads and channels of a head exchanged",
            "v = self.value_proj(source).unflatten(2, (self.heads, -1))",
            "v = self.value_proj(source).unflatten(2, (-1, self.heads)).transpose(2, 3)",
        ),
        (
            "the compass on a circle",
            "compass = compass / compass.abs().amax(-1, keepdim=True)",
            "compass = compass",
        ),
        (
            "the batch mixed where images should be left alone",
            'if self.mixing == "none":',
            'if self.mixing == "never":',
        ),
        (
            "mixing options exchanged",
            'x = x.transpose(0, 1) if self.mixing == "batch" else x  ',
            'x = x.transpose(0, 1) if self.mixing == "pixels" else x  ',
        ),
        (
            "the key projection taken for the value projection",
            "x = v * F.dropout(",
            "x = k * F.dropout(",
        ),
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
        ("level embedding dropped", "torch.cat([s + e for", "torch.cat([s for"),
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
            "a ReLU after the third spatial convolution",
            "super().__init__(*layers[:-1])",
            "super().__init__(*layers)",
        ),
        (
            "taps off by one stage",
            "maps = self.backbone(images)[-len(self.pyramid):]",
            "maps = self.backbone(images)[-len(self.pyramid) - 1 : -1]",
        ),
        (
            "stage 3 and 4 start with their own dilation",
            "(1, 1, 2, 4), contract=True",
            "(1, 1, 2, 4), contract=False",
        ),
        (
            "norms of self and cross attention exchanged",
            "x = self.norm_self(x + self.dropout(self.self_attention(x)))",
            "x = self.norm_cross(x + self.dropout(self.self_attention(x)))",
        ),
        (
            "no norm after the cross attention",
            "self.norm_cross(x + self.dropout(self.cross_attention(x, reference, memory, shapes)))",
            "x + self.dropout(self.cross_attention(x, reference, memory, shapes))",
        ),
        (
            "the gradient of one image keeps its odd strides",
            "detail.register_hook(torch.Tensor.contiguous)",
            "pass",
        ),
        ("refined while training", "if self.refine and not self.training:", "if self.refine:"),
        (
            "`context=False` reads the coarse map",
            "(2, 2, 2, 2) if context else (2, 2)",
            "(2, 2, 2, 2)",
        ),
        (
            "x and y of a point without their -1/2",
            "grid = 2 * p[:, :, level] - 1 ",
            "grid = 2 * p[:, :, level] - 1 + 1 / torch.tensor(shapes[level][::-1]).to(p) ",
        ),
        (
            "maps read with aligned corners",
            "F.grid_sample(maps, grid, align_corners=False)",
            "F.grid_sample(maps, grid, align_corners=True)",
        ),
        (
            "the edge repeated outside instead of zeros",
            "F.grid_sample(maps, grid, align_corners=False)",
            'F.grid_sample(maps, grid, padding_mode="border", align_corners=False)',
        ),
        (
            "weights of another level",
            "(read * a[:, None, :, level])",
            "(read * a[:, None, :, 0])",
        ),
        (
            "heads and images exchanged in the result",
            "out.unflatten(0, (value.shape[0], -1)).permute(0, 3, 1, 2)",
            "out.unflatten(0, (-1, value.shape[0])).permute(1, 3, 0, 2)",
        ),
        ("scores divided by the width", "/ math.sqrt(q.shape[-1]))", "/ q.shape[-1])"),
        (
            "the switch does nothing in the sparse attention",
            "fast.deformable_attention if self.fast else deformable_attention",
            "fast.deformable_attention",
        ),
        (
            "the released axis left alone",
            'return x.transpose(0, 1) if self.mixing == "batch" else x',
            "return x",
        ),
        (
            "columns of the query grid come first",
            "torch.cartesian_prod(y, x).flip(1)",
            "torch.cartesian_prod(y, x)",
        ),
        (
            "half precision in the locations",
            "torch.promote_types(like.dtype, torch.float32))",
            "like.dtype)",
        ),
        ("the boundary heads make the caller's loss", 'if "mask" not in outputs:', "if True:"),
    ],
    "fast.py": [
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
            "ring = (0, 0, 1, 1, 1, 1)\n"
            '    return F.pad(pixels.flatten(0, 1), ring, mode="replicate").flatten(0, 2)',
        ),
        (
            "weights of upper right and lower left corner exchanged",
            "[upper_share - upper_right, upper_right, lower_share - lower_right, lower_right]",
            "[upper_share - upper_right, lower_share - lower_right, upper_right, lower_right]",
        ),
        (
            "the ring forgotten in the row index",
            "return (line + 1) * (width + 2) + column",
            "return (line + 1) * width + column",
        ),
        ("tables of all heads taken for one", "row + maps.view(", "row + 0 * maps.view("),
        (
            "backward: the gradient of a clamped point passes",
            "across = across * ((x >= -1) & (x <= width)) * width",
            "across = across * width",
        ),
        (
            "backward: columns not shifted back",
            "total[shift:] += part[: len(part) - shift]",
            "total += part",
        ),
        (
            "backward: offsets in pixels, not in parts of the map",
            "((y >= -1) & (y <= height)) * height",
            "((y >= -1) & (y <= height))",
        ),
        (
            "levels read one after the other from the first table",
            "levels = zip(parts, shapes, locations",
            "levels = zip(parts[:1] * len(parts), shapes, locations",
        ),
        ("the ring clamps one pixel too early", ".clamp(-1, width)\n", ".clamp(0, width)\n"),
        ("backward: fractions exchanged", "fractions = right, lower", "fractions = lower, right"),
        (
            "backward: a bag per point, not per query and head",
            'sorting.div(row.shape[-1], rounding_mode="floor").int()',
            "sorting.clamp(max=len(gradient) - 1).int()",
        ),
        (
            "backward: the weight of a point forgotten",
            "across = share * (across_upper",
            "across = (across_upper",
        ),
    ],
    "boundary.py": [
        (
            "boundary scores enlarged without aligned corners",
            'mode="bilinear", align_corners=True)',
            'mode="bilinear", align_corners=False)',
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
        (
            "rows and columns of the slope exchanged",
            "torch.atan2(down, across)",
            "torch.atan2(across, down)",
        ),
        (
            "angles not rounded down to steps of two degrees",
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
        (
            "segmentation terms divided by the valid pixels",
            "return total / label.numel()",
            "return total / (label != VOID).sum().clamp(min=1)",
        ),
        ("void trained as boundary", ".long().masked_fill(void, VOID)", ".long()"),
        (
            "losses in half precision",
            "return scores.to(torch.promote_types(scores.dtype, torch.float32))",
            "return scores",
        ),
        (
            "a weight of a term exchanged",
            '"mask": 5.0, "direction": 0.6',
            '"mask": 0.6, "direction": 5.0',
        ),
    ],
    "official.py": [("the heads that are told ignored", 'options.get("heads", HEADS)', "HEADS")],
    "vit.py": [
        (
            "a DeiT file of another resolution is not resized",
            'if "pos_embed" in found:',
            "if False:",
        )
    ],
}
