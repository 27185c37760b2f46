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


# Numbers to follow by hand, for the page of exercises; those of FPA and GAU are the lesson's.
ONES = torch.ones(1, 1, 1, 3)
Y = torch.tensor([[[[1.0, 3.0]]]])
X = torch.tensor([[[[3.0, 5, 0, 2], [3, 5, 0, 2], [1, 1, 1, 1]]]])
UP = torch.tensor([[[[1.0, 2, 3]], [[1, 1, 1]]]])


def passing(module, **weights):
    """The module, whose convolutions pass on what they read, and whose norms do nothing but for the
    given weights, {name of a parameter, _ for . : nested lists}."""
    for layer in module.eval().modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.dirac_(layer.weight)
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 0.0
    for name, weight in weights.items():
        parameter = dict(module.named_parameters())[name.replace("_", ".")]
        parameter.copy_(torch.tensor(weight).view(parameter.shape))
    return module


def small_network():
    """A network of one channel and one GAU; what it decodes comes from no backbone."""
    network = model.build(1, decoder_channels=1)
    network.fpa = passing(model.FPA(1, 1))
    network.gaus = torch.nn.ModuleList([passing(model.GAU(1, 1, 1))])
    return network


TINY = {
    "classify": lambda: (Y, passing(torch.nn.Conv2d(1, 1, 3, padding=1), bias=[10.0]), (1, 3)),
    "positions": lambda: (0.5493061 * (Y - 1), (1, 3), passing(
        readings.GatedGAU("both", 1, 1, 1, None), spatial_weight=[1.0])),
    "gau": lambda: (torch.tensor([[[[1.0, 3]], [[1, 1]]]]), ONES.expand(1, 2, 1, 3), passing(
        model.GAU(2, 2, 1), channel_conv_weight=[[1.0, 0], [0, -1]])),
    "add_weighted": lambda: (UP, torch.tensor([2.0, 0]).view(1, 2, 1, 1), torch.ones_like(UP)),
    "fpa": lambda: (X, passing(model.FPA(1, 1))),
    "pyramid": lambda: (X, passing(model.FPA(1, 1))),
    "decode": lambda: ((ONES, Y), small_network()),
    "note_pyramid": lambda: (X, passing(readings.NoteFPA(1, 1))),
    "factors": lambda: (torch.tensor([[[[1.0, 3]], [[2, 4]]]]), passing(
        readings.PartialFPA("se", False, 1, 2, 1, (7, 5, 3), "avg"), squeeze_weight=[1.0, -1],
        squeeze_bias=[3.0], excite_weight=[0.0, 0.5493061], excite_bias=[0.0, 0.0])),
}
