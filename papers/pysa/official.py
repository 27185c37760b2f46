"""Foreign weights for PySA. The authors released none: what can be loaded are ImageNet ResNets."""

from .resnet import load_imagenet


def convert(state_dict, **options):
    """Always raises ValueError: no official PySA checkpoint exists that could be converted."""
    raise ValueError(
        "no official PySA code or weights were ever released, so there is nothing to convert; "
        "ImageNet ResNet files load into the backbone: train.py --paper pysa --weights FILE"
    )


def build_arguments(state_dict, **options):
    """Always raises ValueError, for the same reason as `convert`."""
    convert(state_dict, **options)


def load_backbone(model, state_dict):
    """Copy ImageNet weights into model.backbone, see `resnet.load_imagenet`."""
    return load_imagenet(model.backbone, state_dict)
