"""Mistakes that people make with this paper. `make mutants` plants them one by one in a copy of the
repository and reports whether the tests of this folder notice.

{file: [(what, old text, new text), ...]}: `old` occurs exactly once in the file.
"""

MUTANTS = {
    "model.py": [
        (
            "max pooling where average was asked for",
            'if reduction == "max" else F.avg_pool2d',
            "if True else F.avg_pool2d",
        ),
        (
            "2x2 pooling that breaks on sides of one pixel",
            "window = [min(2, side) for side in x.shape[-2:]]",
            "window = 2",
        ),
        (
            "enlarged without corners on corners",
            'mode="bilinear", align_corners=True)',
            'mode="bilinear")',
        ),
        (
            "enlarged by a factor instead of to the size of the finer map",
            'F.interpolate(x, size, mode="bilinear", align_corners=True)',
            'F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)',
        ),
        (
            "ReLU missing after the convolutions",
            "self.activation = activation or nn.ReLU()",
            "self.activation = activation or nn.Identity()",
        ),
        (
            "activation before the norm",
            "return self.activation(normalise(self.conv(x), self.bn))",
            "return normalise(self.activation(self.conv(x)), self.bn)",
        ),
        (
            "padding that shrinks the map",
            "stride, kernel // 2, bias=False",
            "stride, kernel // 3, bias=False",
        ),
        (
            "the pyramid reads the unpooled map",
            "x1 = self.down1(pool(x, self.reduction))",
            "x1 = self.down1(x)",
        ),
        (
            "max pooling forgotten below the first level",
            "x2 = self.down2(pool(x1, self.reduction))",
            "x2 = self.down2(pool(x1))",
        ),
        (
            "the bottom of the pyramid is convolved once, not twice",
            "a3 = self.side3(x3)",
            "a3 = x3",
        ),
        (
            "C5(X2) left out of A2",
            "a2 = self.side2(x2) + enlarge(",
            "a2 = 0 * self.side2(x2) + enlarge(",
        ),
        (
            "levels multiplied, not added",
            "a1 = self.side1(x1) + enlarge(",
            "a1 = self.side1(x1) * enlarge(",
        ),
        (
            "attention squashed by a sigmoid",
            "return enlarge(a1, x.shape[-2:])",
            "return enlarge(a1, x.shape[-2:]).sigmoid()",
        ),
        ("attention added instead of multiplied", "return m * a + g", "return m + a + g"),
        ("the summary g left out", "return m * a + g", "return m * a + 0 * g"),
        ("the summary g multiplied", "return m * a + g", "return m * a * g"),
        (
            "global maximum in place of the mean",
            "g = self.pooled(x.mean((2, 3), keepdim=True))",
            "g = self.pooled(x.amax((2, 3), keepdim=True))",
        ),
        (
            "the gate reads a maximum in place of the mean",
            "w = self.channel(y.mean((2, 3), keepdim=True))",
            "w = self.channel(y.amax((2, 3), keepdim=True))",
        ),
        (
            "gate on the coarse map",
            "enlarge(y, low.shape[-2:]) + w * detail",
            "w * enlarge(y, low.shape[-2:]) + detail",
        ),
        (
            "gate activation ignored",
            "ConvNorm(outputs, outputs, activation=activation)",
            "ConvNorm(outputs, outputs)",
        ),
        (
            "low-level kernel ignored",
            "self.low = ConvNorm(inputs, outputs, kernel)",
            "self.low = ConvNorm(inputs, outputs, 3)",
        ),
        (
            "GAUs read the low-level maps in the wrong order",
            "zip(self.gaus, lows[::-1], strict=True)",
            "zip(self.gaus, lows, strict=True)",
        ),
        (
            "first block of res5 dilated against torchvision's rule",
            'strides, dilations, contract=dilation == "torchvision"',
            "strides, dilations, contract=False",
        ),
        (
            "smp's first block of res5 not dilated",
            'strides, dilations, contract=dilation == "torchvision"',
            "strides, dilations, contract=True",
        ),
        ("dilation at output stride 32", "[dilation] if dilated else 1", "[dilation]"),
        (
            "one image in training fails deep inside BatchNorm",
            "if single and bn.training",
            "if False and bn.training",
        ),
    ],
    "readings.py": [
        (
            "learned enlargement always doubles, odd maps do not fit",
            "painted = [max(n, 2 * side)",
            "painted = [2 * side",
        ),
        (
            "learned enlargement left too large",
            "return self.activation(y)[:, :, : size[0], : size[1]]",
            "return self.activation(y)",
        ),
        (
            "the pyramid added, not multiplied, where a branch is left out",
            "f = f * self.pyramid(x)                             # (A)",
            "f = f + self.pyramid(x)                             # (A)",
        ),
        (
            "global branch left out of squeeze-and-excitation",
            "f = f + self.pooled(x.mean((2, 3), keepdim=True))   # (E)",
            "f = f + 0 * self.pooled(x.mean((2, 3), keepdim=True))",
        ),
        ("no ReLU after the sum of jw's FPA", "return torch.relu(f)", "return f"),
        (
            "a ReLU too many after jw's convolutions",
            "self.master = ConvNorm(inputs, inputs, activation=plain)",
            "self.master = ConvNorm(inputs, inputs)",
        ),
        ("no ReLU after the sum of jw's GAU", "return torch.relu(up + detail)",
         "return up + detail"),
        (
            "jw's pyramid does not stride",
            "self.down2 = ConvNorm(channels, channels, 5, stride=2)",
            "self.down2 = ConvNorm(channels, channels, 5)",
        ),
        (
            "SE gate by ReLU",
            "torch.sigmoid(self.excite(hidden))",
            "torch.relu(self.excite(hidden))",
        ),
        (
            "spatial gate without its sigmoid",
            "return torch.sigmoid(enlarge(self.spatial(y), size))",
            "return enlarge(self.spatial(y), size)",
        ),
        (
            "skip connection lost where there is no gate",
            "return enlarge(y, low.shape[-2:]) + detail",
            "return enlarge(y, low.shape[-2:]) + 0 * detail",
        ),
        ("spatial gate starts anywhere", "nn.init.zeros_(self.spatial.weight)", "pass"),
        ("jw's scores enlarged smoothly", 'mode="nearest"', 'mode="bilinear"'),
        (
            "context=False keeps the gate",
            'o.update(attention="none", global_pool=False, gate="none")',
            'o.update(attention="none", global_pool=False)',
        ),
        (
            "smp with the gate of the paper",
            'decoder_channels=32,\n        gate_activation="sigmoid"',
            'decoder_channels=32,\n        gate_activation="relu"',
        ),
        (
            "an option overrides nothing",
            "{**DEFAULTS, **VARIANTS[variant], **preset, **options}",
            "{**DEFAULTS, **options, **VARIANTS[variant], **preset}",
        ),
        (
            "the variant overrides the preset",
            "{**DEFAULTS, **VARIANTS[variant], **preset, **options}",
            "{**DEFAULTS, **preset, **VARIANTS[variant], **options}",
        ),
        (
            "the note's attention squashed, so that it is never negative",
            "return enlarge(a1, x.shape[-2:])                        # (N)",
            "return enlarge(a1, x.shape[-2:]).relu()                 # (N)",
        ),
        (
            "the second level of the note reads the map, not the first level",
            "a2 = self.side2(self.down2(x1))",
            "a2 = self.side2(self.down2(x))",
        ),
        (
            "a norm more in the global branch of the note",
            "self.pooled = nn.Conv2d(inputs, outputs, 1, bias=False)",
            "self.pooled = ConvNorm(inputs, outputs, activation=nn.Identity())",
        ),
        (
            "the note keeps its pyramid without context",
            "fpa = functools.partial(NoteFPA, context=o[\"context\"])",
            "fpa = NoteFPA",
        ),
        (
            "the note with the gate of the paper",
            '"note": dict(gate="spatial")',
            '"note": {}',
        ),
        (
            "max pooling of the options is forgotten",
            'reduction=o["pool"])',
            'reduction="avg")',
        ),
    ],
}
