"""What a pixel looks at in PSANet: the weights with which it collects from, and is sent by, every other pixel."""

import torch

from .model import fit_table

RECORD = ("psa.branches.[0-9]",)


def receiver_weights(direction, q, table, mask_size, receiver, softmax=True, compact=False):
    """One row of the matrix of Eq. (7) or (8), after Eq. (9): what each source counts for one receiver.

    q: [H, W, C], table: [positions, C], receiver: (row, column) -> [H, W], with softmax summing to 1.
    """
    (y, x), (height, width) = receiver, q.shape[:2]
    if compact:
        table = table.view(height, width, -1)
        logits = (table * q[y, x] if direction == "collect" else q * table[y, x]).sum(-1)
    else:
        table = fit_table(table, mask_size, (height, width))  # [2H-1, 2W-1, C]
        if direction == "collect":  # the receiver's query and the offset of every source as seen from it
            rows, columns = slice(height - 1 - y, 2 * height - 1 - y), slice(width - 1 - x, 2 * width - 1 - x)
            logits = table[rows, columns] @ q[y, x]
        else:  # every source's query and the offset of the receiver as seen from the source
            logits = (table[y : y + height, x : x + width].flip(0, 1) * q).sum(-1)
    return logits.flatten().softmax(0).view(height, width) if softmax else logits


def receiver_of(pixel, size, step):
    """The pixel of the shrunk map, whose size is given, that lies nearest to a pixel of the image: they lie on the
    image pixels 0, step, 2 * step, ..."""
    return tuple(min((p + step // 2) // step, side - 1) for p, side in zip(pixel, size))


def explain(model, record, size, pixel):
    """One map per direction. See papers/attention.py."""
    panels = []
    for direction, (_, (q, _)) in zip(model.psa.directions if model.psa else (), record.values()):
        psa, branch = model.psa, model.psa.branches[len(panels)]
        receiver = receiver_of(pixel, q.shape[-2:], model.step)
        weights = receiver_weights(
            direction, q[0].permute(1, 2, 0), branch.table, psa.mask_size, receiver, psa.softmax, psa.compact
        ).abs()  # without softmax they have both signs
        rows, columns = ((torch.arange(n) + model.step // 2) // model.step for n in size)
        rows, columns = rows.clamp(max=len(weights) - 1), columns.clamp(max=weights.shape[1] - 1)
        what = "what the pixel takes from others" if direction == "collect" else "what others give to the pixel"
        panels.append((f"{direction}: {what}", weights.cpu()[rows[:, None], columns]))
    return panels
