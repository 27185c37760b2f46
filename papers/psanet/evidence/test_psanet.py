"""PSANet: loops == whiteboard == one view == tiles, the identities of the mechanism, the official
network, sizes."""

import functools
import itertools
import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from .. import fast, model, naive, official, resnet
from .golden import seeded

GOLDEN = Path(__file__).parent / "golden"
DIRECTIONS = ("collect", "distribute")
SIZES = [(3, 4), (4, 2), (2, 2), (1, 4), (4, 1), (1, 1)]


@pytest.fixture(autouse=True)
def float64():
    """Everything is compared in double precision unless it says otherwise, from the same random
    numbers."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(a, b, tolerance=1e-10):
    assert a.shape == b.shape
    assert (a - b).abs().max() < tolerance, (a - b).abs().max()


def same_with_gradients(f, g, inputs, tolerance=1e-10):
    """f and g give the same values and the same gradients with respect to all `inputs`."""
    a, b = f(), g()
    close(a, b, tolerance)
    seed = torch.randn_like(a)
    for x, y in zip(torch.autograd.grad(a, inputs, seed), torch.autograd.grad(b, inputs, seed)):
        close(x, y, tolerance)


def random_inputs(size, mask_size, batch=2):
    """(q, table, v) with logits far from uniform."""
    q = 1.5 * torch.randn(batch, 3, *size)
    return [
        t.requires_grad_()
        for t in (q, torch.randn(mask_size[0] * mask_size[1], 3), torch.randn(batch, 4, *size))
    ]


def masks(size):
    """Full, smaller, larger, larger in one axis and smaller in the other, even."""
    return [(2 * size[0] - 1, 2 * size[1] - 1), (3, 3), (9, 9), (9, 1), (4, 2)]


def run(form, direction, q, table, v, mask_size, softmax, tile=None):
    """model.collect, fast.dense or fast.Stream with the arguments of model.collect."""
    if form == "whiteboard":
        return getattr(model, direction)(q, table, v, mask_size, softmax)
    table = model.fit_table(table, mask_size, q.shape[-2:])
    q, v = (t.permute(0, 2, 3, 1).contiguous() for t in (q, v))
    if form == "dense":
        return fast.dense(direction, q, table, v, softmax).permute(0, 3, 1, 2)
    return fast.Stream.apply(direction, q, table, v, softmax, tile).permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------ loops ==
# matrix == tiles


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("softmax", [True, False])
def test_loops_whiteboard_view_and_tiles(direction, size, softmax):
    for mask_size in masks(size):
        q, table, v = inputs = random_inputs(size, mask_size)
        loops = getattr(naive, direction)(q, table, v, mask_size, softmax)
        seed = torch.randn_like(loops)
        gradients = torch.autograd.grad(loops, inputs, seed)
        forms = [("whiteboard", None), ("dense", None)] + [
            ("stream", tile) for tile in ((1, size[1]), (2, 2), (1, 1), size, (9, 9))
        ]
        for form, tile in forms:
            z = run(form, direction, q, table, v, mask_size, softmax, tile)
            close(loops, z)
            for x, y in zip(gradients, torch.autograd.grad(z, inputs, seed)):
                close(x, y)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("factor", [1.0, 2.5, None])
def test_public_functions_choose_a_form_and_divide(direction, factor, monkeypatch):
    size, mask_size = (3, 4), (5, 3)
    q, table, v = inputs = random_inputs(size, mask_size)
    used = []
    monkeypatch.setattr(fast, "dense", lambda *a, f=fast.dense: used.append("dense") or f(*a))
    monkeypatch.setattr(fast, "TILE", 2)
    arguments = (q, table, v, mask_size, True, factor)
    for largest in (2 * 12 * 35, 2 * 12 * 35 - 1):  # exactly the over-complete map, and one less
        monkeypatch.setattr(fast, "LARGEST_DENSE", largest)
        for form in (model, fast):
            same_with_gradients(
                lambda: getattr(naive, direction)(*arguments),
                lambda: getattr(form, direction)(*arguments),
                inputs,
            )
    assert used == ["dense"]
    for form in (model, fast):
        with pytest.raises(ValueError, match="needs a table of 15 rows, not 9"):
            getattr(form, direction)(q, table[:9], v, mask_size)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_tiles_at_a_real_size_in_both_memory_layouts(direction):
    q, table, v = inputs = [
        torch.randn(2, 8, 17, 23, requires_grad=True),
        torch.randn(33 * 45, 8, requires_grad=True),
        torch.randn(2, 5, 17, 23, requires_grad=True),
    ]
    assert 2 * 17 * 23 * 33 * 45 > fast.LARGEST_DENSE
    matrix = lambda: run("dense", direction, q, table, v, (33, 45), True)  # noqa: E731
    last = [t.contiguous(memory_format=torch.channels_last) for t in (q, v)]
    for form in (model, fast):
        attend = getattr(form, direction)
        same_with_gradients(matrix, lambda: attend(q, table, v, (33, 45)), inputs)
        close(matrix(), attend(last[0], table, last[1], (33, 45)))
        close(
            matrix(),
            torch.cat([attend(q[i : i + 1], table, v[i : i + 1], (33, 45)) for i in range(2)]),
        )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradcheck(direction):
    q, table, v = random_inputs((3, 2), (5, 3), batch=1)
    assert torch.autograd.gradcheck(
        lambda *a: run("stream", direction, *a, (5, 3), True, (2, 1)), (q, table, v)
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_huge_logits_do_not_overflow(direction):
    """Later tiles bring ever larger logits: the running maximum must follow."""
    q = 1e4 * torch.arange(1.0, 7).view(1, 1, 6, 1).expand(1, 1, 6, 2)
    table, v = torch.randn(11 * 3, 1), torch.randn(1, 3, 6, 2)
    z = run("stream", direction, q, table, v, (11, 3), True, (1, 1))
    assert z.isfinite().all()
    close(z, run("dense", direction, q, table, v, (11, 3), True))


@pytest.mark.parametrize("form", [model, fast])
def test_lower_precision_is_computed_in_float32(form):
    q, table, v = (t.float() for t in random_inputs((4, 5), (7, 9)))
    small = table[:20]
    for attend in (
        lambda q, v: form.collect(q, table, v, (7, 9)),
        lambda q, v: form.distribute(q, table, v, (7, 9)),
        lambda q, v: form.compact(q, small, v, "collect"),
        lambda q, v: form.compact(q, small, v, "collect", False),
    ):
        exact = attend(q, v)
        with torch.autocast("cpu", torch.bfloat16):
            close(attend(q, v), exact, 1e-6)
        assert attend(q.bfloat16(), v.bfloat16()).dtype == torch.float32
    lower = [t.detach().bfloat16() for t in (q, table, v)]
    close(form.collect(*lower, (7, 9)), form.collect(*(t.float() for t in lower), (7, 9)), 1e-6)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_lower_precision(fast, dtype):
    torch.set_default_dtype(torch.float32)
    for options in ({}, {"compact": True, "crop_size": 64}):
        net = model.build(3, channels=8, fast=fast, **options).eval()
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            exact = net(images)["out"]
            logits = net.to(dtype)(images.to(dtype))["out"]
        assert logits.dtype == dtype
        close(logits.float(), exact, 0.05 * exact.abs().max())


# ------------------------------------------------------------------------------------ what the
# mechanism means


def test_windows_are_a_view_and_read_the_right_offsets():
    logits = torch.arange(2 * 3 * 4 * 5 * 7.0).view(2, 3, 4, 5, 7)
    p = fast.windows(logits, (3, 4))
    assert p.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()
    for k, l, s, t in itertools.product(range(3), range(4), range(3), range(4)):
        assert torch.equal(p[:, k, l, s, t], logits[:, k, l, s - k + 2, t - l + 3])
    assert p[0].unique().numel() == (3 * 4) ** 2  # no cell twice
    later = torch.arange(3 * 3 * 4 * 5 * 7.0).view(3, 3, 4, 5, 7)[
        1:
    ]  # does not start at its storage's beginning
    assert fast.windows(later, (3, 4))[0, 0, 0, 0, 0] == later[0, 0, 0, 2, 3]


@pytest.mark.parametrize("form", [model, fast])
def test_both_directions_read_the_same_matrix(form):
    """P[owner, other]: its rows are a collector's logits, its columns those of a receiver that is
    given to."""
    size, mask_size = (3, 4), (5, 7)
    q, table, _ = random_inputs(size, mask_size)
    v = (
        torch.eye(12).view(1, 12, *size).expand(2, -1, -1, -1)
    )  # z then holds the weights themselves
    collected = form.collect(q, table, v, mask_size, softmax=False).flatten(
        2
    )  # [B, source = other, receiver = owner]
    given = form.distribute(q, table, v, mask_size, softmax=False).flatten(
        2
    )  # [B, source = owner, receiver = other]
    close(collected, given.transpose(1, 2))


@pytest.mark.parametrize("functions", [naive, model, fast])
def test_direction_of_one_huge_offset(functions):
    """A table that speaks for the offset (1, -2) only: collect looks there, distribute receives
    from the opposite."""
    height, width, offset = 5, 6, (1, -2)
    q, v, table = (
        torch.ones(1, 1, height, width),
        torch.randn(1, 3, height, width),
        torch.zeros(9, 11, 1),
    )
    table[offset[0] + 4, offset[1] + 5] = 1e3
    table = table.flatten(0, 1)
    collected, given = (
        functions.collect(q, table, v, (9, 11)),
        functions.distribute(q, table, v, (9, 11)),
    )
    for k, l in itertools.product(range(height), range(width)):
        ahead, behind = (k + offset[0], l + offset[1]), (k - offset[0], l - offset[1])
        if 0 <= ahead[0] < height and 0 <= ahead[1] < width:
            close(collected[..., k, l], v[..., ahead[0], ahead[1]])
        if 0 <= behind[0] < height and 0 <= behind[1] < width:
            close(given[..., k, l], v[..., behind[0], behind[1]])


@pytest.mark.parametrize("form", [model, fast])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_weights_of_a_receiver_sum_to_one_and_zero_tables_average(direction, form):
    q, table, v = random_inputs((4, 5), (7, 9))
    function = getattr(form, direction)
    close(function(q, table, torch.ones_like(v), (7, 9)), torch.ones_like(v))
    close(function(q, 0 * table, v, (7, 9)), v.mean((2, 3), keepdim=True).expand_as(v))


@pytest.mark.parametrize("form", [model, fast])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_offsets_outside_the_mask_have_the_logit_zero(direction, form):
    """Not minus infinity: if everything inside the window is hugely negative, all weight goes
    outside it."""
    v = torch.zeros(1, 1, 5, 5)
    v[..., 2:, 2:] = (
        1  # the 3 x 3 window of the corner pixel (4, 4) holds ones only, and so do 5 pixels outside
    )
    z = getattr(form, direction)(torch.ones(1, 1, 5, 5), torch.full((9, 1), -1e4), v, (3, 3))
    close(z[0, 0, 4, 4], torch.tensor(5 / 21))


# ------------------------------------------------------------------------------------ compact maps


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("softmax,factor", [(True, 1.0), (False, None), (True, None), (False, 2.5)])
@pytest.mark.parametrize("form", [model, fast])
def test_compact(direction, softmax, factor, form):
    for size in ((3, 4), (1, 5), (1, 1)):
        q, table, v = inputs = random_inputs(size, size)
        arguments = (q, table, v, direction, softmax, factor)
        same_with_gradients(
            lambda: naive.compact(*arguments), lambda: form.compact(*arguments), inputs
        )


def test_compact_has_no_offsets():
    """Everything moved by one pixel: with offsets what is looked at moves along, with positions it
    does not."""
    q, v = torch.randn(1, 3, 6, 6), torch.randn(1, 2, 6, 6)
    moved = [t.roll(1, -1) for t in (q, v)]
    table = torch.randn(11 * 11, 3).view(11, 11, 3)
    table[:, [0, 1, 2, 3, 7, 8, 9, 10]] = -1e3  # looks at most one column aside
    q = q.abs()
    moved[0] = moved[0].abs()
    z = model.collect(q, table.flatten(0, 1), v, (11, 11))
    close(model.collect(moved[0], table.flatten(0, 1), moved[1], (11, 11))[..., 2:5], z[..., 1:4])
    positions = torch.randn(36, 3)
    z = model.compact(q, positions, v, "collect")
    assert (
        model.compact(*(moved[0], positions, moved[1]), "collect")[..., 2:5] - z[..., 1:4]
    ).abs().max() > 0.1


def test_compact_knows_one_map_size():
    module = small_psa(compact=True, mask_size=(3, 4)).eval()
    assert module(torch.randn(1, 6, 5, 7)).shape == (1, 6, 3, 4)
    with pytest.raises(ValueError, match="one size of map, 5 x 7, not 7 x 5"):  # the same area
        module(torch.randn(1, 6, 7, 5))
    for form in (model, fast):
        with pytest.raises(ValueError, match="12 rows fits no map of 3 x 5"):
            form.compact(
                torch.randn(1, 2, 3, 5), torch.randn(12, 2), torch.randn(1, 2, 3, 5), "collect"
            )
    net = model.build(3, compact=True, crop_size=64).eval()
    for side in (50, 64, 65):
        assert net(torch.randn(1, 3, side, 64))["out"].shape == (1, 3, side, 64)
    net.backbone = None  # it is said before anything is computed
    for size in ((65, 66), (49, 65), (128, 128)):
        with pytest.raises(
            ValueError, match=f"65 x 65 or up to 15 pixels less per side, not {size[0]} x {size[1]}"
        ):
            net(torch.randn(1, 3, *size))


# ------------------------------------------------------------------------------------ the module


def small_psa(directions=DIRECTIONS, mask_size=(5, 7), shrink_factor=2, **options):
    """A module whose norms and running statistics are random."""
    module = model.PSA(6, 4, directions, mask_size, shrink_factor, **options)
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, std=3.0 if name.endswith("table") else 1.0)
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 1.5)
    return module


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"directions": ("collect",)},
        {"directions": ("distribute",)},
        {"shrink_factor": 1},
        {"shrink_factor": 3},
        {"softmax": False, "factor": None},
        {"compact": True, "mask_size": (4, 3)},
        {"compact": True, "mask_size": (4, 3), "directions": ("distribute",)},
    ],
)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_psa_module(options, training, fast):
    module = small_psa(fast=fast, **options).train(training)
    step = module.shrink_factor
    x = torch.randn(2, 6, 3 * step + 1, 2 * step + 1, requires_grad=True)
    same_with_gradients(
        lambda: naive.psa(x, module), lambda: module(x), [x, *module.parameters()], 1e-9
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_training_statistics_come_from_the_whole_map(training, fast):
    module = small_psa(fast=fast).train(training)
    before = module.branches[0].reduce[1].running_mean.clone()
    x = torch.randn(2, 6, 7, 5)
    module(x)
    expected = (
        0.9 * before + 0.1 * module.branches[0].reduce[0](x).mean((0, 2, 3)) if training else before
    )
    close(module.branches[0].reduce[1].running_mean, expected)


def test_shrinking_is_picking():
    for size, factor in (((9, 13), 2), ((5, 7), 1), ((7, 10), 3)):
        x = torch.randn(2, 3, *size)
        close(naive.shrink(x, factor), model.shrink(x, factor))


def test_maps_that_shrinking_would_miscompute_are_refused():
    with pytest.raises(ValueError, match="height of the map, 8, is not 1 . a multiple of 2"):
        small_psa()(torch.randn(1, 6, 8, 9))
    with pytest.raises(ValueError, match="width of the map, 9, is not 1 . a multiple of 3"):
        small_psa(shrink_factor=3)(torch.randn(1, 6, 7, 9))


def test_every_projection_acts_on_one_pixel_alone():
    """A widespread port pads its 1x1 projection by 1 and resizes the result back: every shape is
    right and every value wrong: its corners see nothing but the frame. One impulse in a corner
    shows it."""
    module = small_psa().eval()
    z = torch.randn(1, 8, 5, 7)
    changed = z.clone()
    changed[..., 0, 0] += 1

    def touched(project):
        return (project(changed) - project(z)).abs().amax((0, 1)) > 1e-9

    def padded(z):
        convolution, *rest = module.project
        y = F.conv2d(z, convolution.weight, padding=1)
        for layer in rest:
            y = layer(y)
        return F.interpolate(y, z.shape[-2:], mode="bilinear", align_corners=True)

    only = torch.zeros(5, 7, dtype=torch.bool)
    only[0, 0] = True
    assert torch.equal(touched(module.project), only)
    assert padded(z).shape == module.project(z).shape and not torch.equal(touched(padded), only)
    assert all(m.padding == (0, 0) for m in module.modules() if isinstance(m, torch.nn.Conv2d))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_classifier_taps_before_enlarging(factor):
    for h, w in ((3, 4), (1, 3), (1, 1)):
        x = torch.randn(2, 3, (h - 1) * factor + 1, (w - 1) * factor + 1, requires_grad=True)
        context, weight = (
            torch.randn(2, 2, h, w, requires_grad=True),
            torch.randn(5, 5, 3, 3, requires_grad=True),
        )
        arguments = (x, context, weight, factor)
        same_with_gradients(
            lambda: naive.classify(*arguments),
            lambda: fast.classify(*arguments),
            [x, context, weight],
        )


# ------------------------------------------------------------------------------------ the network


def official_forward(net, images):
    """The network as the official code writes it: no padding, no savings. Images of official sizes
    only."""
    *_, features = net.backbone(images)
    y = features
    if net.psa is not None:
        y = torch.cat(
            [features, naive.enlarge(naive.psa(features, net.psa), net.psa.shrink_factor)], dim=1
        )
    return naive.enlarge(net.classifier(y), net.zoom_factor)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"psa_type": "collect"},
        {"psa_type": "distribute", "psa_softmax": False, "normalization_factor": None},
        {"mask_size": (3, 5)},
        {"shrink_factor": 1, "zoom_factor": 2},
        {"zoom_factor": 1},
        {"context": False},
        {"compact": True, "crop_size": 33},
    ],
)
@pytest.mark.parametrize("fast", [False, True])
def test_network_is_the_official_one_at_official_sizes(options, fast):
    net = model.build(3, channels=8, fast=fast, **options).double().eval()
    side = 33 if options.get("compact") else 49
    images = torch.randn(1, 3, 33, side)
    logits = net(images)["out"]
    close(logits, official_forward(net, images))
    if options.get("zoom_factor", 8) == 8:
        assert logits.shape[-2:] == images.shape[-2:]


@pytest.mark.parametrize("height,width", [(32, 32), (33, 40), (50, 70), (97, 32)])
@pytest.mark.parametrize("context", [True, False])
def test_any_image_size(height, width, context):
    net = model.build(3, context=context).eval()
    images = torch.randn(1, 3, height, width)
    logits = net(images)["out"]
    assert logits.shape == (1, 3, height, width)
    step = 16 if context else 8
    padded = torch.zeros(
        1, 3, *(math.ceil((side - 1) / step) * step + 1 for side in (height, width))
    )
    padded[..., :height, :width] = images
    close(logits, net(padded)["out"][..., :height, :width])


def test_training_outputs_and_loss():
    cross_entropy = functools.partial(F.cross_entropy, ignore_index=255)
    for zoom in (8, 2):
        net = model.build(5, zoom_factor=zoom)
        outputs = net(torch.randn(2, 3, 64, 48))
        assert set(outputs) == {"out", "aux"} and outputs["aux"].shape == outputs["out"].shape
        label = torch.randint(5, (2, 64, 48))
        picked = label if zoom == 8 else label[:, ::4, ::4]
        expected = cross_entropy(outputs["out"], picked) + 0.4 * cross_entropy(
            outputs["aux"], picked
        )
        close(net.loss(outputs, label, cross_entropy), expected)
        assert set(net.eval()(torch.randn(1, 3, 32, 32))) == {"out"}
    net = model.build(5, aux=False)
    outputs = net(torch.randn(2, 3, 32, 32))
    assert set(outputs) == {"out"}
    close(
        net.loss(outputs, label[:, :32, :32], cross_entropy),
        cross_entropy(outputs["out"], label[:, :32, :32]),
    )
    model.build(2, aux=False).loss(outputs, label[:, :32, :32], cross_entropy).backward()


EVERY_OPTION = [
    {},
    {"psa_type": "collect"},
    {"psa_type": "distribute"},
    {"compact": True, "crop_size": 97},
    {"shrink_factor": 1},
    {"shrink_factor": 3},
    {"mask_size": (5, 3)},
    {"normalization_factor": None},
    {"psa_softmax": False},
    {"compact": True, "crop_size": 97, "psa_softmax": False, "normalization_factor": 3.0},
    {"zoom_factor": 2},
    {"aux": False},
    {"context": False},
]


def layers_called(network, training):
    """Names of the modules that own parameters, and of those whose hooks fire in a forward pass."""
    owners = {
        name for name, part in network.named_modules() if list(part.parameters(recurse=False))
    }
    called = set()
    for name, part in network.named_modules():
        part.register_forward_hook(lambda *_, name=name: called.add(name))
    network.train(training)(torch.empty(2, 3, 97, 97, device="meta"))
    return owners, owners & called


@pytest.mark.parametrize(
    "preset,options",
    [
        *((preset, {"crop_size": 97}) for preset in model.PRESETS),
        *(("tiny", options) for options in EVERY_OPTION),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_every_layer_is_called(preset, options, training):
    """So that hooks, summaries, pruning and quantisation see all of them; with fast=True all but
    the one that fast.py lists."""
    for is_fast in (False, True):
        with torch.device("meta"):
            network = model.build(3, preset, fast=is_fast, **options)
        owners, called = layers_called(network, training)
        missed = {"classifier.0"} if is_fast and options.get("context", True) else set()
        if not training:
            missed |= {name for name in owners if name.startswith("aux_head.")}
        assert owners - called == missed
        assert all(
            f"`{name}`" in fast.__doc__ for name in missed if not name.startswith("aux_head.")
        )


@pytest.mark.parametrize("options", EVERY_OPTION)
@pytest.mark.parametrize("training", [False, True])
def test_whiteboard_and_shortcuts_agree(options, training):
    """The whole network, outputs and gradients; 70 x 97 is padded, and 97 x 97 is larger than
    LARGEST_DENSE allows."""
    nets = [
        model.build(3, channels=4, fast=is_fast, **options).train(training)
        for is_fast in (True, False)
    ]
    nets[1].load_state_dict(nets[0].state_dict())
    images = torch.randn(2, 3, 97, 97) if options.get("compact") else torch.randn(2, 3, 70, 97)
    outputs = []
    for net in nets:
        torch.manual_seed(1)  # of dropout
        outputs.append(net(images))
    assert set(outputs[0]) == set(outputs[1])
    for name in outputs[0]:
        close(outputs[0][name], outputs[1][name], 1e-9)
    seed = torch.randn_like(outputs[0]["out"])
    gradients = [
        torch.autograd.grad(
            o["out"], [p for n, p in net.named_parameters() if not n.startswith("aux")], seed
        )
        for o, net in zip(outputs, nets)
    ]
    for one, other in zip(*gradients):
        close(one, other, 1e-9 * max(1, other.abs().max()))


@pytest.mark.parametrize("largest", [0, 10**9])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_shortcuts_compile_without_graph_breaks(largest, direction, monkeypatch):
    monkeypatch.setattr(fast, "LARGEST_DENSE", largest)
    q, table, v = random_inputs((4, 5), (7, 9))
    attend = getattr(fast, direction)
    compiled = torch.compile(lambda *a: attend(*a, (7, 9)), backend="eager", fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, about itself
        same_with_gradients(
            lambda: attend(q, table, v, (7, 9)), lambda: compiled(q, table, v), [q, table, v]
        )


def test_every_parameter_is_trained():
    net = model.build(3)
    cross_entropy = lambda scores, label: F.cross_entropy(scores, label)  # noqa: E731
    net.loss(
        net(torch.randn(2, 3, 64, 64)), torch.randint(3, (2, 64, 64)), cross_entropy
    ).backward()
    assert [
        name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ] == []


def test_reach():
    """Without context no pixel of the tiny network looks as far as 64 pixels; with it, all see
    everything."""
    for context in (False, True):
        net = model.build(3, context=context).eval()
        images = torch.randn(1, 3, 145, 145, requires_grad=True)
        net(images)["out"][0, :, 72, 72].abs().sum().backward()
        rows, columns = (images.grad[0].abs().sum(0) > 0).nonzero().sub(72).abs().amax(0).tolist()
        assert (rows < 64 and columns < 64) if not context else (rows > 70 and columns > 70), (
            rows,
            columns,
        )


def test_context_is_the_only_difference():
    names = set(dict(model.build(4).named_parameters()))
    plain = set(dict(model.build(4, context=False).named_parameters()))
    assert plain == {name for name in names if not name.startswith("psa.")}


def test_build_names_what_is_valid():
    with pytest.raises(
        ValueError, match="unknown preset 'huge'; valid: tiny, resnet50, resnet101, resnet152"
    ):
        model.build(3, "huge")
    with pytest.raises(
        ValueError, match="unknown option 'psa'; valid: backbone, channels, psa_type"
    ):
        model.build(3, psa=2)
    with pytest.raises(
        ValueError, match="unknown psa_type 2; valid: collect, distribute, bidirection"
    ):
        model.build(3, psa_type=2)
    with pytest.raises(ValueError, match="unknown zoom_factor 3; valid: 1, 2, 4, 8"):
        model.build(3, zoom_factor=3)
    for options in (
        {"shrink_factor": 0},
        {"mask_size": (3,)},
        {"mask_size": (0, 3)},
        {"normalization_factor": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            model.build(3, **options)


@pytest.mark.parametrize(
    "crop_size,shrink_factor,compact,expected",
    [
        (465, 2, False, (59, 59)),
        (705, 2, False, (89, 89)),
        (465, 2, True, (30, 30)),
        (705, 2, True, (45, 45)),
        (128, 2, False, (17, 17)),
        (465, 1, False, (117, 117)),
        (465, 1, True, (59, 59)),
    ],
)
def test_mask_of_a_crop(crop_size, shrink_factor, compact, expected):
    options = {"crop_size": crop_size, "shrink_factor": shrink_factor, "compact": compact}
    with torch.device("meta"):
        net = model.build(3, **options)
    assert net.psa.mask_size == expected


@pytest.mark.parametrize("zoom", [1, 2, 4])
def test_labels_for_less_zoom_are_whole_pixels(zoom):
    """Bilinear with corners on corners, as the official code shrinks labels, invents no class."""
    for height, width in ((465, 705), (33, 97), (9, 17)):
        label = torch.randint(150, (1, 1, height, width)).to(torch.float32)
        size = [(side - 1) // 8 * zoom + 1 for side in (height, width)]
        small = F.interpolate(label, size, mode="bilinear", align_corners=True)
        assert torch.equal(small.int(), label[:, :, :: 8 // zoom, :: 8 // zoom].int())


# ------------------------------------------------------------------------------------ the official
# networks

# preset, classes, crop, all parameters, those of the PSA module, FCN without aux
SIZES_OF_CHECKPOINTS = [
    ("resnet50", 150, 465, 53273836, 8291328, 33146966),
    ("resnet50", 21, 465, 53174506, 8291328, 33080789),
    ("resnet50", 19, 705, 57719526, 12837888, 33079763),
    ("resnet101", 150, 465, 72265964, 8291328, 52139094),
    ("resnet101", 21, 465, 72166634, 8291328, 52072917),
    ("resnet101", 19, 705, 76711654, 12837888, 52071891),
    ("resnet152", 150, 465, 87909612, 8291328, None),
]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("preset,classes,crop,total,psa,plain", SIZES_OF_CHECKPOINTS)
def test_parameter_counts(preset, classes, crop, total, psa, plain):
    with torch.device("meta"):
        net = model.build(classes, preset, crop_size=crop)
        without = model.build(classes, preset, context=False, aux=False)
    assert (count(net), count(net.psa)) == (total, psa)
    assert (
        count(net.backbone)
        == {"resnet50": 23631808, "resnet101": 42623936, "resnet152": 58267584}[preset]
    )
    assert count(net.classifier) == {150: 18952342, 21: 18886165, 19: 18885139}[classes]
    assert plain is None or count(without) == plain


def test_parameter_counts_of_the_variants():
    for options, expected in [
        ({"psa_type": "collect"}, 4147712),
        ({"psa_type": "distribute"}, 4147712),
        ({"psa_type": "collect", "compact": True}, 2826240),
        ({"compact": True}, 5648384),
    ]:
        with torch.device("meta"):
            assert count(model.build(150, "resnet50", **options).psa) == expected


def test_multiply_adds_of_the_official_form():
    """10^9 multiply-adds of PSANet50 for ADE20K at the training crop, as the official code computes
    it."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    for context, expected in ((True, 170.17), (False, 123.62)):
        with FakeTensorMode(), torch.no_grad():
            net = model.build(150, "resnet50", context=context, aux=False, fast=False).eval()
            with FlopCounterMode(display=False) as counter:
                net(torch.empty(1, 3, 465, 465))
        assert round(counter.get_total_flops() / 2e9, 2) == expected


def predicted(branch, x):
    """(q, v) of a branch."""
    v = model.shrink(branch.reduce(x), branch.shrink_factor)
    return branch.query(v), v


def golden(name):
    """(meta, state, input, outputs) of a stored case, float32."""
    case = seeded.load_case(GOLDEN / f"{name}.npz")
    state = {
        key: torch.from_numpy(value) for key, value in seeded.seeded_state(case["shapes"]).items()
    }
    x = torch.from_numpy(
        seeded.seeded_image(case["meta"]["input_shape"], case["meta"]["input_seed"])
    )
    return (
        case["meta"],
        state,
        x,
        {key: torch.from_numpy(value) for key, value in case["outputs"].items()},
    )


def relative(a, b):
    assert a.shape == b.shape
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("form", [model, fast])
def test_golden_module(form):
    """The official module alone, with a window smaller than the map: values, gradients,
    training."""
    torch.set_default_dtype(torch.float32)
    meta, state, x, outputs = golden("psanet_module_window")
    net = model.PSA(16, 8, DIRECTIONS, (5, 9), fast=form is fast)
    net.load_state_dict(
        {
            official.rename(f"psa.{name}").removeprefix("psa."): value.flatten(1)
            if name.endswith("3.weight")
            else value
            for name, value in state.items()
        }
    )
    whole = lambda x: torch.cat([x, naive.enlarge(net(x), 2)], dim=1)  # noqa: E731
    net.eval()
    assert relative(whole(x), outputs["output"]) < 1e-5
    identity = torch.eye(35).view(1, 35, 5, 7).expand(2, -1, -1, -1)
    for direction, branch in zip(DIRECTIONS, net.branches):
        q, v = predicted(branch, x)
        function = getattr(form, direction)
        assert relative(branch(x), outputs[f"aggregated_{direction}"]) < 1e-5
        assert (
            relative(function(q, branch.table, identity, (5, 9)), outputs[f"attention_{direction}"])
            < 1e-5
        )
        assert (
            relative(function(q, branch.table, v, (5, 9)), outputs[f"aggregated_{direction}"])
            < 1e-5
        )
    net.train()
    x.requires_grad_()
    y = whole(x)
    y.square().mean().backward()
    assert relative(y, outputs["train_output"]) < 1e-5
    assert relative(x.grad, outputs["train_input_grad"]) < 1e-4
    norms = {
        official.rename(f"psa.{name}").removeprefix("psa."): norm
        for name, norm in meta["grad_norm"].items()
    }
    for name, parameter in net.named_parameters():
        assert parameter.grad.norm().item() == pytest.approx(norms[name], rel=1e-4)


@pytest.mark.parametrize("form", [model, fast])
def test_golden_network(form):
    """The official ResNet-50 network: logits, what is inside, losses, gradient norms."""
    import numpy as np

    torch.set_default_dtype(torch.float32)
    meta, state, x, outputs = golden("psanet_r50_bi")
    arguments = official.build_arguments(state)
    assert arguments == dict(
        num_classes=7, preset="resnet50", psa_type="bidirection", mask_size=(13, 13), compact=False
    )
    net = model.build(**arguments, fast=form is fast)
    net.load_state_dict(
        official.convert({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}})
    )
    net.eval()
    with torch.no_grad():
        assert relative(net(x)["out"], outputs["logits"]) < 1e-4
        *_, middle, features = net.backbone(x)
        assert relative(features[:, :32], outputs["layer4_c0_31"]) < 1e-4
        assert relative(net.aux_head(middle), outputs["aux_logits_eighth"]) < 1e-4
        assert (
            relative(naive.enlarge(net.psa(features), 2)[:, :64], outputs["psa_context_c0_63"])
            < 1e-4
        )
        identity = torch.eye(49).view(1, 49, 7, 7).expand(2, -1, -1, -1)
        for direction, branch in zip(DIRECTIONS, net.psa.branches):
            q, v = predicted(branch, features)
            function = getattr(form, direction)
            assert relative(branch(features), outputs[f"aggregated_{direction}"]) < 1e-4
            assert (
                relative(function(q, branch.table, v, (13, 13)), outputs[f"aggregated_{direction}"])
                < 1e-4
            )
            assert (
                relative(
                    function(q, branch.table, identity, (13, 13)), outputs[f"attention_{direction}"]
                )
                < 1e-4
            )

    random = np.random.RandomState(meta["train"]["label_seed"])
    label = random.randint(0, 7, (2, 97, 97))
    label[random.uniform(size=label.shape) < 0.1] = 255
    label = torch.from_numpy(label).long()
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    cross_entropy = functools.partial(F.cross_entropy, ignore_index=255)
    scores = net(x)
    assert cross_entropy(scores["out"], label).item() == pytest.approx(
        meta["train"]["main_loss"], rel=1e-5
    )
    assert cross_entropy(scores["aux"], label).item() == pytest.approx(
        meta["train"]["aux_loss"], rel=1e-5
    )
    net.loss(scores, label, cross_entropy).backward()
    norms = {official.rename(name): norm for name, norm in meta["grad_norm"].items()}
    assert len(norms) == len(list(net.parameters()))
    for name, parameter in net.named_parameters():
        # Fifty batch norms over two images amplify rounding: with everything in float64, rounding
        # the input alone to float32 moves these norms by up to 2e-3 (head: 5e-4), and a float32 run
        # of this very code by up to 8e-3 from itself when its input changes by one rounding. The
        # stored norms are such a run.
        tolerance = 2e-2 if name.startswith("backbone.") else 5e-3
        assert parameter.grad.norm().item() == pytest.approx(norms[name], rel=tolerance), name


# ------------------------------------------------------------------------------------ foreign
# weights


def official_state(**options):
    """A state dict under the official names, small enough to make in a test, on the meta device."""
    with torch.device("meta"):
        net = model.build(5, "resnet50", **options)
    backwards = {
        official.rename(name): name
        for name in seeded.load_case(GOLDEN / "psanet_r50_bi.npz")["shapes"]
    }
    state = {}
    for name, value in net.state_dict().items():
        state[backwards[name]] = value[:, :, None, None] if name.endswith("table") else value
    return net, state


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"crop_size": 705},
        {"psa_type": "collect"},
        {"compact": True},
        {"compact": True, "crop_size": 705},
        {"context": False},
        {"aux": False},
        {"mask_size": (13, 13)},
    ],
)
def test_convert(options):
    net, state = official_state(**options)
    again = model.build
    with torch.device("meta"):
        rebuilt = again(**official.build_arguments(state))
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {
        k: v.shape for k, v in net.state_dict().items()
    }
    assert getattr(rebuilt.psa, "compact", None) == getattr(net.psa, "compact", None)
    rebuilt.load_state_dict(official.convert(state), assign=True)


def test_convert_lists_what_is_wrong():
    _, state = official_state()
    state["psa.attention_q.3.weight"] = state.pop("psa.attention_p.0.weight")
    with pytest.raises(
        ValueError, match=r"1 missing \(psa.branches.1.query.0.weight\); 1 unexpected \(psa.attent"
    ):
        official.convert(state)
    _, state = official_state()
    state["psa.proj.0.weight"] = state["psa.proj.0.weight"][:, :7]
    with pytest.raises(ValueError, match=r"1 of another shape \(psa.project.0.weight\)"):
        official.convert(state)
    with pytest.raises(ValueError, match="no checkpoint of the official PSANet"):
        official.convert({"conv1.weight": torch.zeros(1)})
    _, state = official_state(mask_size=(5, 9))
    with pytest.raises(ValueError, match="45 entries, which is no square"):
        official.build_arguments(state)
    with pytest.raises(ValueError, match="45 entries, which is no square"):
        official.convert(state)


@pytest.mark.parametrize("mask_size", [(21, 17), (17, 21), (3, 119)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"aux": False},
        {"psa_type": "collect"},
        {"psa_type": "distribute"},
        {"compact": True},
        {"psa_type": "distribute", "compact": True, "normalization_factor": None},
        {"normalization_factor": 7.5},
        {"psa_softmax": False, "normalization_factor": None},
        {"shrink_factor": 1},
        {"zoom_factor": 1},
    ],
)
def test_masks_that_are_not_square_and_all_else_that_a_file_does_not_tell(mask_size, options):
    told = {"mask_size": mask_size, **{k: v for k, v in options.items() if k != "aux"}}
    net, state = official_state(**{**told, **options})
    arguments = official.build_arguments(state, **told)
    with torch.device("meta"):
        rebuilt = model.build(**arguments)
    rebuilt.load_state_dict(official.convert(state, **told), assign=True)
    for module, other in ((rebuilt, net), (rebuilt.psa, net.psa)):
        for name, value in vars(other).items():
            if not name.startswith("_"):
                assert getattr(module, name) == value, name
    for branch, other in zip(rebuilt.psa.branches, net.psa.branches):
        assert (
            branch.direction,
            branch.mask_size,
            branch.softmax,
            branch.factor,
            branch.compact,
        ) == (other.direction, other.mask_size, other.softmax, other.factor, other.compact)
    assert (rebuilt.aux_head is None) == (options.get("aux") is False)


def test_a_mask_with_an_even_side_is_one_of_positions():
    net, state = official_state(mask_size=(30, 17), compact=True)
    assert official.build_arguments(state, mask_size=(30, 17))["compact"]
    assert (
        net.psa.mask_size
        == official.build_arguments(state, mask_size=[30, 17])["mask_size"]
        == (30, 17)
    )
    with pytest.raises(ValueError, match="30 x 17 has an even side, which offsets never have"):
        official.convert(state, mask_size=(30, 17), compact=False)


def test_the_mask_of_a_crop_that_is_told():
    for crop_size, compact, shrink_factor in (
        (129, False, 2),
        (225, True, 2),
        (225, True, 1),
        (145, False, 1),
    ):
        options = dict(crop_size=crop_size, compact=compact, shrink_factor=shrink_factor)
        net, state = official_state(**options)
        del options["compact"]
        arguments = official.build_arguments(state, **options)
        assert (arguments["mask_size"], arguments["compact"]) == (net.psa.mask_size, compact)
        official.convert(state, **options)
        with pytest.raises(
            ValueError, match="crop_size=465 with shrink_factor=2 means a mask of 3481 entries, but"
        ):
            official.convert(state, crop_size=465)


def test_what_contradicts_the_file_is_refused():
    _, state = official_state(mask_size=(21, 17))
    told = {"mask_size": (21, 17)}
    for mask_size in ((21, 19), (3, 3), (357,)[:1] * 2):
        with pytest.raises(ValueError, match="but that of the file has 357"):
            official.convert(state, mask_size=mask_size)
    for option, value, words in [
        ("psa_type", "collect", "3 missing|unexpected"),
        ("context", False, "unexpected"),
        ("aux", False, "unexpected"),
        ("channels", 256, "of another shape"),
        ("num_classes", 6, "of another shape"),
        ("preset", "resnet101", "missing"),
        ("psa_typ", "collect", "unknown option 'psa_typ'"),
        ("psa_type", "both", "unknown psa_type 'both'"),
        ("normalization_factor", -1, "must be positive"),
        ("shrink_factor", 0, "whole number"),
        ("zoom_factor", 3, "unknown zoom_factor"),
    ]:
        with pytest.raises(ValueError, match=words):
            official.convert(state, **told, **{option: value})
    _, one = official_state(psa_type="collect")
    with pytest.raises(ValueError, match="psa_type=bidirection: 13 missing"):
        official.convert(one, psa_type="bidirection")
    _, plain = official_state(context=False)
    for option, value in (("mask_size", (59, 59)), ("psa_type", "collect"), ("shrink_factor", 1)):
        with pytest.raises(ValueError, match=f"no PSA module, to which {option} could apply"):
            official.convert(plain, **{option: value})


def test_load_backbone():
    net = torch.nn.Module()  # the first two stages are enough
    net.backbone = model.ResNet("resnet50", (64, 64, 128), strides=(1, 2))
    deep = {name: torch.zeros_like(value) for name, value in net.backbone.state_dict().items()}
    deep["layer2.3.bn3.bias"] += 7
    wrapped = {"state_dict": {f"module.{name}": value for name, value in deep.items()}}
    assert official.load_backbone(net, wrapped) == f"loaded {len(deep)} tensors into the backbone"
    assert net.backbone.layer2[3].bn3.bias.eq(7).all()

    plain = {
        name: value
        for name, value in deep.items()
        if not name.startswith(("conv2.", "conv3.", "bn2.", "bn3."))
    }
    plain.update(
        {
            "conv1.weight": torch.zeros(64, 3, 7, 7),
            "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1),
            "layer1.0.downsample.0.weight": torch.zeros(256, 64, 1, 1),
            "fc.weight": torch.zeros(10, 2048),
        }
    )
    torch.nn.init.ones_(net.backbone.conv1.weight)
    said = official.load_backbone(net, plain)
    left = [name for name in plain if not name.startswith((*resnet.PLAIN_STEM, "fc."))]
    assert said == (
        f"loaded {len(left)} tensors into the backbone; its deep stem keeps its initial weights, "
        "the file has a plain one"
    )
    assert net.backbone.conv1.weight.eq(1).all()
    with pytest.raises(
        ValueError, match=r"backbone: 1 missing \(layer2.0.bn1.weight\); 1 unexpected \(layer9"
    ):
        official.load_backbone(net, {"layer9.weight": deep.pop("layer2.0.bn1.weight"), **deep})
    assert net.backbone.conv1.weight.eq(1).all()


def test_recipe_has_the_official_numbers():
    pytest.importorskip("common", reason="the folder was taken alone")
    from ..recipe import RECIPES

    assert {"shapes", "camvid", "default"} <= RECIPES.keys()
    for name, steps, crop in (
        ("ade20k", 126300, 465),
        ("voc2012", 33050, 465),
        ("cityscapes", 37200, 705),
    ):
        recipe = RECIPES[name]
        assert (recipe.steps, recipe.crop_size, recipe.batch_size) == (steps, crop, 16)
        assert (recipe.lr, recipe.lr * recipe.head_lr, recipe.weight_decay) == (0.01, 0.1, 1e-4)
        assert (recipe.schedule, recipe.power, recipe.optimizer, recipe.momentum) == (
            "poly",
            0.9,
            "sgd",
            0.9,
        )
