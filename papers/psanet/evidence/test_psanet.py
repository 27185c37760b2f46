"""PSANet: loops == one matrix == tiles, the identities of the mechanism, the official network, exact sizes."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from .. import model, naive, official
from .golden import seeded

GOLDEN = Path(__file__).parent / "golden"
DIRECTIONS = ("collect", "distribute")
SIZES = [(3, 4), (4, 2), (2, 2), (1, 4), (4, 1), (1, 1)]


@pytest.fixture(autouse=True)
def float64():
    """Everything is compared in double precision unless it says otherwise, from the same random numbers."""
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
    return [t.requires_grad_() for t in (q, torch.randn(mask_size[0] * mask_size[1], 3), torch.randn(batch, 4, *size))]


def masks(size):
    """Full, smaller, larger, larger in one axis and smaller in the other, even."""
    return [(2 * size[0] - 1, 2 * size[1] - 1), (3, 3), (9, 9), (9, 1), (4, 2)]


def run(form, direction, q, table, v, mask_size, softmax, tile=None):
    """model.dense or model.Stream with the arguments of model.collect."""
    table = model.fit_table(table, mask_size, q.shape[-2:])
    q, v = (t.permute(0, 2, 3, 1).contiguous() for t in (q, v))
    if form == "dense":
        return model.dense(direction, q, table, v, softmax).permute(0, 3, 1, 2)
    return model.Stream.apply(direction, q, table, v, softmax, tile).permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------ loops == matrix == tiles


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("softmax", [True, False])
def test_loops_matrix_and_tiles(direction, size, softmax):
    for mask_size in masks(size):
        q, table, v = inputs = random_inputs(size, mask_size)
        loops = getattr(naive, direction)(q, table, v, mask_size, softmax)
        seed = torch.randn_like(loops)
        gradients = torch.autograd.grad(loops, inputs, seed)
        forms = [("dense", None)] + [("stream", tile) for tile in ((1, size[1]), (2, 2), (1, 1), size, (9, 9))]
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
    monkeypatch.setattr(model, "dense", lambda *a, f=model.dense: used.append("dense") or f(*a))
    monkeypatch.setattr(model, "TILE", 2)
    arguments = (q, table, v, mask_size, True, factor)
    for largest in (2 * 12 * 35, 2 * 12 * 35 - 1):  # exactly the over-complete map, and one less
        monkeypatch.setattr(model, "LARGEST_DENSE", largest)
        same_with_gradients(
            lambda: getattr(naive, direction)(*arguments), lambda: getattr(model, direction)(*arguments), inputs
        )
    assert used == ["dense"]
    with pytest.raises(ValueError, match="needs a table of 15 rows, not 9"):
        getattr(model, direction)(q, table[:9], v, mask_size)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_tiles_at_a_real_size_in_both_memory_layouts(direction):
    q, table, v = inputs = [
        torch.randn(2, 8, 17, 23, requires_grad=True), torch.randn(33 * 45, 8, requires_grad=True),
        torch.randn(2, 5, 17, 23, requires_grad=True),
    ]
    assert 2 * 17 * 23 * 33 * 45 > model.LARGEST_DENSE
    matrix = lambda: run("dense", direction, q, table, v, (33, 45), True)  # noqa: E731
    same_with_gradients(matrix, lambda: getattr(model, direction)(q, table, v, (33, 45)), inputs)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (q, v)]
    close(matrix(), getattr(model, direction)(last[0], table, last[1], (33, 45)))
    one_by_one = [getattr(model, direction)(q[i : i + 1], table, v[i : i + 1], (33, 45)) for i in range(2)]
    close(matrix(), torch.cat(one_by_one))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradcheck(direction):
    q, table, v = random_inputs((3, 2), (5, 3), batch=1)
    assert torch.autograd.gradcheck(lambda *a: run("stream", direction, *a, (5, 3), True, (2, 1)), (q, table, v))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_huge_logits_do_not_overflow(direction):
    """Later tiles bring ever larger logits: the running maximum must follow."""
    q = 1e4 * torch.arange(1.0, 7).view(1, 1, 6, 1).expand(1, 1, 6, 2)
    table, v = torch.randn(11 * 3, 1), torch.randn(1, 3, 6, 2)
    z = run("stream", direction, q, table, v, (11, 3), True, (1, 1))
    assert z.isfinite().all()
    close(z, run("dense", direction, q, table, v, (11, 3), True))


def test_lower_precision_is_computed_in_float32():
    q, table, v = (t.float() for t in random_inputs((4, 5), (7, 9)))
    exact = model.collect(q, table, v, (7, 9))
    with torch.autocast("cpu", torch.bfloat16):
        close(model.collect(q, table, v, (7, 9)), exact, 1e-6)
    assert model.collect(q.bfloat16(), table, v.bfloat16(), (7, 9)).dtype == torch.float32


# ------------------------------------------------------------------------------------ what the mechanism means


def test_gather_is_a_view_and_reads_the_right_offsets():
    logits = torch.arange(2 * 3 * 4 * 5 * 7.0).view(2, 3, 4, 5, 7)
    p = model.gather(logits, (3, 4))
    assert p.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()
    for k, l, s, t in itertools.product(range(3), range(4), range(3), range(4)):
        assert torch.equal(p[:, k, l, s, t], logits[:, k, l, s - k + 2, t - l + 3])
    assert p[0].unique().numel() == (3 * 4) ** 2  # no cell twice
    later = torch.arange(3 * 3 * 4 * 5 * 7.0).view(3, 3, 4, 5, 7)[1:]  # does not start at its storage's beginning
    assert model.gather(later, (3, 4))[0, 0, 0, 0, 0] == later[0, 0, 0, 2, 3]


def test_both_directions_read_the_same_matrix():
    """P[owner, other]: its rows are a collector's logits, its columns those of a receiver that is given to."""
    size, mask_size = (3, 4), (5, 7)
    q, table, _ = random_inputs(size, mask_size)
    v = torch.eye(12).view(1, 12, *size).expand(2, -1, -1, -1)  # z then holds the weights themselves
    collected = model.collect(q, table, v, mask_size, softmax=False).flatten(2)  # [B, source = other, receiver = owner]
    given = model.distribute(q, table, v, mask_size, softmax=False).flatten(2)  # [B, source = owner, receiver = other]
    close(collected, given.transpose(1, 2))


@pytest.mark.parametrize("functions", [naive, model])
def test_direction_of_one_huge_offset(functions):
    """A table that speaks for the offset (1, -2) only: collect looks there, distribute receives from the opposite."""
    height, width, offset = 5, 6, (1, -2)
    q, v, table = torch.ones(1, 1, height, width), torch.randn(1, 3, height, width), torch.zeros(9, 11, 1)
    table[offset[0] + 4, offset[1] + 5] = 1e3
    table = table.flatten(0, 1)
    collected, given = functions.collect(q, table, v, (9, 11)), functions.distribute(q, table, v, (9, 11))
    for k, l in itertools.product(range(height), range(width)):
        ahead, behind = (k + offset[0], l + offset[1]), (k - offset[0], l - offset[1])
        if 0 <= ahead[0] < height and 0 <= ahead[1] < width:
            close(collected[..., k, l], v[..., ahead[0], ahead[1]])
        if 0 <= behind[0] < height and 0 <= behind[1] < width:
            close(given[..., k, l], v[..., behind[0], behind[1]])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_weights_of_a_receiver_sum_to_one_and_zero_tables_average(direction):
    q, table, v = random_inputs((4, 5), (7, 9))
    function = getattr(model, direction)
    close(function(q, table, torch.ones_like(v), (7, 9)), torch.ones_like(v))
    close(function(q, 0 * table, v, (7, 9)), v.mean((2, 3), keepdim=True).expand_as(v))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_offsets_outside_the_mask_have_the_logit_zero(direction):
    """Not minus infinity: if everything inside the window is hugely negative, all weight goes outside it."""
    v = torch.zeros(1, 1, 5, 5)
    v[..., 2:, 2:] = 1  # the 3 x 3 window of the corner pixel (4, 4) holds ones only, and so do 5 pixels outside
    z = getattr(model, direction)(torch.ones(1, 1, 5, 5), torch.full((9, 1), -1e4), v, (3, 3))
    close(z[0, 0, 4, 4], torch.tensor(5 / 21))


# ------------------------------------------------------------------------------------ compact maps


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("softmax,factor", [(True, 1.0), (False, None)])
def test_compact(direction, softmax, factor):
    q, table, v = inputs = random_inputs((3, 4), (3, 4))
    arguments = (q, table, v, direction, softmax, factor)
    same_with_gradients(lambda: naive.compact(*arguments), lambda: model.compact(*arguments), inputs)


def test_compact_knows_one_map_size():
    module = small_psa(compact=True, mask_size=(3, 4)).eval()
    assert module(torch.randn(1, 6, 5, 7)).shape == (1, 6, 3, 4)
    with pytest.raises(ValueError, match="3 x 4 after shrinking, and this one has 4 x 3"):  # the same area
        module(torch.randn(1, 6, 7, 5))
    with pytest.raises(ValueError, match="12 rows fits no map of 3 x 5"):
        model.compact(torch.randn(1, 2, 3, 5), torch.randn(12, 2), torch.randn(1, 2, 3, 5), "collect")
    net = model.build(3, compact=True, crop_size=64).eval()
    assert net(torch.randn(1, 3, 64, 64))["out"].shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match="5 x 5 after shrinking, and this one has 5 x 6"):
        net(torch.randn(1, 3, 65, 66))


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


@pytest.mark.parametrize("options", [
    {}, {"directions": ("collect",)}, {"directions": ("distribute",)}, {"shrink_factor": 1}, {"shrink_factor": 3},
    {"softmax": False, "factor": None}, {"compact": True, "mask_size": (4, 3)},
    {"compact": True, "mask_size": (4, 3), "directions": ("distribute",)},
])
@pytest.mark.parametrize("training", [False, True])
def test_psa_module(options, training):
    module = small_psa(**options).train(training)
    step = module.shrink_factor
    x = torch.randn(2, 6, 3 * step + 1, 2 * step + 1, requires_grad=True)
    same_with_gradients(lambda: naive.psa(x, module), lambda: module(x), [x, *module.parameters()], 1e-9)


@pytest.mark.parametrize("training", [False, True])
def test_training_statistics_come_from_the_whole_map(training):
    module = small_psa().train(training)
    before = module.branches[0].reduce[1].running_mean.clone()
    x = torch.randn(2, 6, 7, 5)
    module(x)
    expected = 0.9 * before + 0.1 * module.branches[0].reduce[0](x).mean((0, 2, 3)) if training else before
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
    """A widespread port pads its 1x1 projection by 1 and resizes the result back: every shape is right and every
    value wrong: its corners see nothing but the frame. One impulse in a corner shows it."""
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
        context, weight = torch.randn(2, 2, h, w, requires_grad=True), torch.randn(5, 5, 3, 3, requires_grad=True)
        arguments = (x, context, weight, factor)
        same_with_gradients(
            lambda: naive.classify(*arguments), lambda: model.classify(*arguments), [x, context, weight]
        )


# ------------------------------------------------------------------------------------ the network


def official_forward(net, images):
    """The network as the official code writes it: no padding, no savings. Images of official sizes only."""
    *_, features = net.backbone(images)
    y = features
    if net.psa is not None:
        y = torch.cat([features, naive.enlarge(naive.psa(features, net.psa), net.psa.shrink_factor)], dim=1)
    return net.enlarge(net.classifier(y))


@pytest.mark.parametrize("options", [
    {}, {"psa_type": "collect"}, {"psa_type": "distribute", "psa_softmax": False, "normalization_factor": None},
    {"mask_size": (3, 5)}, {"shrink_factor": 1, "zoom_factor": 2}, {"zoom_factor": 1}, {"context": False},
    {"compact": True, "crop_size": 33},
])
def test_network_is_the_official_one_at_official_sizes(options):
    net = model.build(3, channels=8, **options).double().eval()
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
    padded = torch.zeros(1, 3, -(-(height - 1) // step) * step + 1, -(-(width - 1) // step) * step + 1)
    padded[..., :height, :width] = images
    close(logits, net(padded)["out"][..., :height, :width])


def test_training_outputs_and_loss():
    cross_entropy = lambda scores, label: F.cross_entropy(scores, label, ignore_index=255)  # noqa: E731
    for zoom in (8, 2):
        net = model.build(5, zoom_factor=zoom)
        outputs = net(torch.randn(2, 3, 64, 48))
        assert set(outputs) == {"out", "aux"} and outputs["aux"].shape == outputs["out"].shape
        label = torch.randint(5, (2, 64, 48))
        picked = label if zoom == 8 else label[:, ::4, ::4]
        expected = cross_entropy(outputs["out"], picked) + 0.4 * cross_entropy(outputs["aux"], picked)
        close(net.loss(outputs, label, cross_entropy), expected)
        assert set(net.eval()(torch.randn(1, 3, 32, 32))) == {"out"}
    net = model.build(5, aux=False)
    outputs = net(torch.randn(2, 3, 32, 32))
    assert set(outputs) == {"out"}
    close(net.loss(outputs, label[:, :32, :32], cross_entropy), cross_entropy(outputs["out"], label[:, :32, :32]))
    model.build(2, aux=False).loss(outputs, label[:, :32, :32], cross_entropy).backward()


def test_every_parameter_is_trained():
    net = model.build(3)
    cross_entropy = lambda scores, label: F.cross_entropy(scores, label)  # noqa: E731
    net.loss(net(torch.randn(2, 3, 64, 64)), torch.randint(3, (2, 64, 64)), cross_entropy).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_reach():
    """Without context no pixel of the tiny network looks as far as 64 pixels; with it, all see everything."""
    for context in (False, True):
        net = model.build(3, context=context).eval()
        images = torch.randn(1, 3, 145, 145, requires_grad=True)
        net(images)["out"][0, :, 72, 72].abs().sum().backward()
        rows, columns = (images.grad[0].abs().sum(0) > 0).nonzero().sub(72).abs().amax(0).tolist()
        assert (rows < 64 and columns < 64) if not context else (rows > 70 and columns > 70), (rows, columns)


def test_context_is_the_only_difference():
    names = set(dict(model.build(4).named_parameters()))
    plain = set(dict(model.build(4, context=False).named_parameters()))
    assert plain == {name for name in names if not name.startswith("psa.")}


def test_build_names_what_is_valid():
    with pytest.raises(ValueError, match="unknown preset 'huge'; valid: tiny, resnet50, resnet101, resnet152"):
        model.build(3, "huge")
    with pytest.raises(ValueError, match="unknown option 'psa'; valid: backbone, channels, psa_type"):
        model.build(3, psa=2)
    with pytest.raises(ValueError, match="unknown psa_type 2; valid: collect, distribute, bidirection"):
        model.build(3, psa_type=2)
    with pytest.raises(ValueError, match="unknown zoom_factor 3; valid: 1, 2, 4, 8"):
        model.build(3, zoom_factor=3)
    for options in ({"shrink_factor": 0}, {"mask_size": (3,)}, {"mask_size": (0, 3)}, {"normalization_factor": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            model.build(3, **options)


@pytest.mark.parametrize("crop_size,compact,expected", [
    (465, False, (59, 59)), (705, False, (89, 89)), (465, True, (30, 30)), (705, True, (45, 45)),
    (128, False, (17, 17)),
])
def test_mask_of_a_crop(crop_size, compact, expected):
    with torch.device("meta"):
        net = model.build(3, crop_size=crop_size, compact=compact)
    assert net.psa.mask_size == expected


# ------------------------------------------------------------------------------------ the official networks

SIZES_OF_CHECKPOINTS = [  # preset, classes, crop, all parameters, those of the PSA module, FCN without aux
    ("resnet50", 150, 465, 53273836, 8291328, 33146966), ("resnet50", 21, 465, 53174506, 8291328, 33080789),
    ("resnet50", 19, 705, 57719526, 12837888, 33079763), ("resnet101", 150, 465, 72265964, 8291328, 52139094),
    ("resnet101", 21, 465, 72166634, 8291328, 52072917), ("resnet101", 19, 705, 76711654, 12837888, 52071891),
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
    assert count(net.backbone) == {"resnet50": 23631808, "resnet101": 42623936, "resnet152": 58267584}[preset]
    assert count(net.classifier) == {150: 18952342, 21: 18886165, 19: 18885139}[classes]
    assert plain is None or count(without) == plain


def test_parameter_counts_of_the_variants():
    for options, expected in [
        ({"psa_type": "collect"}, 4147712), ({"psa_type": "distribute"}, 4147712),
        ({"psa_type": "collect", "compact": True}, 2826240), ({"compact": True}, 5648384),
    ]:
        with torch.device("meta"):
            assert count(model.build(150, "resnet50", **options).psa) == expected


def test_multiply_adds_of_the_official_form(monkeypatch):
    """10^9 multiply-adds of PSANet50 for ADE20K at the training crop, as the official code computes it."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr(model, "LARGEST_DENSE", 10**12)
    monkeypatch.setattr(model, "classify", naive.classify)
    for context, expected in ((True, 170.17), (False, 123.62)):
        with FakeTensorMode(), torch.no_grad():
            net = model.build(150, "resnet50", context=context, aux=False).eval()
            for branch in net.psa.branches if context else ():  # reduce the whole map, as in training
                branch.forward = lambda x, b=branch: (lambda v: (b.query(v), v))(model.shrink(b.reduce(x), 2))
            with FlopCounterMode(display=False) as counter:
                net(torch.empty(1, 3, 465, 465))
        assert round(counter.get_total_flops() / 2e9, 2) == expected


def golden(name):
    """(meta, state, input, outputs) of a stored case, float32."""
    case = seeded.load_case(GOLDEN / f"{name}.npz")
    state = {key: torch.from_numpy(value) for key, value in seeded.seeded_state(case["shapes"]).items()}
    x = torch.from_numpy(seeded.seeded_image(case["meta"]["input_shape"], case["meta"]["input_seed"]))
    return case["meta"], state, x, {key: torch.from_numpy(value) for key, value in case["outputs"].items()}


def relative(a, b):
    assert a.shape == b.shape
    return ((a - b).norm() / b.norm()).item()


def test_golden_module():
    """The official module alone, with a window smaller than the map: values, gradients, training."""
    torch.set_default_dtype(torch.float32)
    meta, state, x, outputs = golden("psanet_module_window")
    net = model.PSA(16, 8, DIRECTIONS, (5, 9))
    net.load_state_dict({
        official.rename(f"psa.{name}").removeprefix("psa."): value.flatten(1) if name.endswith("3.weight") else value
        for name, value in state.items()
    })
    whole = lambda x: torch.cat([x, naive.enlarge(net(x), 2)], dim=1)  # noqa: E731
    net.eval()
    assert relative(whole(x), outputs["output"]) < 1e-5
    identity = torch.eye(35).view(1, 35, 5, 7).expand(2, -1, -1, -1)
    for direction, branch in zip(DIRECTIONS, net.branches):
        q, v = branch(x)
        function = getattr(model, direction)
        assert relative(function(q, branch.table, identity, (5, 9)), outputs[f"attention_{direction}"]) < 1e-5
        assert relative(function(q, branch.table, v, (5, 9)), outputs[f"aggregated_{direction}"]) < 1e-5
    net.train()
    x.requires_grad_()
    y = whole(x)
    y.square().mean().backward()
    assert relative(y, outputs["train_output"]) < 1e-5
    assert relative(x.grad, outputs["train_input_grad"]) < 1e-4
    norms = {official.rename(f"psa.{name}").removeprefix("psa."): norm for name, norm in meta["grad_norm"].items()}
    for name, parameter in net.named_parameters():
        assert parameter.grad.norm().item() == pytest.approx(norms[name], rel=1e-4)


def test_golden_network():
    """The official ResNet-50 network: logits, what is inside, losses, gradient norms."""
    import numpy as np

    torch.set_default_dtype(torch.float32)
    meta, state, x, outputs = golden("psanet_r50_bi")
    arguments = official.build_arguments(state)
    assert arguments == dict(
        num_classes=7, preset="resnet50", psa_type="bidirection", mask_size=(13, 13), compact=False
    )
    net = model.build(**arguments)
    net.load_state_dict(official.convert({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}}))
    net.eval()
    with torch.no_grad():
        assert relative(net(x)["out"], outputs["logits"]) < 1e-4
        *_, middle, features = net.backbone(x)
        assert relative(features[:, :32], outputs["layer4_c0_31"]) < 1e-4
        assert relative(net.aux_head(middle), outputs["aux_logits_eighth"]) < 1e-4
        assert relative(naive.enlarge(net.psa(features), 2)[:, :64], outputs["psa_context_c0_63"]) < 1e-4
        identity = torch.eye(49).view(1, 49, 7, 7).expand(2, -1, -1, -1)
        for direction, branch in zip(DIRECTIONS, net.psa.branches):
            q, v = branch(features)
            function = getattr(model, direction)
            assert relative(function(q, branch.table, v, (13, 13)), outputs[f"aggregated_{direction}"]) < 1e-4
            assert relative(function(q, branch.table, identity, (13, 13)), outputs[f"attention_{direction}"]) < 1e-4

    random = np.random.RandomState(meta["train"]["label_seed"])
    label = random.randint(0, 7, (2, 97, 97))
    label[random.uniform(size=label.shape) < 0.1] = 255
    label = torch.from_numpy(label).long()
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    cross_entropy = lambda scores, label: F.cross_entropy(scores, label, ignore_index=255)  # noqa: E731
    scores = net(x)
    assert cross_entropy(scores["out"], label).item() == pytest.approx(meta["train"]["main_loss"], rel=1e-5)
    assert cross_entropy(scores["aux"], label).item() == pytest.approx(meta["train"]["aux_loss"], rel=1e-5)
    net.loss(scores, label, cross_entropy).backward()
    norms = {official.rename(name): norm for name, norm in meta["grad_norm"].items()}
    assert len(norms) == len(list(net.parameters()))
    for name, parameter in net.named_parameters():
        # Fifty batch norms over two images amplify rounding: with everything in float64, rounding the input alone to
        # float32 moves these norms by up to 2e-3 (head: 5e-4), and a float32 run of this very code by up to 8e-3 from
        # itself when its input changes by one rounding. The stored norms are such a run.
        tolerance = 2e-2 if name.startswith("backbone.") else 5e-3
        assert parameter.grad.norm().item() == pytest.approx(norms[name], rel=tolerance), name


# ------------------------------------------------------------------------------------ foreign weights


def official_state(**options):
    """A state dict under the official names, small enough to make in a test, on the meta device."""
    with torch.device("meta"):
        net = model.build(5, "resnet50", **options)
    backwards = {official.rename(name): name for name in seeded.load_case(GOLDEN / "psanet_r50_bi.npz")["shapes"]}
    state = {}
    for name, value in net.state_dict().items():
        state[backwards[name]] = value[:, :, None, None] if name.endswith("table") else value
    return net, state


@pytest.mark.parametrize("options", [
    {}, {"crop_size": 705}, {"psa_type": "collect"}, {"compact": True}, {"compact": True, "crop_size": 705},
    {"context": False}, {"aux": False}, {"mask_size": (13, 13)},
])
def test_convert(options):
    net, state = official_state(**options)
    again = model.build
    with torch.device("meta"):
        rebuilt = again(**official.build_arguments(state))
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert getattr(rebuilt.psa, "compact", None) == getattr(net.psa, "compact", None)
    rebuilt.load_state_dict(official.convert(state), assign=True)


def test_convert_lists_what_is_wrong():
    _, state = official_state()
    state["psa.attention_q.3.weight"] = state.pop("psa.attention_p.0.weight")
    with pytest.raises(ValueError, match=r"1 missing \(psa.branches.1.query.0.weight\); 1 unexpected \(psa.attent"):
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


def test_load_backbone():
    net = torch.nn.Module()  # the first two stages are enough
    net.backbone = model.ResNet("resnet50", (64, 64, 128), strides=(1, 2))
    deep = {name: torch.zeros_like(value) for name, value in net.backbone.state_dict().items()}
    deep["layer2.3.bn3.bias"] += 7
    wrapped = {"state_dict": {f"module.{name}": value for name, value in deep.items()}}
    assert official.load_backbone(net, wrapped) == f"loaded {len(deep)} tensors into the backbone"
    assert net.backbone.layer2[3].bn3.bias.eq(7).all()

    plain = {name: value for name, value in deep.items() if not name.startswith(("conv2.", "conv3.", "bn2.", "bn3."))}
    plain.update({
        "conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1),
        "layer1.0.downsample.0.weight": torch.zeros(256, 64, 1, 1), "fc.weight": torch.zeros(10, 2048),
    })
    torch.nn.init.ones_(net.backbone.conv1.weight)
    assert "17 keep their initial values (conv1.weight" in official.load_backbone(net, plain)
    assert net.backbone.conv1.weight.eq(1).all()
    with pytest.raises(ValueError, match=r"backbone: 1 missing \(layer2.0.bn1.weight\); 1 unexpected \(layer9"):
        official.load_backbone(net, {"layer9.weight": deep.pop("layer2.0.bn1.weight"), **deep})
    assert net.backbone.conv1.weight.eq(1).all()


def test_recipe_has_the_official_numbers():
    from ..recipe import RECIPES

    assert {"shapes", "camvid", "default"} <= RECIPES.keys()
    for name, steps, crop in (("ade20k", 126300, 465), ("voc2012", 33050, 465), ("cityscapes", 37200, 705)):
        recipe = RECIPES[name]
        assert (recipe.steps, recipe.crop_size, recipe.batch_size) == (steps, crop, 16)
        assert (recipe.lr, recipe.lr * recipe.head_lr, recipe.weight_decay) == (0.01, 0.1, 1e-4)
        assert (recipe.schedule, recipe.power, recipe.optimizer, recipe.momentum) == ("poly", 0.9, "sgd", 0.9)
