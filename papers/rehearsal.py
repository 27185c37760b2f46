"""What a training needs is tried before it begins."""

import torch

from common import processes
from common.guard import name_the_flag, name_the_image
from common.inference import Protocol, normalise, predict
from common.recipe import half_precision


def rehearse(model, samples, val_set, recipe, device="cpu", precision="float32", compile=False):
    """Forward passes of a batch and of a validation image, without a trace. Raises UserError for
    flags that do not fit, too little memory and unreadable data, before anything is written."""
    model.to(device, memory_format=torch.channels_last).train()
    buffers = [buffer.clone() for buffer in model.buffers()]  # BatchNorm counts every pass
    count = recipe.batch_size // processes.count() // recipe.accumulate
    with name_the_flag(recipe, device), half_precision(precision, device)[0]:
        images = torch.stack([samples[number][0] for number in range(count)])
        network = torch.compile(model) if compile else model
        network(normalise(images, device).contiguous(memory_format=torch.channels_last))
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    with name_the_image():
        (image, _), _ = val_set[0], val_set[len(val_set) - 1]
        predict(model.eval(), image, Protocol(scales=(recipe.test_scale,)), device)
