"""Arguments for the functions of naive.py, with which the judge of the exercises calls them."""

import torch

from .. import model, readings


def cases(side):
    """{function of naive.py: arguments}, on maps of `side` rows and one column more."""
    size, double = (side, side + 1), (2 * side, 2 * side + 1)
    x, y, low = torch.randn(2, 3, *size), torch.randn(2, 4, *size), torch.randn(2, 5, *double)
    network = model.build(3, decoder_channels=4)
    sides = (4, 4, 2, 1)[-len(network.backbone.channels):]
    features = [torch.randn(1, c, n + 1, n) for c, n in
                zip(network.backbone.channels, sides, strict=True)]
    gated = readings.GatedGAU("both", 5, 4, 3, None)
    se = readings.PartialFPA("se", True, 3, 32, 1, (7, 5, 3), "avg")
    return {
        "pyramid": [(x, model.FPA(3, 4)), (x, model.FPA(3, 4, 4, reduction="max"))],
        "fpa": [(x, model.FPA(3, 4)), (x, model.FPA(3, 4, 4))],
        "gau": [(y, low, model.GAU(5, 4))],
        "add_weighted": [(y, torch.randn(2, 4, 1, 1), torch.randn(2, 4, *size))],
        "decode": [(features, network)],
        "classify": [(y, model.classifier(4, 3), double)],
        "positions": [(y, double, gated)],
        "note_pyramid": [(x, readings.NoteFPA(3, 4))],
        "factors": [(torch.randn(2, 32, *size), se)],
    }


# The same in model.py, where it has another name or other arguments.
FAST = {
    "pyramid": lambda x, module: module.pyramid(x),
    "fpa": lambda x, module: module(x),
    "gau": lambda y, low, module: module(y, low),
    "decode": lambda features, network: network.decode(features),
    "classify": lambda y, head, size: model.enlarge(head(y), size),
    "positions": lambda y, size, module: module.positions(y, size),
    "note_pyramid": lambda x, module: module.pyramid(x),
    "factors": lambda m, module: module.factors(m),
}
