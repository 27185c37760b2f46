"""Half precision: the forward pass computes in it, the weights stay float32."""

import torch

PRECISIONS = ("float32", "bfloat16", "float16")


def half_precision(name, device):
    """(the context for forward passes in one of PRECISIONS, the scaler of the loss)."""
    kind = torch.device(device).type
    autocast = torch.autocast(kind, getattr(torch, name), enabled=name != "float32")
    # float16 has no room for small gradients: the loss is scaled up and the gradients back.
    return autocast, torch.amp.GradScaler(kind, enabled=name == "float16")
