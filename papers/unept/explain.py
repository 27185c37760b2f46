"""What a pixel looks at in UN-EPT: a few points per head and level, predicted from its query alone.
"""

import torch

from .model import sampling_locations

RECORD = ("encoder.*.attention", "decoder.*.cross_attention")


def sampling_points(attention, query, reference, shapes, number):
    """What one query of a DeformableAttention reads: the points and their weights.

    query [1, Q, C], reference [1, Q, 2], shapes: inputs of the attention; number: which query.
    Returns locations [M, L, N, 2], (x, y) in 0 .. 1, and weights [M, L, N], which sum to 1 per
    head.
    """
    offsets, weights = attention.predict(query[:, number : number + 1])
    locations = sampling_locations(reference[:, number : number + 1], offsets, shapes)
    return locations[0, 0], weights[0, 0]


def nearest_query(reference, pixel, size):
    """The query whose reference point lies nearest to the pixel's centre.

    reference: [1, Q, 2] (x, y, 0 .. 1), pixel: (row, column), size: (H, W).
    """
    centre = reference.new_tensor([(pixel[1] + 0.5) / size[1], (pixel[0] + 0.5) / size[0]])
    return int((reference[0] - centre).square().sum(-1).argmin())


def explain(model, record, size, pixel):
    """Points per level: a panel for all heads of an encoder layer, one per head of a decoder layer.

    See papers/attention.py. In the encoder the query is the pixel of the first map; in the decoder
    that of the output.
    """
    padded = [side + -side % model.multiple for side in size]   # what the network makes of images
    span = torch.tensor([padded[1], padded[0]], dtype=torch.float32)
    panels = []
    for name, ((query, reference, _, shapes), _) in record.items():
        part, layer, _ = name.split(".")
        first = shapes[0][0] * shapes[0][1] if part == "encoder" else query.shape[1]
        number = nearest_query(reference[:, :first], pixel, padded)
        attention = model.get_submodule(name)
        locations, weights = sampling_points(attention, query, reference, shapes, number)
        points = locations.float().cpu() * span                             # [M, L, N, 2]
        points = torch.cat([points, weights.float().cpu()[..., None]], dim=-1)  # [M, L, N, 3]
        groups = {f"head {number}": head[None] for number, head in enumerate(points, 1)}
        if part == "encoder":
            groups = {"all heads": points / points.new_tensor([1, 1, len(points)])}
        for group, chosen in groups.items():                                # [heads, L, N, 3]
            x, y, weight = chosen.unbind(-1)
            outside = float(weight[(x < 0) | (y < 0) | (x > size[1]) | (y > size[0])].sum())
            title = f"{part} layer {int(layer) + 1}, {group}"
            title += f"; {outside:.0%} outside the image" if outside > 0.005 else ""
            maps = enumerate(map_names(padded[0], shapes))
            panels.append((title, {of: chosen[:, level].flatten(0, 1) for level, of in maps}))
    return panels


def map_names(side, shapes):
    """What to call the maps of an image of `side` rows: 1/8, 1/16, .., or map 1, map 2, .. where
    several have one resolution."""
    names = [f"1/{round(side / height)}" for height, _ in shapes]
    if len(set(names)) < len(names):
        names = [f"map {number}" for number in range(1, len(names) + 1)]
    return names
