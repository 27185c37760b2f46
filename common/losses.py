"""What is minimised: the cross-entropy of all valid pixels of a batch, however it is divided."""

import torch
import torch.nn.functional as F

from . import processes
from .errors import UserError
from .metrics import IGNORE


def cross_entropy(scores, label, batch=None, weights=None):
    """Mean over the valid pixels of the whole batch, those of other processes included; 0 if none.

    scores: [B, K, H, W], label: int64 [B, H, W], 255 = ignore. batch: the labels [N * B, H, W] of
    all N parts of this process where `label` is one part. Then the mean of the N results is the
    mean over all valid pixels of the batch: parts with few of them do not count too much. Raises
    UserError if label has another H or W than batch. weights: float [K], of a weighted mean.
    """
    batch = label if batch is None else batch
    if batch.shape[1:] != label.shape[1:]:
        raise UserError("--accumulate: the loss of this network is taken at fewer pixels, so parts "
                        "would not add up")
    parts = len(batch) // len(label)
    valid = batch != IGNORE
    valid = processes.agree(valid.sum() if weights is None else weights[batch[valid]].sum())
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    loss = F.cross_entropy(scores, label, weights, ignore_index=IGNORE, reduction="sum")
    # DistributedDataParallel averages gradients, so the sum is divided by the mean count.
    return loss * (parts * processes.count()) / valid.clamp(min=1e-6)


def segmentation_loss(model, outputs, label, aux_weight, cross_entropy=cross_entropy):
    """Cross-entropy of "out", plus aux_weight times that of "aux" where there is one. A network
    with other terms defines `loss(outputs, label, cross_entropy)` itself."""
    if hasattr(model, "loss"):
        return model.loss(outputs, label, cross_entropy)
    loss = cross_entropy(outputs["out"], label)
    return loss + aux_weight * cross_entropy(outputs["aux"], label) if "aux" in outputs else loss
