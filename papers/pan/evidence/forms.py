"""Forms of PAN that tests/bench.py measures: smp's modules, transcribed, and our variant "smp"."""

import copy

import torch

from studies.measure import one_pass

from .. import model, official
from .transcription import SmpPAN

# Of both in two layouts: train.py runs networks with the channels last.
FORMS = ("smp", "smp, channels last", "ours", "ours, channels last")
OTHERS = ()
CASES = {  # name: backbone, images, side, whether with gradients, whether the decoder alone
    "decoder of ResNet-34, 512 px": ("resnet34", 1, 512, False, True),
    "ResNet-34, 256 px": ("resnet34", 1, 256, False, False),
    "ResNet-34, 512 px": ("resnet34", 1, 512, False, False),
    "ResNet-34, batch of 2, 256 px, forward and backward": ("resnet34", 2, 256, True, False),
}


def make(form, backbone, batch, side, train, decoder, device="cpu"):
    """The whole network, or its decoder on the maps of its backbone."""
    torch.manual_seed(0)
    layout = torch.channels_last if "last" in form else torch.contiguous_format
    with torch.device(device):
        ours = model.build(21, "smp_resnet34", backbone=backbone)
        theirs = SmpPAN(copy.deepcopy(ours.backbone), 21)
        images = torch.randn(batch, 3, side, side)
    ours.load_state_dict(official.convert(theirs.state_dict()))
    theirs, ours = (net.to(memory_format=layout).train(train) for net in (theirs, ours))
    images, names = images.contiguous(memory_format=layout), dict(ours.named_parameters())
    # Gradients of the same numbers in the same order. smp has a bias before each BatchNorm as well,
    # which does nothing.
    if form.startswith("ours"):
        net, encoder, leaves = ours, ours.backbone, names
    else:
        net, encoder = theirs, theirs.encoder
        leaves = official.convert(theirs.state_dict(keep_vars=True))
    if decoder:
        with torch.no_grad():
            maps = encoder(images)
        own = [leaves[name] for name in names if name.startswith(("fpa", "gaus"))]
        return one_pass(lambda: net.decode(maps), own, train)
    of_ours = form.startswith("ours")
    return one_pass(lambda: net(images)["out"] if of_ours else net(images),
                    [leaves[name] for name in names], train)
