"""What Feature Pyramid Attention costs, against full attention and against the usual way of writing this network.

  python -m papers.pan.evidence.cost                             all tables
  python -m papers.pan.evidence.cost counts                      parameters and multiply-adds; no timing
  python -m papers.pan.evidence.cost attention                   FPA against full pairwise attention on the same map: time and memory
  python -m papers.pan.evidence.cost network                     variant "smp" against a plain transcription of that project's network
  python -m papers.pan.evidence.cost gates CHECKPOINT FILE.png   no benchmark: what the gates of a trained network look like

One thread, float32, inference. Candidates take turns; medians and their ratios are printed.
"""

import copy
import sys

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import datasets
from common import checkpoint
from common.inference import normalise
from datasets import pictures
from .. import model, official

from studies.measure import peak_memory, times

CROPS, SIDES = (256, 384), (32, 64)  # side of the image for `network`, of the map for `attention`

# ------------------------------------------------------------------------ smp's network, transcribed


def conv_bn_relu(inputs, outputs, kernel, relu=True):
    """smp's building block: convolution with bias, BatchNorm, ReLU if asked for."""
    block = nn.Sequential()
    block.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    block.bn = nn.BatchNorm2d(outputs)
    if relu:
        block.activation = nn.ReLU(inplace=True)
    return block


class SmpFPA(nn.Module):
    """Feature Pyramid Attention as smp writes it, under its names."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.branch1 = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_bn_relu(inputs, outputs, 1))
        self.mid = nn.Sequential(conv_bn_relu(inputs, outputs, 1))
        self.down1 = nn.Sequential(nn.MaxPool2d(2, 2), conv_bn_relu(inputs, 1, 7))
        self.down2 = nn.Sequential(nn.MaxPool2d(2, 2), conv_bn_relu(1, 1, 5))
        self.down3 = nn.Sequential(nn.MaxPool2d(2, 2), conv_bn_relu(1, 1, 3), conv_bn_relu(1, 1, 3))
        self.conv2 = conv_bn_relu(1, 1, 5)
        self.conv1 = conv_bn_relu(1, 1, 7)

    def forward(self, x):
        h, w = x.shape[2:]
        enlarge = dict(mode="bilinear", align_corners=True)
        pooled = F.interpolate(self.branch1(x), (h, w), **enlarge)
        mid = self.mid(x)
        x1 = self.down1(x)
        x2 = self.down2(x1)
        a = F.interpolate(self.down3(x2), (h // 4, w // 4), **enlarge)
        a = F.interpolate(a + self.conv2(x2), (h // 2, w // 2), **enlarge)
        a = F.interpolate(a + self.conv1(x1), (h, w), **enlarge)
        return torch.mul(a, mid) + pooled


class SmpGAU(nn.Module):
    """Global Attention Upsample as smp writes it, under its names."""

    def __init__(self, low, outputs):
        super().__init__()
        self.conv1 = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_bn_relu(outputs, outputs, 1, relu=False), nn.Sigmoid())
        self.conv2 = conv_bn_relu(low, outputs, 3)

    def forward(self, low, high):
        up = F.interpolate(high, low.shape[2:], mode="bilinear", align_corners=True)
        return up + torch.mul(self.conv2(low), self.conv1(high))


class SmpPAN(nn.Module):
    """smp's whole network around the ResNet of this repository."""

    def __init__(self, encoder, classes, width=32):
        super().__init__()
        self.encoder = encoder
        *low, last = encoder.channels
        self.decoder = nn.Module()
        self.decoder.fpa = SmpFPA(last, width)
        self.decoder.gau3, self.decoder.gau2, self.decoder.gau1 = (SmpGAU(c, width) for c in low[::-1])
        self.segmentation_head = nn.Sequential(
            nn.Conv2d(width, classes, 3, padding=1), nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True)
        )

    def decode(self, features):
        """The decoder without the head. features: the maps of the encoder, finest first."""
        x = self.decoder.fpa(features[3])
        x = self.decoder.gau3(features[2], x)
        x = self.decoder.gau2(features[1], x)
        return self.decoder.gau1(features[0], x)

    def forward(self, images):
        return self.segmentation_head(self.decode(self.encoder(images)))


def network():
    """Time of our "smp" variant against the transcription, same weights, whole network and decoder alone."""
    torch.manual_seed(0)
    ours = model.build(21, "smp_resnet34").eval()
    theirs = SmpPAN(copy.deepcopy(ours.backbone), 21).eval()
    ours.load_state_dict(official.convert(theirs.state_dict()))
    last, plain = torch.channels_last, torch.contiguous_format
    networks = {}
    for name, net in (("transcription", theirs), ("ours", ours)):
        for form, memory in (("", plain), (", channels last", last)):
            networks[name + form] = copy.deepcopy(net).to(memory_format=memory)
    with torch.inference_mode():
        for side in CROPS:
            images = {name: torch.randn(1, 3, side, side).contiguous(
                memory_format=last if "last" in name else plain) for name in networks}
            images = {name: value.copy_(images["ours"]) for name, value in images.items()}
            maps = {name: (net.backbone if "ours" in name else net.encoder)(images[name])
                    for name, net in networks.items()}

            def whole(name):
                return networks[name](images[name])

            def decoder(name):
                net = networks[name]
                if "ours" in name:
                    return model.decode(maps[name], net.fpa, net.gaus)
                return net.decode(maps[name])

            scores = whole("transcription")
            difference = (whole("ours")["out"] - scores).abs().max() / scores.abs().max()
            print(f"\nresnet34, D = 32, 21 classes, {side} x {side}; relative difference {difference:.1e}")
            print(f"{'':32}{'ms':>9}{'ratio':>8}   (ratio: time of the transcription / time of this)")
            for what, step, rounds in (("decoder", decoder, 15), ("network", whole, 5)):
                seconds = times({name: (lambda name=name, step=step: step(name)) for name in networks}, rounds)
                for name, value in seconds.items():
                    print(f"{what}, {name:23}{1e3 * value:9.1f}{seconds['transcription'] / value:8.2f}")


# ------------------------------------------------------------------------ FPA against full attention

C, D, KEYS = 2048, 256, 256


class FullAttention(nn.Module):
    """Attention between all pixels of a map: keys and queries of KEYS channels, values of C, then C -> D as in FPA."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = nn.Conv2d(C, KEYS, 1), nn.Conv2d(C, KEYS, 1), nn.Conv2d(C, C, 1)
        self.master = nn.Conv2d(C, D, 1)

    def forward(self, x):
        q, k, v = (p(x).flatten(2).transpose(1, 2)[:, None] for p in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v)  # [B, 1, hw, C]
        return self.master(mixed[:, 0].transpose(1, 2).unflatten(2, x.shape[-2:]))


def make(form, side):
    """The function to measure on a side x side map."""
    torch.manual_seed(0)
    block = {"FPA": lambda: model.FPA(C, D), "full attention": FullAttention}[form]().eval()
    x = torch.randn(1, C, side, side)

    def step():
        with torch.inference_mode():
            block(x)

    return step


def attention():
    """Time and extra memory of FPA and of full attention on the last map of a ResNet-50 or -101."""
    print(f"\nC = {C}, D = {D}, K = 1, keys of {KEYS} channels")
    for side in SIDES:
        candidates = {form: make(form, side) for form in ("FPA", "full attention")}
        seconds = times(candidates, rounds=5 if side == SIDES[0] else 3)
        memory = {form: peak_memory(make, form, side) for form in candidates}
        print(f"{side} x {side} map (image {16 * side} x {16 * side}): {'ms':>9}{'ratio':>8}{'extra MiB':>11}")
        for form in candidates:
            print(f"{form:38}{1e3 * seconds[form]:9.1f}{seconds[form] / seconds['FPA']:8.1f}{memory[form]:11.0f}")


# ------------------------------------------------------------------------ counts


def multiply_adds(function):
    """G multiply-adds of convolutions and matrix products in `function()`, and its result."""
    with FlopCounterMode(display=False) as counter:
        result = function()
    return counter.get_total_flops() / 2e9, result


def counts():
    """Parameters and multiply-adds at 512 x 512 with 21 classes, counted on tensors without numbers."""
    print(f"\n{'':38}{'parameters':>12}{'decoder':>12}{'G mul-adds':>12}{'decoder':>9}{'FPA':>7}{'head':>7}")
    rows = [("smp_resnet34", dict(backbone=f"resnet{depth}")) for depth in (18, 34, 50, 101)]
    rows += [("jw_resnet50", {}), ("resnet50", {}), ("resnet101", {}), ("resnet101", dict(pyramid_channels=256)),
             ("resnet101", dict(decoder_channels=128)), ("resnet101", dict(context=False))]
    for preset, options in rows:
        with torch.device("meta"):
            net, images = model.build(21, preset, **options).eval(), torch.empty(1, 3, 512, 512)
        backbone, features = multiply_adds(lambda net=net, images=images: net.backbone(images))
        fpa, _ = multiply_adds(lambda net=net, features=features: net.fpa(features[-1]))
        decoder, y = multiply_adds(lambda net=net, features=features: model.decode(features, net.fpa, net.gaus))
        head, _ = multiply_adds(lambda net=net, y=y: net.head(y))
        total = sum(p.numel() for p in net.parameters())
        own = sum(p.numel() for part in (net.fpa, net.gaus) for p in part.parameters())
        name = ", ".join([preset, *(f"{key}={value}" for key, value in options.items())])
        print(f"{name:38}{total:12,}{own:12,}{backbone + decoder + head:12.1f}{decoder:9.2f}{fpa:7.2f}{head:7.2f}")
    with torch.device("meta"):
        full, x = FullAttention(), torch.empty(1, C, 32, 32)
        print(f"full attention on a map of 32 x 32: {multiply_adds(lambda: full(x))[0]:.2f} G multiply-adds")


# ------------------------------------------------------------------------ pictures of the gates


def grey(values, size):
    """A map [h, w] -> picture uint8 [H, W, 3], its smallest value black and its largest white."""
    values = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-12)
    picture = Image.fromarray((255 * values).round().byte().numpy()).resize(size[::-1], Image.Resampling.NEAREST)
    return np.repeat(np.asarray(picture)[..., None], 3, axis=2)


@torch.inference_mode()
def gates(path, target):
    """Write a picture with the attention map and the gates of every step for four validation scenes."""
    state = checkpoint.load_run(path)
    config = state["config"]
    net = model.build(config["num_classes"], config["preset"], **config["options"]).eval()
    net.load_state_dict(state["model"])
    scenes = datasets.load("shapes", None, "val")
    titles, rows = [], []
    for number in range(4):
        image, _ = scenes[number]
        found = net.gates(normalise(image)[None])
        titles, row = ["image"], [np.asarray(image)]
        for name, values in found.items():
            titles.append(name)
            values = values[0].mean(0) if name == "attention" else values[0].squeeze()
            if values.ndim == 1:  # a gate per channel is no picture of the image: its channels as a strip
                values = values[None]
            row.append(grey(values, image.shape[:2]))
        rows.append(row)
    pictures.save_png(target, pictures.grid(titles, rows))
    print(f"pictures: {target}")


def main():
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["gates"]:
        return gates(*sys.argv[2:])
    for step in (counts, attention, network):
        if len(sys.argv) == 1 or step.__name__ == sys.argv[1]:
            step()


if __name__ == "__main__":
    main()
