"""Foreign weights for PySA. The authors released none, so all there is to load are ImageNet ResNets."""


def convert(state_dict):
    """Always raises ValueError: no official PySA checkpoint exists that could be converted."""
    raise ValueError(
        "no official PySA code or weights were ever released, so there is nothing to convert; "
        "ImageNet ResNet files load into the backbone: python train.py --paper pysa --weights FILE"
    )


def build_arguments(state_dict):
    """Always raises ValueError, for the same reason as `convert`."""
    convert(state_dict)


def load_backbone(model, state_dict):
    """Copy the ImageNet weights of a ResNet (torchvision's names; deep stems: conv1..conv3) into model.backbone.

    The file may be bare or wrapped in "state_dict" or "model", its names may start with "module." or
    "backbone."; its classifier is left aside. Returns a sentence that says what was loaded. Raises ValueError
    that lists missing, unexpected and misshapen weights; the model is then left as it was.
    """
    for wrapper in ("state_dict", "model"):
        state_dict = state_dict.get(wrapper, state_dict)
    found = {}
    for name, value in state_dict.items():
        for prefix in ("module.", "backbone."):
            name = name.removeprefix(prefix)
        if not name.startswith("fc."):
            found[name] = value
    wanted = model.backbone.state_dict()
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in wanted]
    misshapen = [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
    if missing or unexpected or misshapen:
        raise ValueError(
            "these weights are of another backbone: "
            + "; ".join(
                f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                for kind, names in (("missing", missing), ("unexpected", unexpected), ("of other shape", misshapen))
                if names
            )
        )
    model.backbone.load_state_dict({**wanted, **found})
    return f"loaded {len(found)} tensors into the backbone"
