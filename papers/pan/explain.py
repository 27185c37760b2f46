"""What decides at a pixel in PAN: the pyramid's map, which multiplies the features, and the gates of the details."""

import torch

from .model import channel_gate, convolve, enlarge, fpa, gau, project_mean, pyramid, spatial_gate

RECORD = ("backbone",)


def explain(model, record, size, pixel):
    """The attention map (mean over its channels) or the squeeze-and-excitation factors, the global mean, and per GAU
    its gates. See common/attention.py. Only maps have a place in the image; the vectors act on all pixels alike."""
    features, block = record["backbone"][1], model.fpa
    deepest, panels = features[-1], []

    def add_map(title, values):
        # With corner pixels onto corner pixels, as the network enlarges: so each value stands where it acts.
        values = enlarge(values.mean(1, keepdim=True), size)[0, 0]
        panels.append((f"{title}; {values[tuple(pixel)]:.2f} at the pixel", values))

    if block.attention == "pyramid":
        add_map("FPA: pyramid attention, multiplies the features", pyramid(deepest, block))
    elif block.attention == "se":
        mean = convolve(deepest, block.master).mean((2, 3))
        factors = torch.sigmoid(block.excite(torch.relu(block.squeeze(mean))))[0]
        panels.append(("FPA: squeeze-and-excitation, multiplies each channel", factors))
    if block.pooled is not None:
        panels.append(("FPA: global mean, added to each channel", project_mean(deepest, block.pooled).flatten()))
    y = fpa(deepest, block)
    for number, (low, block) in enumerate(zip(features[-2::-1], model.gaus), 1):
        if block.channel is not None:
            gates = channel_gate(y, block).flatten()
            shut = int((gates == 0).sum())
            panels.append((f"GAU {number}: channel gates for the details, {shut} of {len(gates)} shut", gates))
        if block.spatial is not None:
            add_map(f"GAU {number}: spatial gate for the details", spatial_gate(y, low.shape[-2:], block))
        y = gau(y, low, block)
    return panels
