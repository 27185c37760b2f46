"""PySA: loops == masked matrix == model.py == fast.py, the identities of the mechanism, sizes."""

import pytest
import torch
import torch.nn.functional as F

from .. import fast, model, naive, official, readings

SIZES = [(16, 16), (8, 24), (17, 11), (5, 9), (1, 1), (3, 1)]
GRIDS = [(1, 2), (2, 2), (4, 2), (1, 1), (3, 1), (2, 3), (3, 2), (1, 5)]  # (R, G)


@pytest.fixture(autouse=True)
def float64():
    """Everything here is compared in double precision, from the same random numbers every time."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def randomise(module):
    """Random weights and biases, in evaluation mode."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.eval()


def level(regions, cells=2, position=False, inputs=None):
    """A level of 16 channels, so with queries and keys of 2."""
    made = readings.PositionedLevel if position else model.PySALevel
    return randomise(made(16, regions, cells, inputs))


def series_head(fast=True, position=False):
    """Features of 7 channels -> 3 classes, four levels of 16 channels."""
    made = readings.PositionedLevel if position else model.PySALevel
    return randomise(model.SeriesHead(7, 3, 16, (1, 2, 4, 8), 2, made, fast))


def close(a, b, tolerance=1e-10):
    assert a.shape == b.shape
    assert (a - b).abs().max() < tolerance, (a - b).abs().max()


def same_with_gradients(f, g, inputs, others=None, tolerance=1e-10):
    """f and g give the same values, and the same gradients: f with respect to `inputs`, g with
    respect to `others`, which are `inputs` if they are not given."""
    a, b = f(), g()
    close(a, b, tolerance)
    seed = torch.randn_like(a)
    first = torch.autograd.grad(a, inputs, seed)
    for x, y in zip(first, torch.autograd.grad(b, others or inputs, seed), strict=True):
        close(x, y, tolerance)


# ------------------------------------------------------------------------------------ loops == code


@pytest.mark.parametrize("size", SIZES)
def test_pool(size):
    """Loops, the library call of model.py and the matrices of fast.py."""
    x = torch.randn(2, 3, *size, requires_grad=True)

    def by_matrices(x, cells):
        rows, columns = (fast.pooling_matrix(side, cells) for side in size)
        return rows @ x @ columns.mT

    for cells in (1, 2, 5, 8):
        same_with_gradients(
            lambda: naive.pool(x, cells), lambda: F.adaptive_avg_pool2d(x, cells), [x]
        )
        same_with_gradients(lambda: naive.pool(x, cells), lambda: by_matrices(x, cells), [x])


def test_project():
    layer, t = torch.nn.Conv2d(3, 5, 1), torch.randn(2, 3, 4, 4)
    close(naive.project(t, layer.weight, layer.bias), layer(t))


@pytest.mark.parametrize("regions,cells", GRIDS)
@pytest.mark.parametrize("position", [False, True])
def test_attend(regions, cells, position):
    one = level(regions, cells, position)
    t = torch.randn(2, 16, one.grid, one.grid, requires_grad=True)

    def loops(attend, *more):
        q, k, v = (naive.project(t, p.weight, p.bias) for p in (one.query, one.key, one.value))
        return attend(q, k, v, regions, *more)

    inputs, more = [t, *one.parameters()], [one.position] if position else []
    same_with_gradients(lambda: loops(naive.attend, *more), lambda: one.attend(t), inputs)
    if not position:
        same_with_gradients(lambda: loops(naive.attend_dense), lambda: one.attend(t), inputs)


def enlarge(o, size, regions):
    """(E) as model.PySALevel has it."""
    rows, columns = (model.enlarging_matrix(n, regions, o.shape[-1] // regions) for n in size)
    return rows @ o @ columns.mT


@pytest.mark.parametrize("size", SIZES)
def test_enlarge(size):
    for regions, cells in [(1, 2), (2, 2), (3, 2), (4, 1), (2, 3)]:
        o = torch.randn(2, 3, regions * cells, regions * cells, requires_grad=True)
        same_with_gradients(
            lambda: naive.enlarge(o, size, regions), lambda: enlarge(o, size, regions), [o]
        )


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (24, 40)])
def test_enlarge_is_the_library_call_where_there_is_one(size):
    """Every region by itself, for sides that R divides; all at once, for R = 1 and every side."""
    regions, cells = 4, 2
    o = torch.randn(1, 3, regions * cells, regions * cells)
    blocks = o.unflatten(2, (regions, cells)).unflatten(4, (regions, cells))
    blocks = blocks.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    part = (size[0] // regions, size[1] // regions)
    blocks = F.interpolate(blocks, part, mode="bilinear", align_corners=False)
    blocks = blocks.unflatten(0, (1, regions, regions)).permute(0, 3, 1, 4, 2, 5)
    close(enlarge(o, size, regions), blocks.flatten(2, 3).flatten(3, 4))
    odd = (size[0] + 1, size[1] - 3)
    wanted = F.interpolate(o, odd, mode="bilinear", align_corners=False)
    close(enlarge(o, odd, 1), wanted)


@pytest.mark.parametrize("options", [{}, {"position": True}, {"inputs": 7}])
@pytest.mark.parametrize("size", [(16, 24), (17, 23), (5, 9), (1, 1)])
def test_level(options, size):
    x = torch.randn(2, options.get("inputs", 16), *size, requires_grad=True)
    for regions in (1, 2, 4):
        one = level(regions, **options)
        inputs = [x, *one.parameters()]
        same_with_gradients(lambda: naive.pysa(x, one), lambda: one(x), inputs)  # noqa: B023


def test_positions_change_the_result():
    x, plain, other = torch.randn(1, 16, 12, 20), level(2), level(2, position=True)
    other.load_state_dict({**other.state_dict(), **plain.state_dict()})
    assert (plain(x) - other(x)).abs().max() > 1e-3
    torch.nn.init.zeros_(other.position)
    close(plain(x), other(x))


@pytest.mark.parametrize("size", [(32, 32), (16, 48), (17, 23), (5, 9), (1, 1), (24, 40)])
@pytest.mark.parametrize("position", [False, True])
def test_series(size, position):
    """Loops, level by level and in the space of cells: one equation, three programs."""
    slow, quick = series_head(False, position), series_head(True, position)
    quick.load_state_dict(slow.state_dict())
    x = torch.randn(2, 7, *size, requires_grad=True)
    same_with_gradients(
        lambda: slow(x), lambda: quick(x), [x, *slow.parameters()], [x, *quick.parameters()], 1e-9
    )
    if size[0] * size[1] <= 400:
        inputs = [x, *slow.parameters()]
        same_with_gradients(lambda: naive.series_head(x, slow), lambda: slow(x), inputs, None, 1e-9)
        x = torch.randn(2, 16, *size)
        close(naive.series(x, slow.levels), fast.series(x, slow.levels))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_series_keeps_the_layout_and_serves_training_after_inference(layout):
    head, images = series_head(True), torch.randn(2, 16, 13, 22)
    x = images.contiguous(memory_format=layout).requires_grad_()
    with torch.inference_mode():  # where the matrices of the next call are made
        fast.series(x, head.levels)
    y = fast.series(x, head.levels)
    assert y.is_contiguous(memory_format=layout)
    same_with_gradients(lambda: naive.series(x, head.levels), lambda: y, [x])


def test_the_shortcut_is_taken_where_it_is_asked_for(monkeypatch):
    taken = []
    monkeypatch.setattr(fast, "series", lambda x, levels: taken.append(levels) or x)
    slow, quick, x = series_head(False), series_head(True), torch.randn(1, 7, 4, 4)
    slow(x)
    assert not taken
    quick(x)
    assert taken == [quick.levels]
    torch.manual_seed(1)
    assert model.build(3).head.fast and not model.build(3, fast=False).head.fast


@pytest.mark.parametrize("size", [(9, 7), (16, 16), (5, 1)])
@pytest.mark.parametrize("position", [False, True])
def test_parallel(size, position):
    made = readings.PositionedLevel if position else model.PySALevel
    head = randomise(model.ParallelHead(7, 3, 16, (1, 2, 4), 2, made))
    x = torch.randn(2, 7, *size, requires_grad=True)
    inputs = [x, *head.parameters()]
    same_with_gradients(lambda: naive.parallel_head(x, head), lambda: head(x), inputs)
    joined = naive.parallel(x, head.levels)
    assert joined.shape[1] == 7 + 3 * 16
    close(joined[:, :7], x)
    close(joined[:, 7:23], head.levels[0](x))


def test_gradcheck():
    x = torch.randn(1, 16, 3, 4, requires_grad=True)
    levels = [level(1), level(2)]
    assert torch.autograd.gradcheck(lambda x: fast.series(x, levels), x)
    assert torch.autograd.gradcheck(levels[1], x)


# ------------------------------------------------------------------------------------ identities


def test_one_region_of_pixel_cells_is_the_non_local_block():
    x, one = torch.randn(2, 16, 6, 6), level(1, 6)
    q, k, v = (p(x).flatten(2) for p in (one.query, one.key, one.value))
    attention = (q.transpose(1, 2) @ k / 2**0.5).softmax(-1)  # d = 2
    close(one(x), (v @ attention.transpose(1, 2)).unflatten(2, (6, 6)))


def test_cells_of_one_pixel_are_windows():
    x, one = torch.randn(2, 16, 8, 8), level(4, 2)

    def windows(t):  # [B, c, 8, 8] -> [B * 16, 4, c]
        return F.unfold(t, 2, stride=2).unflatten(1, (-1, 4)).permute(0, 3, 2, 1).flatten(0, 1)

    out = F.scaled_dot_product_attention(*(windows(p(x)) for p in (one.query, one.key, one.value)))
    out = F.fold(out.unflatten(0, (2, 16)).permute(0, 3, 2, 1).flatten(1, 2), (8, 8), 2, stride=2)
    close(one(x), out)


def test_one_cell_per_region_is_pyramid_pooling():
    x, one = torch.randn(2, 16, 12, 18), level(3, 1)
    pooled = one.value(F.adaptive_avg_pool2d(x, 3))
    close(one(x), F.interpolate(pooled, (12, 18), mode="nearest"))


def test_zero_queries_average_the_region():
    x, one = torch.randn(2, 16, 12, 20), level(2, 2)
    torch.nn.init.zeros_(one.query.weight)
    torch.nn.init.zeros_(one.query.bias)
    close(one(x), F.interpolate(one.value(F.adaptive_avg_pool2d(x, 2)), (12, 20), mode="nearest"))


@pytest.mark.parametrize("size", SIZES)
def test_constant_input_gives_its_value(size):
    x = torch.randn(1, 16, 1, 1).expand(1, 16, *size)
    for regions in (1, 2, 4):
        one = level(regions)
        close(one(x), one.value(x))


def test_swapping_regions():
    x = torch.randn(1, 16, 16, 16)
    swapped = x.clone()
    swapped[..., :8, :8], swapped[..., 8:, 8:] = x[..., 8:, 8:], x[..., :8, :8]
    one = level(2)
    y, z = one(x), one(swapped)
    close(z[..., :8, :8], y[..., 8:, 8:])
    close(z[..., :8, 8:], y[..., :8, 8:])
    assert (z - y).abs().max() > 1e-3


def test_flip_and_transposition_commute():
    x = torch.randn(1, 16, 16, 24)
    one = level(4)
    close(one(x.flip(-1)), one(x).flip(-1))
    close(one(x.mT), one(x).mT)
    one = level(4, position=True)
    assert (one(x.flip(-1)) - one(x).flip(-1)).abs().max() > 1e-3


def test_regions_do_not_see_each_other():
    x = torch.randn(1, 16, 16, 16, requires_grad=True)
    gradient = torch.autograd.grad(level(2)(x)[..., :8, 8:].sum(), x)[0]
    assert gradient[..., :8, 8:].abs().min() > 0
    gradient[..., :8, 8:] = 0
    assert gradient.abs().max() == 0


def test_weights_sum_to_one():
    one = level(4)
    torch.nn.init.zeros_(one.value.weight)
    close(one(torch.randn(2, 16, 11, 13)), one.value.bias[:, None, None].expand(2, 16, 11, 13))


def test_images_of_a_batch_do_not_influence_each_other():
    x, one = torch.randn(3, 16, 9, 14), level(4)
    close(one(x), torch.cat([one(image[None]) for image in x]))


def test_a_single_pixel_gives_its_value():
    x, one = torch.randn(2, 16, 1, 1), level(8)
    close(one(x), one.value(x))


def test_permuting_the_cells_of_every_region():
    """No positions: a permutation of the G x G cells of every region permutes the output."""
    t, order = torch.randn(1, 16, 4, 4), torch.tensor([2, 0, 3, 1])

    def permute(t):
        return model.as_map(model.by_region(t, 2)[:, :, order], 2, 2)

    one = level(2)
    close(one.attend(permute(t)), permute(one.attend(t)))
    one = level(2, position=True)
    assert (one.attend(permute(t)) - permute(one.attend(t))).abs().max() > 1e-3


def test_cells_are_sorted_by_region():
    """The rows of a region are its cells, and the way back is the way back."""
    t = torch.arange(36.0).view(1, 1, 6, 6)
    rows = model.by_region(t, 3)[0, :, :, 0]
    assert rows[0].tolist() == [0, 1, 6, 7] and rows[5].tolist() == [16, 17, 22, 23]
    assert torch.equal(model.as_map(model.by_region(t, 3), 3, 2), t)


# ------------------------------------------------------------------------------------ the network


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    "variant,classes,head,aux",
    [
        ("series", 19, 22_558_739, 4_729_363),
        ("series", 150, 22_625_942, 4_796_566),
        ("parallel", 19, 24_396_819, 4_729_363),
        ("parallel", 150, 24_464_022, 4_796_566),
    ],
)
def test_parameter_counts(variant, classes, head, aux):
    with torch.device("meta"):
        network = model.build(classes, "resnet50", variant=variant)
    assert (count(network.head), count(network.aux_head), count(network.backbone)) == (
        head,
        aux,
        23_508_032,
    )
    if variant == "series":
        assert count(network.head.levels[0]) == 328_320
        assert (
            count(network.head.reduce) == 9_438_208 and count(network.head.bottleneck) == 11_797_504
        )


def test_parameter_counts_of_the_rest():
    with torch.device("meta"):
        assert count(model.build(19, "resnet50", context=False).head) == 21_245_459
        assert (
            count(model.build(19, "resnet50", context=False, variant="parallel").head) == 9_447_955
        )
        assert count(model.build(19, "resnet101").backbone) == 42_500_160
        positioned = model.build(19, "resnet50", position=True).head.levels
        assert count(positioned) == 4 * (328_320 + 9)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50"])
def test_backbones_keep_an_eighth(backbone):
    with torch.device("meta"):
        network = model.build(3, backbone=backbone, channels=16)
        network.train()
        images = torch.empty(1, 3, 97, 65)
        assert [tuple(f.shape[-2:]) for f in network.backbone(images)] == [
            (25, 17),
            (13, 9),
            (13, 9),
            (13, 9),
        ]
        assert {name: tuple(s.shape) for name, s in network(images).items()} == {
            "out": (1, 3, 97, 65),
            "aux": (1, 3, 97, 65),
        }


OPTIONS = [
    {},
    {"variant": "parallel"},
    {"context": False},
    {"context": False, "variant": "parallel"},
    {"position": True},
    {"position": True, "variant": "parallel"},
    {"regions": (4, 1)},
    {"cells": 3},
    {"cells": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_network_runs_and_every_parameter_learns(options):
    network = model.build(5, channels=16, **options).train()
    images = torch.randn(2, 3, 33, 47)
    outputs = network(images)
    assert set(outputs) == {"out", "aux"}
    sum((o * torch.randn_like(o)).sum() for o in outputs.values()).backward()
    for name, parameter in network.named_parameters():
        # Adding one number to all scores of a query changes no weight, so the bias of the keys gets
        # no gradient; with a single cell neither do queries, keys and positions.
        alone = options.get("cells") == 1 and ("query" in name or "key" in name)
        idle = alone or "key.bias" in name
        assert parameter.grad is not None and (idle or parameter.grad.abs().max() > 0), name
    assert set(network.eval()(images)) == {"out"}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fast_or_not_is_the_same_network(options):
    """In outputs and gradients, from images on, in training."""
    networks = [model.build(5, channels=16, fast=fast, **options).train() for fast in (True, False)]
    networks[1].load_state_dict(networks[0].state_dict())
    images, gradients = torch.randn(2, 3, 33, 47), []
    for network in networks:
        torch.manual_seed(1)  # of dropout
        outputs = network(images)
        sum((o**2).mean() for o in outputs.values()).backward()
        gradients.append([outputs["out"], *(p.grad for p in network.parameters())])
    for a, b in zip(*gradients, strict=True):
        close(a, b)


@pytest.mark.parametrize(
    "preset,options",
    [
        *(("tiny", options) for options in OPTIONS),
        ("resnet50", {}),
        ("resnet50", {"variant": "parallel"}),
        ("resnet101", {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [False, True])
def test_every_layer_is_called(preset, options, training):
    """So that hooks, summaries, pruning and quantisation see all of them."""
    for fast_form in (False, True):
        with torch.device("meta"):
            network = model.build(3, preset, fast=fast_form, **options).train(training)
        missed = owners_not_called(network)
        if not training:  # the auxiliary head runs in training only
            missed = {name for name in missed if not name.startswith("aux_head")}
        if fast_form and options == {"position": True}:  # fast.py does not call a whole level
            assert missed == {f"head.levels.{number}" for number in range(4)}
        else:
            assert not missed


def owners_not_called(network):
    """The names of the modules with parameters of their own that a forward pass does not call."""
    owners = {n for n, part in network.named_modules() if list(part.parameters(recurse=False))}
    called = set()
    for name, part in network.named_modules():
        part.register_forward_hook(lambda *_, name=name: called.add(name))
    network(torch.empty(2, 3, 64, 96, device="meta"))
    return owners - called


def test_network_is_its_parts():
    """Scores of the head, enlarged with half-pixel centres; layer 3 dilated by 2 and layer 4 by 4,
    every block."""
    network, images = model.build(3, channels=8).eval(), torch.randn(2, 3, 40, 56)
    scores = network.head(network.backbone(images)[-1])
    close(
        network(images)["out"],
        F.interpolate(scores, (40, 56), mode="bilinear", align_corners=False),
    )
    with torch.device("meta"):
        backbone = model.build(3, "resnet50").backbone
    assert {block.conv2.dilation for block in backbone.layer3} == {(2, 2)}
    assert {block.conv2.dilation for block in backbone.layer4} == {(4, 4)}


def test_tiny_without_context_cannot_see_the_key():
    """The premise of the `shapes` scenes: measured by input gradients, not computed by a
    formula."""
    for variant in ("series", "parallel"):
        network = model.build(12, variant=variant, context=False).eval()
        images = torch.randn(1, 3, 256, 256, requires_grad=True)
        network(images)["out"][0, :, 128, 128].sum().backward()
        rows, columns = images.grad.abs().amax((0, 1)).nonzero().T
        radius = max((rows - 128).abs().max(), (columns - 128).abs().max())
        assert 8 < radius < 64
        sees = model.build(12, variant=variant).eval()
        images.grad = None
        sees(images)["out"][0, :, 128, 128].sum().backward()
        assert (images.grad.abs().amax((0, 1)) > 0).float().mean() > 0.95


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="unknown preset 'huge'; valid: tiny, resnet50, resnet101"):
        model.build(3, "huge")
    with pytest.raises(ValueError, match="unknown option 'chanels'; valid: .*channels"):
        model.build(3, chanels=3)
    with pytest.raises(ValueError, match="unknown variant 'both'; valid: series, parallel"):
        model.build(3, variant="both")
    with pytest.raises(ValueError, match="unknown backbone 'vgg'; valid: resnet18"):
        model.build(3, backbone="vgg")
    for wrong in ({"regions": ()}, {"regions": (1, 0)}, {"cells": 0}):
        with pytest.raises(ValueError, match="regions and cells must be positive"):
            model.build(3, **wrong)


def test_every_option_is_explained():
    for name in model.DEFAULTS:
        assert f"    {name}: " in model.build.__doc__, name


# ------------------------------------------------------------------------------------ weights from
# elsewhere


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


def test_there_is_nothing_official():
    with pytest.raises(ValueError, match="no official PySA code or weights"):
        official.convert({}, variant="series")
    with pytest.raises(ValueError, match="ImageNet"):
        official.build_arguments({}, variant="series")
