"""Mistakes that people make with this paper. `make mutants` plants them one by one in a copy of the repository and
reports whether the tests of this folder notice.

(what, old text, new text): `old` occurs exactly once in model.py.
"""

MUTANTS = [
    (
        "regions and cells viewed as (R*R, G*G) at once, so pixels of different regions mix",
        "t = t.reshape(batch, heads, -1, regions, side, regions, side)\n        return t.permute(0, 3, 5, 1, 4, 6, 2)",
        "t = t.reshape(batch, heads, -1, regions, regions, side, side)\n        return t.permute(0, 3, 4, 1, 5, 6, 2)",
    ),
    ("cells put back in the wrong order", ".permute(0, 3, 6, 1, 4, 2, 5)", ".permute(0, 3, 6, 2, 4, 1, 5)"),
    ("softmax over the queries", "scores.softmax(-1)", "scores.softmax(-2)"),
    ("scale missing", "    if scaled:\n        scores = scores / math.sqrt(q.shape[-1])\n", ""),
    ("scores divided by the width instead of its root", "math.sqrt(q.shape[-1])", "q.shape[-1]"),
    ("relative positions seen from the wrong cell", "i[None, :] - i[:, None] + side", "i[:, None] - i[None, :] + side"),
    ("the grid enlarged as a whole although regions are asked for", 'if scope == "region" else', "if False else"),
    ("bins end at the floor, so 97 rows lose border pixels", "-(-(i + 1) * size // cells)", "(i + 1) * size // cells"),
    ("enlarged with align_corners=True habits: no half-pixel centre", "(2 * y + 1) * grid - size", "2 * y * grid"),
    ("rows pooled by the matrix of the columns", "return rows @ (x @ columns.T)", "return columns @ (x @ columns.T)"),
    ("residual of the series left out", "x = x + pysa(x, level)", "x = pysa(x, level)"),
    ("residual left out in cell space", "return x + torch.cat(enlargements[0]", "return torch.cat(enlargements[0]"),
    ("in cell space a level reads the first map, not the sum so far", "t = t + rows @ (o @ columns.T)", "pass"),
    ("in cell space only the level before is added", "t = t + rows @ (o @ columns.T)", "t = read[s] @ pools[1][s].T.to(x) + rows @ (o @ columns.T)"),
    ("cell space used for max pooling, which is not linear", 'level.pool == "avg" for', "level.pool for"),
    ("parallel: context in front of the features", "[features] + [pysa(x, level) for level in levels]", "[pysa(x, level) for level in levels] + [features]"),
    ("series: features in front of the context", "torch.cat([x, features], dim=1)", "torch.cat([features, x], dim=1)"),
    ("the learned gain left out", "return o if self.gain is None else self.gain * o", "return o"),
    ("layer 4 dilated by 2 only", "dilations=(1, 1, 2, 4)", "dilations=(1, 1, 2, 2)"),
    ("scores enlarged with align_corners=True", 'mode="bilinear", align_corners=False) for', 'mode="bilinear", align_corners=True) for'),
    ("shared levels that share nothing", "setattr(level, name, module)", "pass"),
    ("`context=False` keeps the levels", "(regions if context else ())", "regions"),
]
