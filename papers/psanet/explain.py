"""What a pixel looks at in PSANet: the weights with which it collects from, and is sent by, every
other pixel."""

import torch

from .model import fit_table

RECORD = ("psa.branches.[0-9].query",)


def receiver_weights(branch, q, receiver):
    """One row of the matrix of (D), (E) or (J), after (F): what each source counts for a receiver.

    branch: a model.PSABranch, whose table is read. q: [H, W, C]. receiver: (row, column).
    Returns [H, W], with softmax summing to 1.
    """
    (y, x), (height, width), table = receiver, q.shape[:2], branch.table
    if branch.compact:
        table = table.view(height, width, -1)
        logits = table * q[y, x] if branch.direction == "collect" else q * table[y, x]
    else:
        table = fit_table(table, branch.mask_size, (height, width))     # [2H-1, 2W-1, C]
        if branch.direction == "collect":  # its query and every source's offset as seen from it
            rows = slice(height - 1 - y, 2 * height - 1 - y)
            columns = slice(width - 1 - x, 2 * width - 1 - x)
            logits = table[rows, columns] * q[y, x]
        else:  # every source's query and the receiver's offset as seen from the source
            logits = table[y : y + height, x : x + width].flip(0, 1) * q
    logits = logits.sum(-1)                                             # [H, W]
    return logits.flatten().softmax(0).view(height, width) if branch.softmax else logits


def receiver_of(pixel, size, step):
    """The pixel of the shrunk map, whose size is given, that lies nearest to a pixel of the image:
    they lie on the image pixels 0, step, 2 * step, ..."""
    return tuple(
        min((p + step // 2) // step, side - 1) for p, side in zip(pixel, size, strict=True)
    )


def explain(model, record, size, pixel):
    """One map per direction. See papers/attention.py."""
    panels = []
    for name, (_, q) in record.items():
        branch = model.get_submodule(name.removesuffix(".query"))
        receiver = receiver_of(pixel, q.shape[-2:], model.step)
        weights = receiver_weights(branch, q[0].permute(1, 2, 0), receiver).abs()  # of both signs
        rows, columns = ((torch.arange(n) + model.step // 2) // model.step for n in size)
        rows, columns = rows.clamp(max=len(weights) - 1), columns.clamp(max=weights.shape[1] - 1)
        takes = "what the pixel takes from others", "what others give to the pixel"
        what = takes[branch.direction == "distribute"]
        panels.append((f"{branch.direction}: {what}", weights.cpu()[rows[:, None], columns]))
    return panels
