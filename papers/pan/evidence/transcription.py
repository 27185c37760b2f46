"""PAN as segmentation_models_pytorch (smp) writes it, transcribed, under its names."""

import torch
import torch.nn.functional as F
from torch import nn


def resize(x, *size):
    """Bilinear, corner pixels onto corner pixels."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


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
        self.down3 = nn.Sequential(
            nn.MaxPool2d(2, 2), conv_bn_relu(1, 1, 3), conv_bn_relu(1, 1, 3))
        self.conv2 = conv_bn_relu(1, 1, 5)
        self.conv1 = conv_bn_relu(1, 1, 7)

    def forward(self, x):
        h, w = x.shape[2:]
        pooled = resize(self.branch1(x), h, w)
        mid = self.mid(x)
        x1 = self.down1(x)
        x2 = self.down2(x1)
        a = resize(self.down3(x2), h // 4, w // 4)
        a = resize(a + self.conv2(x2), h // 2, w // 2)
        a = resize(a + self.conv1(x1), h, w)
        return torch.mul(a, mid) + pooled


class SmpGAU(nn.Module):
    """Global Attention Upsample as smp writes it, under its names."""

    def __init__(self, low, outputs):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv_bn_relu(outputs, outputs, 1, relu=False), nn.Sigmoid())
        self.conv2 = conv_bn_relu(low, outputs, 3)

    def forward(self, low, high):
        return resize(high, *low.shape[2:]) + torch.mul(self.conv2(low), self.conv1(high))


class SmpPAN(nn.Module):
    """smp's whole network around the ResNet of this repository."""

    def __init__(self, encoder, classes, width=32):
        super().__init__()
        self.encoder = encoder
        *low, last = encoder.channels
        self.decoder = nn.Module()
        self.decoder.fpa = SmpFPA(last, width)
        self.decoder.gau3, self.decoder.gau2, self.decoder.gau1 = (
            SmpGAU(channels, width) for channels in low[::-1])
        self.segmentation_head = nn.Sequential(
            nn.Conv2d(width, classes, 3, padding=1),
            nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True))

    def decode(self, features):
        """The decoder without the head. features: the maps of the encoder, finest first."""
        x = self.decoder.fpa(features[3])
        x = self.decoder.gau3(features[2], x)
        x = self.decoder.gau2(features[1], x)
        return self.decoder.gau1(features[0], x)

    def forward(self, images):
        return self.segmentation_head(self.decode(self.encoder(images)))
