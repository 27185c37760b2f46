"""PAN: loops == model, the identities of the mechanism, the readings and what separates them, the
weights of two other projects, exact sizes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .. import model, naive, official, readings
from .golden import seeded

GOLDEN = Path(__file__).parent / "golden"
SIZES = [(8, 8), (9, 13), (1, 1), (2, 5), (3, 1), (16, 4)]


@pytest.fixture(autouse=True)
def float64():
    """Everything here is compared in double precision, from the same random numbers every time."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def randomise(module):
    """Random weights, norms and running statistics that leave every ReLU some positive and some
    negative input."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(part.weight, std=part.weight[0].numel() ** -0.5)
            if part.bias is not None:
                nn.init.normal_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1, 0.1)
            nn.init.normal_(part.bias, 0.3, 0.5)
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module.eval()


def make_fpa(attention="pyramid", global_pool=True, **options):
    if (attention, global_pool) == ("pyramid", True):
        return randomise(model.FPA(3, 4, **options))
    options = {"pyramid_channels": 1, "kernels": (7, 5, 3), "reduction": "avg", **options}
    return randomise(readings.PartialFPA(attention, global_pool, 3, 4, **options))


def make_gau(gate="channel", kernel=3, activation=None):
    if gate == "channel":
        return randomise(model.GAU(3, 4, kernel, activation))
    return randomise(readings.GatedGAU(gate, 3, 4, kernel, activation))


def close(a, b, tolerance=1e-12):
    assert a.shape == b.shape
    assert (a - b).abs().max() < tolerance, (a - b).abs().max()


def differ(a, b):
    assert a.shape == b.shape
    assert (a - b).abs().max() > 1e-3 * a.abs().max()


def same_with_gradients(f, g, inputs, tolerance=1e-11):
    """f and g give the same values and the same gradients with respect to all `inputs`."""
    a, b = f(), g()
    close(a, b, tolerance)
    seed = torch.randn_like(a)
    gradients = (torch.autograd.grad(o, inputs, seed, allow_unused=True) for o in (a, b))
    for x, y in zip(*gradients, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            close(x, y, tolerance)


# ------------------------------------------------------------------------------------ loops ==
# efficient


@pytest.mark.parametrize("size", SIZES)
def test_pool(size):
    x = torch.randn(2, 3, *size, requires_grad=True)
    for reduction in ("avg", "max"):
        same_with_gradients(
            lambda: naive.pool(x, reduction),
            lambda: model.pool(x, reduction),
            [x],  # noqa: B023
        )
    assert model.pool(x).shape[-2:] == tuple(max(1, side // 2) for side in size)


@pytest.mark.parametrize("size", SIZES)
def test_enlarge(size):
    x = torch.randn(2, 2, *size, requires_grad=True)
    for wanted in [size, (2 * size[0], 2 * size[1]), (2 * size[0] + 1, size[1] + 3), (1, 1)]:
        same_with_gradients(lambda: naive.enlarge(x, wanted), lambda: model.enlarge(x, wanted), [x])
    assert model.enlarge(x, size) is x


def test_enlarging_puts_corners_on_corners():
    x = torch.randn(1, 1, 3, 4)
    close(model.enlarge(x, (9, 10))[..., ::8, ::9], x[..., ::2, ::3])
    close(model.enlarge(x, (5, 10))[..., ::2, ::3], x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel": 7},
        {"kernel": 5, "stride": 2},
        {"kernel": 3, "stride": 2, "activation": nn.Identity()},
        {"kernel": 1, "activation": nn.Sigmoid()},
    ],
    ids=str,
)
def test_convolve(options, training):
    block = randomise(model.ConvNorm(2, 3, **options)).train(training)
    for size in [(4, 5), (1, 1), (3, 1)]:
        x = torch.randn(2, 2, *size, requires_grad=True)
        inputs = [x, *block.parameters()]
        same_with_gradients(lambda: naive.convolve(x, block), lambda: block(x), inputs)
        if "stride" not in options:
            assert block(x).shape[-2:] == size


@pytest.mark.parametrize("training", [False, True])
def test_learned_enlargement(training):
    block = randomise(readings.TransposedConvNorm(2, 3)).train(training)
    x = torch.randn(2, 2, 3, 2, requires_grad=True)
    for size in [(6, 4), (5, 5), (7, 3), (1, 4)]:
        same_with_gradients(
            lambda: naive.paint(x, block, size), lambda: block(x, size), [x, *block.parameters()]
        )


def test_global_branch_is_a_convolution_of_the_mean():
    """And, before norm and activation, the mean of the convolution."""
    block, x = make_fpa(), torch.randn(2, 3, 5, 7)
    with torch.no_grad():
        g = block.pooled(x.mean((2, 3), keepdim=True))
        close(naive.convolve(naive.mean(x), block.pooled), g)
        close(torch.relu(block.pooled.bn(block.pooled.conv(x).mean((2, 3), keepdim=True))), g)


def loops_of(block):
    """The definition in naive.py of what an FPA or GAU of any reading computes."""
    return {
        model.FPA: naive.fpa,
        readings.PartialFPA: naive.partial_fpa,
        readings.JwFPA: naive.jw_fpa,
        readings.NoteFPA: naive.note_fpa,
        model.GAU: naive.gau,
        readings.GatedGAU: naive.gated_gau,
        readings.JwGAU: naive.jw_gau,
    }[type(block)]


FPAS = [
    {},
    {"reduction": "max"},
    {"pyramid_channels": 4},
    {"kernels": (3, 3, 3)},
    {"global_pool": False},
    {"reduction": "max", "kernels": (3, 3, 3), "pyramid_channels": 4, "global_pool": False},
    {"attention": "se"},
    {"attention": "none"},
    {"attention": "se", "global_pool": False},
]


@pytest.mark.parametrize(
    "block",
    [
        *(pytest.param(lambda o=o: make_fpa(**o), id=str(o)) for o in FPAS),
        pytest.param(lambda: randomise(readings.JwFPA(3, 2)), id="jw"),
        pytest.param(lambda: randomise(readings.JwFPA(3, 2, True, False)), id="jw without mean"),
        pytest.param(
            lambda: randomise(readings.JwFPA(3, 2, False, False)), id="jw without context"
        ),
        pytest.param(lambda: randomise(readings.NoteFPA(3, 4)), id="note"),
        pytest.param(lambda: randomise(readings.NoteFPA(3, 4, False)), id="note without context"),
    ],
)
def test_fpa(block):
    block = block()
    loops = loops_of(block)
    for size in SIZES:
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            close(loops(x, block), block(x))
            if isinstance(block, readings.JwFPA) and block.attention:
                close(naive.jw_pyramid(x, block), block.pyramid(x))
            elif isinstance(block, readings.NoteFPA) and block.context:
                close(naive.note_pyramid(x, block), block.pyramid(x))
            elif hasattr(block, "down1"):
                close(naive.pyramid(x, block), block.pyramid(x))
    for size in [(4, 5), (1, 2), (9, 6)]:
        x = torch.randn(2, 3, *size, requires_grad=True)
        same_with_gradients(lambda: loops(x, block), lambda: block(x), [x, *block.parameters()])


@pytest.mark.parametrize(
    "block",
    [
        *(
            pytest.param(lambda g=gate, o=options: make_gau(g, **o), id=f"{gate} {options}")
            for gate in ("channel", "none", "spatial", "both")
            for options in ({}, {"activation": nn.Sigmoid(), "kernel": 1})
        ),
        pytest.param(lambda: randomise(readings.JwGAU(4, 3)), id="jw"),
        pytest.param(lambda: randomise(readings.JwGAU(4, 3, gate=False)), id="jw without context"),
    ],
)
def test_gau(block):
    block = block()
    loops = loops_of(block)
    for small, large in [((4, 4), (8, 8)), ((5, 3), (9, 6)), ((1, 1), (1, 1)), ((2, 1), (4, 1))]:
        y, low = torch.randn(2, 4, *small), torch.randn(2, 3, *large)
        with torch.no_grad():
            close(loops(y, low, block), block(y, low))
            if getattr(block, "spatial", None) is not None:
                close(naive.positions(y, large, block), block.positions(y, large))
    y = torch.randn(2, 4, 1, 2, requires_grad=True)
    low = torch.randn(2, 3, 3, 4, requires_grad=True)
    inputs = [y, low, *block.parameters()]
    same_with_gradients(lambda: loops(y, low, block), lambda: block(y, low), inputs)


def test_learned_first_step_keeps_the_size():
    block = randomise(readings.JwGAU(4, 3, enlarges=False))
    y, low = torch.randn(2, 4, 3, 5), torch.randn(2, 3, 3, 5)
    assert block.up.conv.kernel_size == (1, 1)
    close(naive.jw_gau(y, low, block), block(y, low))


class Decoder(nn.Module):
    """PAN without its backbone: maps of 3, 2, 4 and 4 channels -> scores of two classes."""

    decode = model.PAN.decode

    def __init__(self, variant):
        super().__init__()
        if variant == "jw":
            self.fpa = readings.JwFPA(4, 1)
            gaus = [
                readings.JwGAU(4, 4, enlarges=False),
                readings.JwGAU(4, 2),
                readings.JwGAU(2, 3),
            ]
        elif variant == "note":
            self.fpa = readings.NoteFPA(4, 3)
            gaus = [readings.GatedGAU("spatial", c, 3, 3, None) for c in (4, 2, 3)]
        else:
            smp = variant == "smp"
            self.fpa = model.FPA(4, 3, reduction="max" if smp else "avg")
            gaus = [model.GAU(c, 3, activation=nn.Sigmoid() if smp else None) for c in (4, 2, 3)]
        self.gaus = nn.ModuleList(gaus)
        self.head = nn.Conv2d(3, 2, 3, padding=1)

    def classify(self, y, size):
        """PAN.forward or JwPAN.forward on maps that are there already."""
        network = SimpleNamespace(
            backbone=lambda images: None, decode=lambda maps: y, head=self.head
        )
        forward = (readings.JwPAN if isinstance(self.fpa, readings.JwFPA) else model.PAN).forward
        return forward(network, torch.empty(1, 3, *size))["out"]


@pytest.mark.parametrize("variant", list(readings.VARIANTS))
@pytest.mark.parametrize("training", [False, True])
def test_decoder_and_classifier(variant, training, monkeypatch):
    """From the maps of the backbone to the scores, batch statistics included: coarsest map
    first."""
    network = randomise(Decoder(variant)).train(training)
    shapes = [(3, (5, 6)), (2, (3, 3)), (4, (2, 2)), (4, (2, 2))]
    features = [torch.randn(2, c, *size) for c, size in shapes]
    monkeypatch.setattr(naive, "fpa", loops_of(network.fpa))
    monkeypatch.setattr(naive, "gau", loops_of(network.gaus[0]))
    y = network.decode(features)
    close(naive.decode(features, network), y, 1e-9)
    loops = naive.jw_classify if variant == "jw" else naive.classify
    for size in [(9, 12), (10, 11)]:
        close(loops(y, network.head, size), network.classify(y, size), 1e-9)
    inputs = list(network.parameters())[:-2]  # without those of the classifier
    same_with_gradients(
        lambda: naive.decode(features, network), lambda: network.decode(features), inputs, 1e-8
    )


def test_gradients_are_finite_differences():
    x = torch.randn(1, 3, 3, 4, requires_grad=True)
    for options in ({}, {"pyramid_channels": 4}, {"attention": "se"}):
        assert torch.autograd.gradcheck(make_fpa(**options), x)
    assert torch.autograd.gradcheck(randomise(readings.JwFPA(3, 2)), x)
    assert torch.autograd.gradcheck(randomise(readings.NoteFPA(3, 4)), x)
    y, low = (
        torch.randn(1, 4, 1, 2, requires_grad=True),
        torch.randn(1, 3, 2, 3, requires_grad=True),
    )
    for gate in ("channel", "none", "spatial", "both"):
        assert torch.autograd.gradcheck(make_gau(gate=gate), (y, low))


# ------------------------------------------------------------------------------------ identities


def test_an_attention_map_of_ones_leaves_the_master_branch():
    """Pyramid weights 0 and the bias of side1's norm 1: A = 1, F = M + g."""
    block, x = make_fpa(), torch.randn(2, 3, 9, 6)
    for name, part in block.named_modules():
        if isinstance(part, model.ConvNorm) and name.startswith(("down", "side")):
            nn.init.zeros_(part.conv.weight)
            nn.init.zeros_(part.bn.running_mean)
            nn.init.constant_(part.bn.bias, float(name == "side1"))
    close(block.pyramid(x), torch.ones(2, 1, 9, 6))
    close(block(x), block.master(x) + block.pooled(x.mean((2, 3), keepdim=True)))


def test_one_map_for_all_channels_is_a_special_case():
    one, many = make_fpa(), make_fpa(pyramid_channels=4)
    for name in ("down1", "down2", "down3", "side3", "side2", "side1"):
        source, target = getattr(one, name), getattr(many, name)
        nn.init.zeros_(target.conv.weight)
        for c in range(4):
            inputs = slice(None) if name == "down1" else slice(c, c + 1)
            target.conv.weight.data[c, inputs] = source.conv.weight.data[0]
        for key, value in source.bn.state_dict().items():
            target.bn.state_dict()[key].copy_(value)
    for name in ("master", "pooled"):
        getattr(many, name).load_state_dict(getattr(one, name).state_dict())
    x = torch.randn(2, 3, 9, 6)
    close(one(x), many(x))


def test_attention_is_neither_squashed_nor_normalised():
    block, x = make_fpa(), torch.randn(2, 3, 16, 16)
    nn.init.constant_(block.side1.bn.bias, 7)
    a = block.pyramid(x)
    assert a.max() > 5 and a.min() >= 0


class Sketch(nn.Module):
    """The note's module in its own order and sizes: factors of 2, and 16 x 16 where it ends."""

    def __init__(self, inputs, outputs):
        super().__init__()

        def conv(o, kernel, stride=1):
            return nn.Sequential(
                nn.Conv2d(inputs, o, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(o),
                nn.ELU(),
            )

        self.top = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.level2, self.level3 = conv(inputs, 5, 2), conv(inputs, 3, 2)
        self.reduce2, self.reduce3 = conv(outputs, 5), conv(outputs, 3)
        self.main = conv(outputs, 1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)

    def forward(self, x):
        top = F.interpolate(
            self.top(F.adaptive_avg_pool2d(x, 1)), (16, 16), mode="bilinear", align_corners=True
        )
        second = self.level2(x)
        third = self.level3(second)
        pyramid = self.up(self.reduce2(second) + self.up(self.reduce3(third)))
        return self.main(x) * pyramid + top


@pytest.mark.parametrize(
    "widths,training", [((6, 4), False), ((6, 4), True), ((512, 256), False)]
)
def test_the_note_at_its_own_size(widths, training):
    """Equal to the sketch at 16 x 16, and where the sketch cannot go the sizes still fit."""
    theirs, ours = randomise(Sketch(*widths)), readings.NoteFPA(*widths)
    names = {
        "top.": "pooled.", "level2.0.": "down1.conv.", "level2.1.": "down1.bn.",
        "level3.0.": "down2.conv.", "level3.1.": "down2.bn.", "reduce2.0.": "side1.conv.",
        "reduce2.1.": "side1.bn.", "reduce3.0.": "side2.conv.", "reduce3.1.": "side2.bn.",
        "main.0.": "master.conv.", "main.1.": "master.bn.",
    }
    state = {}
    for name, value in theirs.state_dict().items():
        there = next(prefix for prefix in names if name.startswith(prefix))
        state[names[there] + name.removeprefix(there)] = value
    ours.load_state_dict(state)
    theirs.train(training), ours.train(training)
    with torch.no_grad():
        x = torch.randn(2, widths[0], 16, 16)
        close(ours(x), theirs(x), 1e-10)
        assert ours(x[..., :11, :13]).shape == (2, widths[1], 11, 13)


def test_the_attention_of_the_note_reaches_minus_two():
    """Each of the two ELUs comes down to -1, none further; upwards nothing stops them."""
    block, x = randomise(readings.NoteFPA(3, 4)), torch.randn(2, 3, 9, 13)
    for bias, low, high in [(-50, -2, -2 + 1e-9), (50, 90, 110)]:
        for part in (block.side1.bn, block.side2.bn):
            nn.init.constant_(part.bias, bias)
        a = block.pyramid(x)
        assert low <= a.min() and a.max() <= high
    for part in (block.side1.bn, block.side2.bn):
        nn.init.constant_(part.bias, -1)
        nn.init.constant_(part.weight, 3)
    a = block.pyramid(x)
    assert -2 < a.min() < -1 and a.max() > 0


def test_gates_at_their_ends():
    y, low = torch.randn(2, 4, 3, 5), torch.randn(2, 3, 6, 10)
    up = F.interpolate(y, (6, 10), mode="bilinear", align_corners=True)
    plain, channel, spatial, both = (
        make_gau(gate=gate) for gate in ("none", "channel", "spatial", "both")
    )
    for block in (channel, spatial, both):
        block.low.load_state_dict(plain.low.state_dict())

    def open_channels(block, weight):
        nn.init.zeros_(block.channel.bn.weight)
        nn.init.constant_(block.channel.bn.bias, weight)

    def open_positions(block, bias):
        nn.init.zeros_(block.spatial.weight)
        nn.init.constant_(block.spatial.bias, bias)

    open_channels(channel, 1.0)
    close(channel(y, low), plain(y, low))
    open_channels(channel, 0.0)
    close(channel(y, low), up)
    open_positions(spatial, 60.0)
    close(spatial(y, low), plain(y, low))
    open_positions(spatial, -60.0)
    close(spatial(y, low), up)
    open_positions(spatial, 0.0)
    close(spatial(y, low), up + plain.low(low) / 2)
    open_channels(both, 2.0)
    open_positions(both, 0.0)
    close(both(y, low), plain(y, low))


def test_a_fresh_spatial_gate_is_half_open():
    y, low = torch.randn(1, 4, 2, 2), torch.randn(1, 3, 4, 4)
    block = readings.GatedGAU("spatial", 3, 4, 3, None)
    close(block.positions(y, low.shape[-2:]), torch.full((1, 1, 4, 4), 0.5))


def test_spatial_gate_commutes_with_enlarging():
    block, y = make_gau(gate="spatial"), torch.randn(2, 4, 5, 3)
    wanted = torch.sigmoid(block.spatial(model.enlarge(y, (9, 6))))
    close(block.positions(y, (9, 6)), wanted)


def test_channel_gate_does_not_look_at_positions():
    block, y, low = make_gau(), torch.randn(2, 4, 5, 3), torch.randn(2, 3, 5, 3)
    moved = y.flip(-1).roll(2, -2)
    close(block(y, low) - y, block(moved, low) - moved)
    spatial = make_gau(gate="spatial")
    differ(spatial.positions(y, (5, 3)), spatial.positions(y.flip(-1), (5, 3)))


def test_images_of_a_batch_do_not_influence_each_other():
    network, images = randomise(model.build(3, decoder_channels=8)), torch.randn(3, 3, 40, 56)
    close(network(images)["out"], torch.cat([network(image[None])["out"] for image in images]))


# ------------------------------------------------------------------------------------ the three
# readings


def tiny(**options):
    """A narrow network; jw's takes its widths from the backbone."""
    narrow = {} if options.get("variant") == "jw" else {"decoder_channels": 8}
    return model.build(3, **{**narrow, **options})


def outputs(changed, **shared):
    """Scores of two networks with the same weights wherever names and shapes agree; the second has
    the changed options. Learned enlargements get the kernel of bilinear interpolation, so that no
    luck is involved."""
    before, after = randomise(tiny(**shared)), randomise(tiny(**{**shared, **changed}))
    known = before.state_dict()
    kernel = torch.tensor([0.25, 0.75, 0.75, 0.25])
    for name, value in after.state_dict().items():
        if name in known and known[name].shape == value.shape:
            value.copy_(known[name])
    for part in after.modules():
        if isinstance(part, readings.TransposedConvNorm):
            eye = torch.eye(*part.conv.weight.shape[:2])
            part.conv.weight.data.copy_(eye[:, :, None, None] * kernel[:, None] * kernel)
            part.bn.load_state_dict(nn.BatchNorm2d(part.conv.out_channels).state_dict())
    images = torch.randn(2, 3, 48, 80)
    with torch.no_grad():
        return before(images)["out"], after(images)["out"]


# One row of the table of differences each: option, values of paper and smp. jw's are its modules.
ROWS = {
    "dilation": ("torchvision", "all"),
    "pool": ("avg", "max"),
    "decoder_channels": (256, 32),
    "gate_activation": ("relu", "sigmoid"),
    "backbone": ("resnet101", "resnet34"),
    "stem": ((64, 64, 128), ()),
}


def test_the_table_of_readings():
    assert {name: model.DEFAULTS[name] for name in ROWS} == {n: v[0] for n, v in ROWS.items()}
    assert readings.VARIANTS["smp"] == {name: values[1] for name, values in ROWS.items()}
    jw = dict(backbone="resnet50", stem=(), dilation="growing")
    assert readings.VARIANTS["paper"] == {} and readings.VARIANTS["jw"] == jw
    assert readings.VARIANTS["note"] == {"gate": "spatial"}


@pytest.mark.parametrize(
    "changed,shared",
    [
        ({"pool": "max"}, {}),
        ({"pyramid_channels": 8}, {}),
        ({"gate_activation": "sigmoid"}, {}),
        ({"stem": (8, 8, 32)}, {}),
        ({"decoder_channels": 4}, {}),
        ({"low_kernel": 1}, {}),
        ({"gate": "none"}, {}),
        ({"gate": "spatial"}, {}),
        ({"gate": "both"}, {}),
        ({"global_pool": False}, {}),
        ({"attention": "se"}, {}),
        ({"attention": "none"}, {}),
        ({"kernels": (3, 3, 3)}, {}),
        ({"context": False}, {}),
        ({"output_stride": 16}, {}),
        ({"variant": "smp"}, {}),
        ({"variant": "note", "gate": "channel"}, {}),
        ({"context": False}, {"variant": "note"}),
        ({"gate": "channel"}, {"variant": "note"}),
        ({"context": False}, {"variant": "jw"}),
        ({"output_stride": 16}, {"variant": "jw"}),
    ],
    ids=str,
)
def test_every_difference_shows(changed, shared):
    """Each row of the table, each weaker variant: same weights, other scores. None raises an
    error."""
    differ(*outputs(changed, **shared))


@pytest.mark.parametrize("variant", ["paper", "smp"])
def test_jw_is_another_network(variant):
    """Even where its modules hold the weights of the paper's: same width, one map per channel."""

    def copy(source, target):
        known = source.state_dict()
        for name, value in target.state_dict().items():
            if name in known and known[name].shape == value.shape:
                value.copy_(known[name])

    x = torch.randn(2, 4, 16, 24)
    reduction = "max" if variant == "smp" else "avg"
    ours, theirs = model.FPA(4, 4, 4, reduction=reduction), readings.JwFPA(4, 4)
    copy(randomise(ours), randomise(theirs))
    differ(ours(x), theirs(x))
    y, low = torch.randn(2, 4, 4, 6), torch.randn(2, 4, 8, 12)
    ours, theirs = model.GAU(4, 4), readings.JwGAU(4, 4)
    copy(randomise(ours), randomise(theirs))
    differ(ours(y, low), theirs(y, low))


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_dilation_rules(backbone):
    """Three rules for res5; they load the same weights and silently give other scores. At 1/32
    there are none."""
    seen = {}
    for rule in ("torchvision", "all", "growing"):
        network = build_empty(3, backbone=backbone, dilation=rule, decoder_channels=1)
        seen[rule] = [
            (block.conv1 if backbone == "resnet18" else block.conv2).dilation[0]
            for block in network.backbone.layer4
        ]
    depth = len(seen["all"])
    assert seen == {
        "torchvision": [1, 2, 2][:depth],
        "all": [2, 2, 2][:depth],
        "growing": [1, 2, 4][:depth],
    }
    coarse = build_empty(3, backbone=backbone, output_stride=32, dilation="all").backbone
    assert {part.dilation for part in coarse.modules() if isinstance(part, nn.Conv2d)} == {(1, 1)}


def test_dilation_rules_differ():
    features = {}
    networks = {
        rule: model.ResNet("resnet18", (), (1, 2, 2, 1), (1, 1, 1, second), contract)
        for rule, second, contract in [
            ("torchvision", 2, True),
            ("all", 2, False),
            ("growing", (1, 2), False),
        ]
    }
    weights = networks["all"].state_dict()
    images = torch.randn(1, 3, 64, 64)
    for rule, network in networks.items():
        network.load_state_dict(weights)
        features[rule] = network.eval()(images)[-1]
    differ(features["torchvision"], features["all"])
    # "growing" is torchvision's rule while there are only two blocks.
    close(features["torchvision"], features["growing"])


def test_without_context():
    """context=False is the sum of its parts, whatever else was asked for."""
    parts = dict(attention="none", global_pool=False, gate="none")
    before, after = outputs(parts, context=False, gate="both")
    close(before, after)
    network = model.build(3, context=False)
    assert not [
        name for name, _ in network.named_parameters() if "pooled" in name or "channel" in name
    ]
    assert [name for name, _ in network.fpa.named_children()] == ["master"]


# ------------------------------------------------------------------------------------ the network


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def decoder(network):
    return count(network.fpa) + count(network.gaus)


def build_empty(*arguments, **options):
    with torch.device("meta"):
        return model.build(*arguments, **options)


def test_parameter_counts():
    paper = build_empty(21, "resnet101")
    assert (count(paper.fpa), [count(g) for g in paper.gaus]) == (
        1_150_081,
        [2_425_856, 1_246_208, 656_384],
    )
    assert (decoder(paper), count(paper.head)) == (5_478_529, 48_405)
    assert count(paper.backbone) == 42_500_160 + 123_776
    assert (
        decoder(build_empty(21, "resnet50", pyramid_channels=256))
        == 5_478_529 + 33_260_415
        == 38_738_944
    )
    small = build_empty(21, "resnet50", decoder_channels=128)
    assert (decoder(small), count(small.head)) == (2_740_353, 24_213)
    jw = build_empty(21, "jw_resnet50")
    assert (count(jw.fpa), [count(g) for g in jw.gaus]) == (
        115_625_984,
        [13_637_632, 11_275_264, 2_819_584],
    )
    unused = (
        2048 * 1000 + 1000 + 2048 * 20 + 20
    )  # its ImageNet classifier and its classifier of whole images
    assert count(jw) + unused == 169_004_881 and count(jw.head) == 48_405
    sizes = {"none": 590_336, "channel": 656_384, "spatial": 590_593, "both": 656_641}
    for gate, size in sizes.items():
        assert count(build_empty(21, "resnet101", gate=gate).gaus[2]) == size


@pytest.mark.parametrize(
    "backbone,total,decoder_count",
    [
        ("resnet18", 11_373_436, 190_855),
        ("resnet34", 21_481_596, 190_855),
        ("resnet50", 24_265_596, 751_495),
        ("resnet101", 43_257_724, 751_495),
    ],
)
def test_parameter_counts_of_smp(backbone, total, decoder_count):
    """Its 262 biases in front of norms are folded into them and not stored here."""
    network = build_empty(21, "smp_resnet34", backbone=backbone)
    assert decoder(network) + 262 == decoder_count and count(network) + 262 == total
    assert count(network.head) == 6_069


@pytest.mark.parametrize(
    "arguments,whole,part",
    [
        (dict(preset="smp_resnet34"), 29.9, 0.55),
        (dict(preset="smp_resnet34", backbone="resnet50"), 34.7, 2.21),
        (dict(preset="jw_resnet50"), 107.8, 74.6),
        (dict(preset="resnet50"), None, 17.5),
        (dict(preset="resnet50", pyramid_channels=256), None, 25.1),
        (dict(preset="resnet50", decoder_channels=128), None, 8.8),
    ],
    ids=str,
)
def test_multiply_adds(arguments, whole, part):
    """G multiply-adds at 512 x 512, convolutions and matrix products, counted while running without
    numbers. The decoder is counted without the classifier."""
    network = build_empty(21, **arguments).eval()
    giga = []
    for step in ("backbone", "decode", "classify"):
        with FlopCounterMode(display=False) as counter:
            if step == "backbone":
                y = network.backbone(torch.empty(1, 3, 512, 512, device="meta"))
            elif step == "decode":
                y = network.decode(y)
            else:
                network.head(y)
        giga.append(counter.get_total_flops() / 2e9)
    assert whole is None or round(sum(giga), 1) == whole
    assert round(giga[1], len(str(part).split(".")[1])) == part


@pytest.mark.parametrize("preset", list(model.PRESETS))
def test_sizes(preset):
    """Any size from 32 x 32 on; the maps of the backbone are at 1/4, 1/8, 1/16, 1/16 (tiny: 1/4,
    1/8, 1/8)."""
    network = build_empty(5, preset).eval()
    fractions = (4, 8, 8) if preset == "tiny" else (4, 8, 16, 16)
    for height, width in [(32, 32), (97, 33)]:
        images = torch.empty(1, 3, height, width, device="meta")
        features = network.backbone(images)
        assert [tuple(f.shape[-2:]) for f in features] == [
            (-(-height // f), -(-width // f)) for f in fractions
        ]
        assert network.decode(features).shape[-2:] == features[0].shape[-2:]
        assert network(images)["out"].shape == (1, 5, height, width)


@pytest.mark.parametrize("variant", list(readings.VARIANTS))
def test_output_stride_32(variant):
    options = dict(variant=variant, backbone="resnet18", output_stride=32, stem=())
    network = build_empty(5, **options).eval()
    images = torch.empty(1, 3, 65, 70, device="meta")
    assert [tuple(f.shape[-2:]) for f in network.backbone(images)] == [
        (17, 18),
        (9, 9),
        (5, 5),
        (3, 3),
    ]
    assert network(images)["out"].shape == (1, 5, 65, 70)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"context": False},
        {"gate": "both"},
        {"gate": "spatial"},
        {"attention": "se"},
        {"pyramid_channels": 8},
        {"pool": "max", "kernels": (3, 3, 3), "low_kernel": 1},
        {"variant": "smp"},
        {"variant": "jw"},
        {"variant": "jw", "context": False},
        {"variant": "note"},
        {"variant": "note", "context": False},
    ],
    ids=str,
)
def test_every_network_runs_and_every_parameter_learns(options):
    network = tiny(**options).train()
    for (
        part
    ) in network.modules():  # a little further from zero, so that no ReLU is shut for all pixels
        if isinstance(part, nn.BatchNorm2d):
            nn.init.constant_(part.bias, 0.5)
    scores = network(torch.randn(4, 3, 96, 80))
    assert set(scores) == {"out"}
    (scores["out"] * torch.randn_like(scores["out"])).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("preset", list(model.PRESETS))
@pytest.mark.parametrize("training", [False, True])
def test_every_layer_is_called(preset, training):
    """So that hooks, summaries, pruning and quantisation see all of them."""
    for options in ({}, {"context": False}):
        assert layers_called(build_empty(3, preset, **options).train(training))
    parts = {"gate": "both"}, {"attention": "se"}, {"global_pool": False}, {"variant": "note"}
    for options in parts:
        assert layers_called(tiny(**options).to("meta").train(training))


def layers_called(network):
    """The names of the modules with parameters of their own; all must run in a forward pass."""
    owners = {n for n, part in network.named_modules() if list(part.parameters(recurse=False))}
    called = set()
    for name, part in network.named_modules():
        part.register_forward_hook(lambda *_, name=name: called.add(name))
    network(torch.empty(2, 3, 64, 96, device="meta"))
    assert owners <= called, owners - called
    return owners


def test_one_image_cannot_be_trained_on():
    network = model.build(3, decoder_channels=8).train()
    with pytest.raises(ValueError, match="at least 2 images per process"):
        network(torch.randn(1, 3, 64, 64))
    assert network(torch.randn(2, 3, 32, 32))["out"].shape == (2, 3, 32, 32)
    assert network.eval()(torch.randn(1, 3, 32, 32))["out"].shape == (1, 3, 32, 32)
    # Without maps of one pixel a single image is enough.
    assert model.build(3, context=False).train()(torch.randn(1, 3, 64, 64))["out"].shape == (
        1,
        3,
        64,
        64,
    )


def test_network_is_its_parts():
    """Scores at 1/4, enlarged last, corners on corners; the deepest low-level map first."""
    network, images = randomise(model.build(3, decoder_channels=8)), torch.randn(2, 3, 40, 56)
    quarter, eighth, last = network.backbone(images)
    y = network.gaus[1](network.gaus[0](network.fpa(last), eighth), quarter)
    wanted = F.interpolate(network.head(y), (40, 56), mode="bilinear", align_corners=True)
    close(network(images)["out"], wanted)


@pytest.mark.parametrize("variant", list(readings.VARIANTS))
def test_tiny_without_context_cannot_see_the_key(variant):
    """The premise of the `shapes` scenes: measured by input gradients, not computed by a formula.
    Enlarging puts corners on corners and shifts what a pixel sees, by another amount everywhere: so
    many pixels are asked."""
    network = model.build(12, variant=variant, context=False).eval()
    network.requires_grad_(False)
    for pixel in [(64, 64), (0, 0), (127, 127), (127, 64), (60, 67), (71, 72), (100, 40), (8, 119)]:
        images = torch.randn(1, 3, 128, 128, requires_grad=True)
        network(images)["out"][0, :, *pixel].sum().backward()
        rows, columns = images.grad.abs().amax((0, 1)).nonzero().T
        assert 8 < max((rows - pixel[0]).abs().max(), (columns - pixel[1]).abs().max()) < 64
    sees = model.build(12, variant=variant).eval()
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    sees(images)["out"][0, :, 64, 64].sum().backward()
    assert (images.grad.abs().amax((0, 1)) > 0).double().mean() > 0.95


def test_mistakes_are_named():
    for options, message in [
        (
            dict(preset="huge"),
            "unknown preset 'huge'; valid: tiny, resnet50, resnet101, smp_resnet34, jw_resnet50",
        ),
        (dict(chanels=3), "unknown option 'chanels'; valid: variant, backbone, .*decoder_channels"),
        (dict(variant="mine"), "unknown variant 'mine'; valid: paper, smp, jw, note"),
        (dict(gate="open"), "unknown gate 'open'; valid: channel, none, spatial, both"),
        (dict(pool="sum"), "unknown pool 'sum'; valid: avg, max"),
        (dict(attention="full"), "unknown attention 'full'; valid: pyramid, se, none"),
        (dict(gate_activation="tanh"), "unknown gate_activation 'tanh'; valid: relu, sigmoid"),
        (dict(low_kernel=2), "unknown low_kernel 2; valid: 3, 1"),
        (dict(dilation="some"), "unknown dilation 'some'; valid: torchvision, all, growing"),
        (dict(output_stride=32), "unknown output_stride 32; valid: 8, 16"),
        (dict(backbone="resnet18", output_stride=8), "unknown output_stride 8; valid: 16, 32"),
        (dict(pyramid_channels=3), "pyramid_channels must be 1 or the width 64, not 3"),
        (dict(kernels=(7, 4, 3)), "kernels must be three odd numbers"),
        (
            dict(variant="jw", gate="none"),
            "unknown option of variant jw 'gate'; valid: variant, back",
        ),
        (
            dict(variant="note", pyramid_channels=64),
            "unknown option of variant note 'pyramid_channels'; valid: variant, .*, gate_activ",
        ),
        (dict(backbone="vgg"), "unknown backbone 'vgg'; valid: resnet18"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.build(3, **options)


# ------------------------------------------------------------------------------------ weights from
# elsewhere


def sampled(x):
    """What is recorded of a large output [B, C, H, W]: of every channel a row, a column and an
    eighth of the pixels, where the seed says. Of other outputs all is recorded."""
    if x.shape[-1] < 64:
        return x
    (_, _, height, width), draw, values = x.shape, np.random.RandomState(0), []
    for channel in x.flatten(0, 1):
        values += [channel[draw.randint(height)], channel[:, draw.randint(width)]]
        values.append(channel.flatten()[draw.permutation(height * width)[: height * width // 8]])
    return torch.cat(values)


@pytest.fixture(scope="module")
def smp():
    """(golden case, its weights under smp's names)."""
    case = seeded.load_case(GOLDEN / "pan_smp_resnet34_256x256.npz")
    weights = {
        name: torch.as_tensor(value) for name, value in seeded.seeded_state(case["shapes"]).items()
    }
    return case, weights


def test_smp_golden(smp):
    case, weights = smp
    meta, wanted = (
        case["meta"],
        {name: torch.from_numpy(value) for name, value in case["outputs"].items()},
    )
    network = build_empty(**official.build_arguments(weights))
    network.load_state_dict(official.convert(weights), assign=True)
    images = torch.from_numpy(seeded.seeded_image(meta["input_shape"], meta["input_seed"])).double()

    def relative(a, b):
        a = sampled(a)
        assert a.shape == b.shape
        assert (a - b).abs().max() < 1e-4 * b.abs().max()

    network.eval()
    with torch.no_grad():
        features = network.backbone(images.float())
        f = network.fpa(features[-1])
        relative(network.fpa.pyramid(features[-1]), wanted["attention"])
        relative(f, wanted["fpa"])
        gate = network.gaus[0].channel(f.mean((2, 3), keepdim=True))
        relative(gate, wanted["gate_gau3"])
        relative(network.decode(features), wanted["gau1"])
        relative(network(images.float())["out"], wanted["logits"])

    # In float32 these norms are off by percents: BatchNorm over two pooled values amplifies
    # rounding.
    network.double()
    loss = network.train()(images)["out"].square().mean()
    assert abs(loss.item() / meta["train_loss"] - 1) < 1e-9
    loss.backward()
    modules = network.backbone, network.fpa, *network.gaus, network.head
    parts = dict(zip(meta["grad_norm"], modules, strict=True))
    assert list(parts) == [
        "encoder.",
        "decoder.fpa.",
        "decoder.gau3.",
        "decoder.gau2.",
        "decoder.gau1.",
        "segmentation_head.",
    ]
    for prefix, part in parts.items():
        norm = torch.stack([p.grad.square().sum() for p in part.parameters()]).sum().sqrt().item()
        assert abs(norm / meta["grad_norm"][prefix] - 1) < 1e-7, prefix


def test_smp_biases_move_into_the_norms(smp):
    """Dropping the biases instead is no error anywhere, and wrong."""
    _, weights = smp
    torch.set_default_dtype(torch.float32)
    network = build_empty(**official.build_arguments(weights)).eval()
    images = torch.randn(1, 3, 64, 64)
    converted = official.convert(weights)
    network.load_state_dict(converted, assign=True)
    right = network(images)["out"]
    mean = "fpa.master.bn.running_mean"
    close(
        converted[mean],
        weights["decoder.fpa.mid.0.bn.running_mean"] - weights["decoder.fpa.mid.0.conv.bias"],
        1e-7,
    )
    for name, value in weights.items():
        if name.endswith("conv.bias"):
            weights = {**weights, name: torch.zeros_like(value)}
    network.load_state_dict(official.convert(weights))
    differ(right, network(images)["out"])


def test_smp_errors(smp):
    _, weights = smp
    wrapped = {
        "state_dict": {f"model.{name}": value for name, value in weights.items()},
        "epoch": 3,
    }
    assert official.convert(wrapped).keys() == official.convert(weights).keys()
    assert official.build_arguments(wrapped) == {
        "num_classes": 3,
        "preset": "smp_resnet34",
        "backbone": "resnet34",
        "decoder_channels": 32,
    }
    aside = {**weights, "classification_head.3.weight": torch.zeros(5, 512)}
    assert official.convert(aside).keys() == official.convert(weights).keys()
    broken = {
        **weights,
        "decoder.gau9.weight": torch.zeros(1),
        "decoder.fpa.conv2.bn.bias": torch.zeros(2),
    }
    del broken["decoder.gau2.conv1.1.conv.bias"], broken["encoder.layer4.0.conv1.weight"]
    with pytest.raises(
        ValueError,
        match=r"2 missing \(encoder.layer4.0.conv1.weight, decoder.gau2.conv1.1.conv.bias\)"
        r"; 1 unexpected \(decoder.gau9.weight\); 1 of another shape \(decoder.fpa.conv2.bn.bias ",
    ):
        official.convert(broken)
    headless = {name: value for name, value in weights.items() if "segmentation_head" not in name}
    with pytest.raises(ValueError, match=r"1 missing \(segmentation_head.0.weight\)"):
        official.build_arguments(headless)
    other = {
        name: value for name, value in weights.items() if not name.startswith("encoder.layer3.4")
    }
    with pytest.raises(
        ValueError, match="none of resnet18, resnet34, resnet50, resnet101: 5 basic blocks"
    ):
        official.convert(other)
    with pytest.raises(
        ValueError, match="neither a checkpoint of segmentation_models.pytorch's PAN .* nor of"
    ):
        official.convert({"conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="neither"):
        official.build_arguments({})


@pytest.mark.parametrize(
    "name,arguments",
    [
        *(
            (
                f"smp-{backbone}",
                {
                    "num_classes": 21,
                    "preset": "smp_resnet34",
                    "backbone": backbone,
                    "decoder_channels": 32,
                },
            )
            for backbone in ("resnet18", "resnet34", "resnet50", "resnet101")
        ),
        ("javeywang-resnet50", {"num_classes": 21, "preset": "jw_resnet50"}),
    ],
)
def test_every_known_checkpoint_converts(name, arguments):
    with torch.device("meta"):
        shapes = json.loads((GOLDEN / "pan_keys.json").read_text())[name]
        weights = {key: torch.empty(shape) for key, shape in shapes.items()}
    assert official.build_arguments(weights) == arguments
    wanted = build_empty(**arguments).state_dict()
    converted = official.convert(weights)
    assert {key: value.shape for key, value in converted.items()} == {
        key: value.shape for key, value in wanted.items()
    }


def test_jw_file_as_its_project_writes_it():
    with torch.device("meta"):
        shapes = json.loads((GOLDEN / "pan_keys.json").read_text())["javeywang-resnet50"]
        flat = {key: torch.empty(shape) for key, shape in shapes.items()}
    nested = {part: {} for part in ("convnet", "pan", "classifier", "mask_classifier")}
    for name, value in flat.items():
        part, _, rest = name.partition(".")
        nested[part][rest] = value
    file = {**nested, "epoch": 100, "best_acc": 93.19, "optimizer": {"state": {}}}
    assert official.convert(file).keys() == official.convert(flat).keys()
    old = {name: value for name, value in flat.items() if not name.endswith("num_batches_tracked")}
    assert official.convert(old)["fpa.master.bn.num_batches_tracked"] == 0
    del nested["pan"]["fpa.conv_upsample_1.weight"]
    with pytest.raises(
        ValueError, match=r"no complete jw checkpoint of PAN: 1 missing \(pan.fpa.conv_up"
    ):
        official.convert(file)


class JwFPA(nn.Module):
    """jw's module written down from its description, under its names."""

    def __init__(self, c, mid):
        super().__init__()
        norm = nn.BatchNorm2d

        def conv(i, o, k, s=1):
            return nn.Conv2d(i, o, k, s, k // 2, bias=False)

        self.conv_master, self.bn_master = conv(c, c, 1), norm(c)
        self.conv_gpb, self.bn_gpb = conv(c, c, 1), norm(c)
        self.conv7x7_1, self.bn1_1 = conv(c, mid, 7, 2), norm(mid)
        self.conv5x5_1, self.bn2_1 = conv(mid, mid, 5, 2), norm(mid)
        self.conv3x3_1, self.bn3_1 = conv(mid, mid, 3, 2), norm(mid)
        self.conv7x7_2, self.bn1_2 = conv(mid, mid, 7), norm(mid)
        self.conv5x5_2, self.bn2_2 = conv(mid, mid, 5), norm(mid)
        self.conv3x3_2, self.bn3_2 = conv(mid, mid, 3), norm(mid)
        for level, outputs in ((3, mid), (2, mid), (1, c)):
            setattr(
                self,
                f"conv_upsample_{level}",
                nn.ConvTranspose2d(mid, outputs, 4, 2, 1, bias=False),
            )
            setattr(self, f"bn_upsample_{level}", norm(outputs))

    def forward(self, x):
        master = self.bn_master(self.conv_master(x))
        pooled = self.bn_gpb(self.conv_gpb(F.adaptive_avg_pool2d(x, 1)))
        d1 = F.relu(self.bn1_1(self.conv7x7_1(x)))
        d2 = F.relu(self.bn2_1(self.conv5x5_1(d1)))
        d3 = F.relu(self.bn3_1(self.conv3x3_1(d2)))
        s1, s2, s3 = (
            self.bn1_2(self.conv7x7_2(d1)),
            self.bn2_2(self.conv5x5_2(d2)),
            self.bn3_2(self.conv3x3_2(d3)),
        )
        t2 = F.relu(s2 + F.relu(self.bn_upsample_3(self.conv_upsample_3(s3))))
        t1 = F.relu(s1 + F.relu(self.bn_upsample_2(self.conv_upsample_2(t2))))
        return F.relu(master * F.relu(self.bn_upsample_1(self.conv_upsample_1(t1))) + pooled)


class JwGAU(nn.Module):
    def __init__(self, high, low, upsample):
        super().__init__()
        self.upsample = upsample
        self.conv3x3, self.bn_low = (
            nn.Conv2d(low, low, 3, padding=1, bias=False),
            nn.BatchNorm2d(low),
        )
        self.conv1x1, self.bn_high = nn.Conv2d(high, low, 1, bias=False), nn.BatchNorm2d(low)
        if upsample:
            self.conv_upsample = nn.ConvTranspose2d(high, low, 4, 2, 1, bias=False)
            self.bn_upsample = nn.BatchNorm2d(low)
        else:
            self.conv_reduction, self.bn_reduction = (
                nn.Conv2d(high, low, 1, bias=False),
                nn.BatchNorm2d(low),
            )

    def forward(self, high, low):
        gate = F.relu(self.bn_high(self.conv1x1(F.adaptive_avg_pool2d(high, 1))))
        if self.upsample:
            up = self.bn_upsample(self.conv_upsample(high))
        else:
            up = self.bn_reduction(self.conv_reduction(high))
        return F.relu(up + gate * self.bn_low(self.conv3x3(low)))


@pytest.mark.parametrize("training", [False, True])
def test_jw_decoder_is_its_transcription(training):
    """At small widths, on sides that are multiples of 8, through the table of names that real files
    go through."""
    theirs = randomise(
        nn.ModuleDict(
            {
                "fpa": JwFPA(8, 2),
                "gau_block1": JwGAU(8, 6, False),
                "gau_block2": JwGAU(6, 5, True),
                "gau_block3": JwGAU(5, 4, True),
            }
        )
    )
    ours = Decoder("jw")
    ours.fpa = readings.JwFPA(8, 2)
    ours.gaus = nn.ModuleList(
        readings.JwGAU(*widths) for widths in [(8, 6, False), (6, 5, True), (5, 4, True)]
    )
    del ours.head
    weights = {f"pan.{name}": value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(
        {name: weights[official.translate(name, official.JW)] for name in ours.state_dict()}
    )
    ours.train(training), theirs.train(training)
    features = [
        torch.randn(2, c, *size)
        for c, size in [(4, (32, 64)), (5, (16, 32)), (6, (8, 16)), (8, (8, 16))]
    ]
    y = theirs["fpa"](features[3])
    for number, low in enumerate(features[2::-1]):
        y = theirs[f"gau_block{number + 1}"](y, low)
    close(ours.decode(features), y, 1e-10)


def test_imagenet_weights():
    source, target = model.build(3), model.build(3)
    weights = {f"module.{name}": value + 1 for name, value in source.backbone.state_dict().items()}
    weights["module.fc.weight"] = torch.zeros(1000, 128)
    assert "backbone" in official.load_backbone(target, {"state_dict": weights})
    for name, value in target.backbone.state_dict().items():
        close(value, source.backbone.state_dict()[name] + 1)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    del weights["module.conv1.weight"]
    weights["module.layer9.weight"] = torch.zeros(1)
    with pytest.raises(
        ValueError, match=r"1 missing \(conv1.weight\); 1 unexpected \(layer9.weight\)"
    ):
        official.load_backbone(target, weights)
    for name, value in target.state_dict().items():
        close(value, before[name])
    plain = build_empty(3, "resnet50", stem=()).backbone.state_dict()
    plain = {name: torch.zeros(value.shape) for name, value in plain.items()}
    deep = model.build(3, "resnet50")
    assert "its deep stem keeps its initial weights" in official.load_backbone(deep, plain)
    assert deep.backbone.conv1.weight.abs().max() > 0
    assert deep.backbone.layer2[0].conv1.weight.abs().max() == 0
