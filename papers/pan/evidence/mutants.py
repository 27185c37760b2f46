"""Mistakes that people make with this paper. `make mutants` plants them one by one in a copy of the repository and
reports whether the tests of this folder notice.

(what, old text, new text): `old` occurs exactly once in model.py.
"""

MUTANTS = [
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
    ("enlarged without corners on corners", 'mode="bilinear", align_corners=True)', 'mode="bilinear")'),
    (
        "enlarged by a factor instead of to the size of the finer map",
        'F.interpolate(x, size, mode="bilinear", align_corners=True)',
        'F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)',
    ),
    (
        "learned enlargement always doubles, odd maps do not fit",
        "more = [max(0, wanted - 2 * side)",
        "more = [0 * max(0, wanted - 2 * side)",
    ),
    ("learned enlargement left too large", "[:, :, : size[0], : size[1]]  # [B, D, H, W]", "  # [B, D, H, W]"),
    ("ReLU missing behind the convolutions", '"relu": torch.relu,', '"relu": lambda x: x,'),
    ("padding that shrinks the map", "stride, kernel // 2, bias=False", "stride, kernel // 3, bias=False"),
    (
        "the pyramid reads the unpooled map",
        "d1 = convolve(pool(x, block.pool), block.down1)",
        "d1 = convolve(x, block.down1)",
    ),
    (
        "max pooling forgotten below the first level",
        "convolve(pool(d1, block.pool), block.down2)",
        "convolve(pool(d1), block.down2)",
    ),
    ("the bottom of the pyramid is convolved once, not twice", "a3 = convolve(d3, block.side3)", "a3 = d3"),
    (
        "a level of the pyramid left out",
        "convolve(d2, block.side2) + enlarge(",
        "0 * convolve(d2, block.side2) + enlarge(",
    ),
    ("levels multiplied, not added", "convolve(d1, block.side1) + enlarge(", "convolve(d1, block.side1) * enlarge("),
    (
        "attention squashed by a sigmoid",
        "return enlarge(a1, x.shape[-2:], block.up1)",
        "return enlarge(a1, x.shape[-2:], block.up1).sigmoid()",
    ),
    ("attention added instead of multiplied", "f = f * pyramid(x, block)", "f = f + pyramid(x, block)"),
    ("global branch left out", "f = f + g  # Eq. (6)", "f = f + 0 * g"),
    ("global branch multiplied like a gate", "f = f + g  # Eq. (6)", "f = f * g"),
    ("a ReLU too many behind the sums", 'return torch.relu(x) if block.relu == "sums" else x', "return torch.relu(x)"),
    ("no ReLU behind the sums of jw", 'return torch.relu(x) if block.relu == "sums" else x', "return x"),
    ("SE gate by ReLU", "torch.sigmoid(block.excite(hidden))", "torch.relu(block.excite(hidden))"),
    ("global maximum in place of the mean", "F.linear(x.mean((2, 3)), ", "F.linear(x.amax((2, 3)), "),
    (
        "spatial gate without its sigmoid",
        "return torch.sigmoid(enlarge(block.spatial(high), size))",
        "return enlarge(block.spatial(high), size)",
    ),
    (
        "gate on the high-level map",
        "torch.addcmul(up, channel_gate(high, block), detail)",
        "torch.addcmul(detail, channel_gate(high, block), up)",
    ),
    (
        "skip connection lost where there is no gate",
        "up = up + detail if block.channel is None else",
        "up = up if block.channel is None else",
    ),
    (
        "gate activation ignored",
        "ConvNorm(high, outputs, activation=activation) if gate in",
        "ConvNorm(high, outputs) if gate in",
    ),
    ("spatial gate starts anywhere", "nn.init.zeros_(self.spatial.weight)", "pass"),
    ("low-level kernel ignored", "self.low = ConvNorm(low, outputs, kernel,", "self.low = ConvNorm(low, outputs, 3,"),
    (
        "GAUs read the low-level maps in the wrong order",
        "zip(features[-2::-1], gau_blocks)",
        "zip(features[:-1], gau_blocks)",
    ),
    ("scores enlarged by the nearest pixel always", 'if interpolation == "nearest":', "if True:"),
    ("first block of res5 dilated against torchvision's rule", 'contract=dilation == "torchvision"', "contract=False"),
    ("smp's first block of res5 not dilated", 'contract=dilation == "torchvision"', "contract=True"),
    ("dilation at output stride 32", "blocks if last_stride == 1 else 1", "blocks"),
    (
        "context=False keeps the gate",
        'attention, global_pool, gate = "none", False, "none"',
        'attention, global_pool = "none", False',
    ),
    (
        "one image in training fails deep inside BatchNorm",
        "if single and block.bn.training",
        "if False and block.bn.training",
    ),
    (
        "smp with the gate of the paper",
        'decoder_channels=32, gate_activation="sigmoid"',
        'decoder_channels=32, gate_activation="relu"',
    ),
    ("an option overrides nothing", "{**VARIANTS[variant], **options}", "{**options, **VARIANTS[variant]}"),
]
