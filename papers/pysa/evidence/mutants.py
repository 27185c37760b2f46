"""Mistakes that people make with this paper. `make mutants` plants them one by one in a copy of the
repository and reports whether the tests of this folder notice.

{file: [(what, old text, new text), ...]}: `old` occurs exactly once in the file.
"""

MUTANTS = {
    "model.py": [
        (
            "regions and cells viewed as (R*R, G*G) at once, so pixels of different regions mix",
            "return z.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)",
            "return z.permute(0, 2, 3, 4, 5, 1).flatten(3, 4).flatten(1, 2)",
        ),
        (
            "cells put back in the wrong order",
            "return z.permute(0, 5, 1, 3, 2, 4)",
            "return z.permute(0, 5, 1, 4, 2, 3)",
        ),
        ("softmax over the queries", "q.shape[-1] ** 0.5, dim=-1)", "q.shape[-1] ** 0.5, dim=-2)"),
        ("scale missing", "q @ k.mT / q.shape[-1] ** 0.5", "q @ k.mT"),
        (
            "scores divided by the width instead of its root",
            "q @ k.mT / q.shape[-1] ** 0.5",
            "q @ k.mT / q.shape[-1]",
        ),
        ("scores divided by the root of C", "/ q.shape[-1] ** 0.5", "/ t.shape[1] ** 0.5"),
        ("queries and keys are one map", "by_region(self.key(t)", "by_region(self.query(t)"),
        (
            "a maximum for every cell, not a mean",
            "F.adaptive_avg_pool2d(x, self.grid)",
            "F.adaptive_max_pool2d(x, self.grid)",
        ),
        (
            "the grid enlarged as a whole although regions stand by themselves",
            "cell.clamp(first, first + cells - 1)",
            "cell.clamp(0, n - 1)",
        ),
        (
            "enlarged without half-pixel centres: y N / H",
            "place = (2 * y + 1) * n - size",
            "place = 2 * y * n",
        ),
        (
            "the region of a pixel decided by its edge, not its centre",
            "first = (2 * y + 1) * regions",
            "first = 2 * y * regions",
        ),
        (
            "nearest cell, not two",
            "((below, 1 - share), (below + 1, share))",
            "((below, 1 - share.round()), (below + 1, share.round()))",
        ),
        (
            "rows enlarged by the matrix of the columns",
            "return u_h @ (o @ u_w.mT)",
            "return u_w @ (o @ u_h.mT)",
        ),
        ("residual of the series left out", "x = x + level(x) ", "x = level(x) "),
        (
            "every level of the series reads the first map",
            "            for level in self.levels:\n                x = x + level(x) ",
            "            first = x\n            for level in self.levels:\n"
            "                x = x + level(first) ",
        ),
        ("the shortcut is always taken", "if self.fast:", "if True:"),
        (
            "series: Z in front of X_S",
            "torch.cat([x, features], dim=1)",
            "torch.cat([features, x], dim=1)",
        ),
        (
            "series: the backbone's features left out",
            "torch.cat([x, features], dim=1)",
            "torch.cat([x, 0 * features], dim=1)",
        ),
        (
            "parallel: Z behind the levels",
            "torch.cat([features, *context], dim=1)",
            "torch.cat([*context, features], dim=1)",
        ),
        (
            "parallel: the results of the levels are added up",
            "context = [level(features) for level in self.levels]",
            "context = []\n        for level in self.levels:\n"
            "            context.append(level(features) + sum(context))",
        ),
        (
            "parallel: pixels reduced, not cells",
            "self.reduce(F.adaptive_avg_pool2d(x, self.grid))",
            "F.adaptive_avg_pool2d(self.reduce(x), self.grid)",
        ),
        ("layer 4 dilated by 2 only", "dilations=(1, 1, 2, 4)", "dilations=(1, 1, 2, 2)"),
        (
            "scores enlarged with align_corners=True",
            'mode="bilinear", align_corners=False)',
            'mode="bilinear", align_corners=True)',
        ),
        (
            "`context=False` keeps the levels",
            'o["regions"] if o["context"] else ()',
            'o["regions"]',
        ),
        (
            "positions asked for and forgotten",
            'if o["position"] else PySALevel',
            "if False else PySALevel",
        ),
        (
            "options of the preset win over those given",
            "{**DEFAULTS, **PRESETS[preset], **options}",
            "{**DEFAULTS, **options, **PRESETS[preset]}",
        ),
    ],
    "fast.py": [
        (
            "bins end at the floor, so 97 rows lose border pixels",
            "((i + 1) * size + cells - 1) // cells",
            "(i + 1) * size // cells",
        ),
        (
            "residual left out",
            "return x + on_rows(",
            "return on_rows(",
        ),
        (
            "a level reads the first map, not the sum so far",
            "t = t + on_rows(pu_h[s][earlier], on_columns(pu_w[s][earlier], o))",
            "pass",
        ),
        (
            "a level reads X_0 and what the last level added, no others",
            "t = t + on_rows(pu_h[s]",
            "t = on_columns(p_w[s], narrow[s]) + on_rows(pu_h[s]",
        ),
        (
            "what earlier levels added is pooled with rows and columns exchanged",
            "on_rows(pu_h[s][earlier], on_columns(pu_w[s][earlier], o))",
            "on_rows(pu_w[s][earlier], on_columns(pu_h[s][earlier], o))",
        ),
        (
            "rows pooled by the matrix of the columns",
            "on_rows(torch.cat(p_h), x)",
            "on_rows(torch.cat(p_w), x)",
        ),
        ("no levels, no result", "    if not levels:\n        return x\n", ""),
        (
            "the levels share the weights of the first",
            "o = level.attend(",
            "o = levels[0].attend(",
        ),
        ("rows taken for channels in channels_last", "    x = x.permute(0, 2, 3, 1)  ",
         "    x = x.permute(0, 3, 2, 1)  "),
        ("matrices kept from inference", "@torch.inference_mode(False)", "@torch.no_grad()"),
    ],
    "readings.py": [
        (
            "relative positions seen from the wrong cell",
            "i[None, :] - i[:, None] + self.cells",
            "i[:, None] - i[None, :] + self.cells",
        ),
        (
            "rows and columns of the positions exchanged",
            "self.position[0, rows, columns]",
            "self.position[0, columns, rows]",
        ),
        (
            "positions scaled with the scores",
            "q @ k.mT / q.shape[-1] ** 0.5 + self.relative()",
            "(q @ k.mT + self.relative()) / q.shape[-1] ** 0.5",
        ),
    ],
    "explain.py": [
        ("weights read from the wrong side", "dim=-1).mT @ read", "dim=-1) @ read"),
        ("positions left out of what is shown", "isinstance(level, PositionedLevel)", "False"),
        (
            "the pixel found by its corner",
            "[(2 * p + 1) * n // (2 * side) for",
            "[(p * n + side // 2) // side for",
        ),
    ],
}
