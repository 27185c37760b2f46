"""What decides at a pixel in PAN: the pyramid's map, which multiplies the features, and the gates
of the details.

PAN has no weights between pairs of pixels. Only the maps below have a place in the image; the
vectors act on all pixels alike.
"""

from .model import enlarge

RECORD = ("fpa", "fpa.pooled", "gaus.*", "gaus.*.channel")


def explain(model, record, size, pixel):
    """The attention map (mean over its channels) or the factors of squeeze-and-excitation, the
    global mean, and the gates of every GAU. See papers/attention.py."""
    panels, fpa = [], model.fpa

    def add_map(title, values):
        # Corners onto corners, as the network enlarges: so each value stands where it acts.
        values = enlarge(values.mean(1, keepdim=True), size)[0, 0]
        panels.append((f"{title}; {values[tuple(pixel)]:.2f} at the pixel", values))

    (x,), _ = record["fpa"]
    if hasattr(fpa, "down1"):
        add_map("FPA: pyramid attention, multiplies the features", fpa.pyramid(x))
    elif hasattr(fpa, "squeeze"):
        factors = fpa.factors(fpa.master(x))[0].flatten()
        panels.append(("FPA: squeeze-and-excitation, multiplies each channel", factors))
    if "fpa.pooled" in record:
        mean = record["fpa.pooled"][1].flatten()
        panels.append(("FPA: global mean, added to each channel", mean))
    for number, gau in enumerate(model.gaus):
        (y, low), _ = record[f"gaus.{number}"]
        if f"gaus.{number}.channel" in record:
            gates = record[f"gaus.{number}.channel"][1].flatten()
            shut = f"{int((gates == 0).sum())} of {len(gates)} shut"
            panels.append((f"GAU {number + 1}: channel gates for the details, {shut}", gates))
        if getattr(gau, "spatial", None) is not None:
            s = gau.positions(y, low.shape[-2:])
            add_map(f"GAU {number + 1}: spatial gate for the details", s)
    return panels
