"""PySA: loops == masked matrix == efficient form == cell space, the identities of the mechanism, exact sizes."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from .. import model, naive, official

SIZES = [(16, 16), (8, 24), (17, 11), (5, 9), (1, 1), (3, 1)]
GRIDS = [(1, 2), (2, 2), (4, 2), (1, 1), (3, 1), (2, 3), (3, 2), (1, 5)]  # (R, G)


@pytest.fixture(autouse=True)
def float64():
    """Everything here is compared in double precision, from the same random numbers every time."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def level(regions, cells=2, channels=4, **options):
    """A level with random weights and biases, and enough key channels to tell cells apart."""
    made = model.PySALevel(channels, regions, cells, key_channels=4, **options)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made.eval()


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


# ------------------------------------------------------------------------------------ loops == efficient


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reduction", ["avg", "max"])
def test_pool(size, reduction):
    x = torch.randn(2, 3, *size, requires_grad=True)
    for cells in (1, 2, 5, 8):
        same_with_gradients(lambda: naive.pool(x, cells, reduction), lambda: model.pool(x, cells, reduction), [x])
        if reduction == "avg":
            close(model.pool(x, cells), F.adaptive_avg_pool2d(x, cells))


def test_project():
    t, weight, bias = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 1, 1), torch.randn(5)
    close(naive.project(t, weight, bias), model.project(t, weight, bias))
    close(naive.project(t, weight, None), model.project(t, weight, None))


@pytest.mark.parametrize("regions,cells", GRIDS)
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("scaled,positioned", [(True, False), (False, True)])
def test_attend(regions, cells, heads, scaled, positioned):
    n = regions * cells
    q, k = torch.randn(2, 4, n, n, requires_grad=True), torch.randn(2, 4, n, n, requires_grad=True)
    v = torch.randn(2, 6, n, n, requires_grad=True)
    position = torch.randn(heads, 2 * cells - 1, 2 * cells - 1, requires_grad=True) if positioned else None
    inputs = [q, k, v] + ([position] if positioned else [])
    arguments = (q, k, v, regions, heads, scaled, position)
    same_with_gradients(lambda: naive.attend(*arguments), lambda: model.attend(*arguments), inputs)
    if heads == 1 and not positioned:
        dense = lambda: naive.attend_dense(q, k, v, regions, scaled)  # noqa: E731
        same_with_gradients(dense, lambda: model.attend(*arguments), inputs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scope,interpolation", itertools.product(["region", "merged"], ["bilinear", "nearest"]))
def test_enlarge(size, scope, interpolation):
    for regions, cells in [(1, 2), (2, 2), (3, 2), (4, 1), (2, 3)]:
        o = torch.randn(2, 3, regions * cells, regions * cells, requires_grad=True)
        arguments = (o, size, regions, scope, interpolation)
        same_with_gradients(lambda: naive.enlarge(*arguments), lambda: model.enlarge(*arguments), [o])


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (3, 24)])
def test_enlarge_is_the_library_call_where_there_is_one(size):
    """Per region: every block by itself, for sides divisible by R. Merged: the whole grid, for every size."""
    regions, cells = 4 if size[0] > 3 else 1, 2
    o = torch.randn(1, 3, regions * cells, regions * cells)
    close(model.enlarge(o, size, regions, "merged"), F.interpolate(o, size, mode="bilinear", align_corners=False))
    blocks = o.unflatten(2, (regions, cells)).unflatten(4, (regions, cells)).permute(0, 2, 4, 1, 3, 5)
    part = (size[0] // regions, size[1] // regions)
    blocks = F.interpolate(blocks.flatten(0, 2), part, mode="bilinear", align_corners=False)
    blocks = blocks.unflatten(0, (1, regions, regions)).permute(0, 3, 1, 4, 2, 5).flatten(2, 3).flatten(3, 4)
    close(model.enlarge(o, size, regions, "region"), blocks)


OPTIONS = [
    {}, {"scope": "merged"}, {"interpolation": "nearest"}, {"pool": "max"}, {"scaled": False}, {"heads": 2},
    {"position": True}, {"project": True}, {"gain": True}, {"inputs": 7},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [(16, 24), (17, 23), (5, 9), (1, 1)])
def test_level(options, size):
    x = torch.randn(2, options.get("inputs", 4), *size, requires_grad=True)
    for regions in (1, 2, 4):
        one = level(regions, **options)
        same_with_gradients(lambda: naive.pysa(x, one), lambda: one(x), [x, *one.parameters()])


@pytest.mark.parametrize("changed", [o for o in OPTIONS if o and "inputs" not in o])
def test_every_option_changes_the_result(changed):
    """An option that changes nothing is a dead one."""
    x = torch.randn(1, 4, 12, 20)
    plain, other = level(2), level(2, **changed)
    other.load_state_dict({**other.state_dict(), **plain.state_dict()})
    assert (plain(x) - other(x)).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(32, 32), (16, 48), (17, 23), (5, 9), (1, 1), (24, 40)])
@pytest.mark.parametrize("scope", ["region", "merged"])
def test_series(size, scope):
    """Loops, level by level and cell space: one equation, three programs."""
    x = torch.randn(2, 4, *size, requires_grad=True)
    levels = torch.nn.ModuleList(level(r, scope=scope, gain=r == 2) for r in (1, 2, 4, 8))
    inputs = [x, *levels.parameters()]
    same_with_gradients(lambda: model.series(x, levels), lambda: model.series_in_cell_space(x, levels), inputs, 1e-9)
    if size[0] * size[1] <= 400:
        close(naive.series(x, levels), model.series(x, levels))


def test_parallel():
    features, x = torch.randn(2, 3, 9, 7), torch.randn(2, 4, 9, 7)
    levels = [level(1), level(2)]
    close(naive.parallel(features, x, levels), model.parallel(features, x, levels))
    close(model.parallel(features, x, levels)[:, :3], features)


def test_gradcheck():
    x = torch.randn(1, 4, 5, 7, requires_grad=True)
    levels = [level(1), level(2)]
    assert torch.autograd.gradcheck(lambda x: model.series_in_cell_space(x, levels), x)


# ------------------------------------------------------------------------------------ identities


def test_one_region_of_pixel_cells_is_the_non_local_block():
    x, one = torch.randn(2, 4, 6, 6), level(1, 6)
    q, k, v = (p(x).flatten(2) for p in (one.query, one.key, one.value))
    attention = (q.transpose(1, 2) @ k / 2).softmax(-1)  # sqrt(4 key channels) = 2
    close(one(x), (v @ attention.transpose(1, 2)).unflatten(2, (6, 6)))


def test_cells_of_one_pixel_are_windows():
    x, one = torch.randn(2, 4, 8, 8), level(4, 2)

    def windows(t):  # [B, c, 8, 8] -> [B * 16, 4, c]
        return F.unfold(t, 2, stride=2).unflatten(1, (-1, 4)).permute(0, 3, 2, 1).flatten(0, 1)

    out = F.scaled_dot_product_attention(*(windows(p(x)) for p in (one.query, one.key, one.value)))
    out = F.fold(out.unflatten(0, (2, 16)).permute(0, 3, 2, 1).flatten(1, 2), (8, 8), 2, stride=2)
    close(one(x), out)


@pytest.mark.parametrize("scope", ["region", "merged"])
def test_one_cell_per_region_is_pyramid_pooling(scope):
    x, one = torch.randn(2, 4, 12, 18), level(3, 1, scope=scope)
    pooled = one.value(F.adaptive_avg_pool2d(x, 3))
    if scope == "region":
        wanted = F.interpolate(pooled, (12, 18), mode="nearest")
    else:
        wanted = F.interpolate(pooled, (12, 18), mode="bilinear", align_corners=False)
    close(one(x), wanted)


def test_zero_queries_average_the_region():
    x, one = torch.randn(2, 4, 12, 20), level(2, 2)
    torch.nn.init.zeros_(one.query.weight)
    torch.nn.init.zeros_(one.query.bias)
    close(one(x), F.interpolate(one.value(F.adaptive_avg_pool2d(x, 2)), (12, 20), mode="nearest"))


@pytest.mark.parametrize("size", SIZES)
def test_constant_input_gives_its_value(size):
    x = torch.randn(1, 4, 1, 1).expand(1, 4, *size)
    for regions in (1, 2, 4):
        one = level(regions)
        close(one(x), one.value(x))


def test_swapping_regions():
    x = torch.randn(1, 4, 16, 16)
    swapped = x.clone()
    swapped[..., :8, :8], swapped[..., 8:, 8:] = x[..., 8:, 8:], x[..., :8, :8]
    one = level(2)
    y, z = one(x), one(swapped)
    close(z[..., :8, :8], y[..., 8:, 8:])
    close(z[..., :8, 8:], y[..., :8, 8:])
    one.scope = "merged"
    assert (one(swapped)[..., :8, :8] - one(x)[..., 8:, 8:]).abs().max() > 1e-3


def test_flip_and_transposition_commute():
    x = torch.randn(1, 4, 16, 24)
    for scope in ("region", "merged"):
        one = level(4, scope=scope)
        close(one(x.flip(-1)), one(x).flip(-1))
        close(one(x.transpose(2, 3)), one(x).transpose(2, 3))


def test_regions_do_not_see_each_other():
    x = torch.randn(1, 4, 16, 16, requires_grad=True)
    gradient = torch.autograd.grad(level(2)(x)[..., :8, 8:].sum(), x)[0]
    assert gradient[..., :8, 8:].abs().min() > 0
    gradient[..., :8, 8:] = 0
    assert gradient.abs().max() == 0


def test_weights_sum_to_one():
    one = level(4)
    torch.nn.init.zeros_(one.value.weight)
    close(one(torch.randn(2, 4, 11, 13)), one.value.bias[:, None, None].expand(2, 4, 11, 13))


def test_images_of_a_batch_do_not_influence_each_other():
    x, one = torch.randn(3, 4, 9, 14), level(4)
    close(one(x), torch.cat([one(image[None]) for image in x]))


def test_a_single_pixel_gives_its_value():
    x, one = torch.randn(2, 4, 1, 1), level(8)
    close(one(x), one.value(x))


def test_permuting_the_cells_of_every_region():
    """No positions: permuting the G x G cells permutes the output. Exact for nearest enlargement."""
    x, one = torch.randn(1, 4, 16, 16), level(2, 2, interpolation="nearest")
    order = torch.tensor([2, 0, 3, 1])

    def permute(t):  # the 4 x 4 pixel blocks inside each of the 2 x 2 regions
        t = t.reshape(1, 4, 2, 2, 4, 2, 2, 4).permute(0, 1, 2, 5, 3, 6, 4, 7).flatten(4, 5)[:, :, :, :, order]
        return t.unflatten(4, (2, 2)).permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(1, 4, 16, 16)

    close(one(permute(x)), permute(one(x)))


# ------------------------------------------------------------------------------------ the network


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("variant,classes,head,aux", [
    ("series", 19, 22_558_739, 4_729_363), ("series", 150, 22_625_942, 4_796_566),
    ("parallel", 19, 24_396_819, 4_729_363), ("parallel", 150, 24_464_022, 4_796_566),
])
def test_parameter_counts(variant, classes, head, aux):
    with torch.device("meta"):
        network = model.build(classes, "resnet50", variant=variant)
    assert (count(network.head), count(network.aux_head), count(network.backbone)) == (head, aux, 23_508_032)
    if variant == "series":
        assert count(network.head.levels[0]) == 328_320
        assert count(network.head.reduce) == 9_438_208 and count(network.head.bottleneck) == 11_797_504


def test_parameter_counts_of_the_rest():
    with torch.device("meta"):
        assert count(model.build(19, "resnet50", context=False).head) == 21_245_459
        assert count(model.build(19, "resnet50", context=False, variant="parallel").head) == 9_447_955
        assert count(model.build(19, "resnet101").backbone) == 42_500_160
        assert count(model.build(19, "resnet50", share_levels=True).head.levels) == 328_320


@pytest.mark.parametrize("backbone,stem", [("resnet18", ()), ("resnet34", ()), ("resnet50", (64, 64, 128))])
def test_backbones_keep_an_eighth(backbone, stem):
    with torch.device("meta"):
        network = model.build(3, backbone=backbone, stem=stem, channels=16)
        network.train()
        images = torch.empty(1, 3, 97, 65)
        assert [tuple(f.shape[-2:]) for f in network.backbone(images)] == [(25, 17), (13, 9), (13, 9), (13, 9)]
        assert {name: tuple(s.shape) for name, s in network(images).items()} == {
            "out": (1, 3, 97, 65), "aux": (1, 3, 97, 65)}


@pytest.mark.parametrize("options", [
    {}, {"variant": "parallel"}, {"variant": "parallel", "reduce": "shared"}, {"context": False}, {"pool": "max"},
    {"context": False, "variant": "parallel"}, {"share_levels": True, "gain": True, "position": True},
    {"regions": (4, 1)}, {"cells": 3}, {"aux": False},
])
def test_every_network_runs_and_every_parameter_learns(options):
    network = model.build(5, channels=16, **options).train()
    images = torch.randn(2, 3, 33, 47)
    outputs = network(images)
    assert set(outputs) == ({"out"} if options.get("aux") is False else {"out", "aux"})
    sum((o * torch.randn_like(o)).sum() for o in outputs.values()).backward()
    for name, parameter in network.named_parameters():
        # Adding one number to all scores of a query changes no weight, so the bias of the keys gets none; and
        # behind a gain that starts at zero nothing learns in the first step.
        idle = "key.bias" in name or (options.get("gain") and "levels" in name and "gain" not in name)
        assert parameter.grad is not None and (idle or parameter.grad.abs().max() > 0), name
    assert set(network.eval()(images)) == {"out"}


def test_network_is_its_parts():
    """Scores of the head, enlarged with half-pixel centres; layer 3 dilated by 2 and layer 4 by 4, every block."""
    network, images = model.build(3, channels=8).eval(), torch.randn(2, 3, 40, 56)
    scores = network.head(network.backbone(images)[-1])
    close(network(images)["out"], F.interpolate(scores, (40, 56), mode="bilinear", align_corners=False))
    with torch.device("meta"):
        backbone = model.build(3, "resnet50").backbone
    assert {block.conv2.dilation for block in backbone.layer3} == {(2, 2)}
    assert {block.conv2.dilation for block in backbone.layer4} == {(4, 4)}


def test_max_pooling_stands_level_by_level():
    """A maximum is not linear, so the network must not take the short cut."""
    head, features = model.build(3, channels=8, pool="max").eval().head, torch.randn(1, 128, 9, 12)
    joined = torch.cat([naive.series(head.reduce(features), head.levels), features], dim=1)
    close(head(features), head.classifier(head.bottleneck(joined)))


def test_shared_levels_are_one_set_of_weights():
    levels = model.build(3, share_levels=True).head.levels
    assert all(level.query is levels[0].query and level.regions == r for level, r in zip(levels, (1, 2, 4, 8)))


def test_head_is_its_equations():
    """Series: [X_4; F] goes into the classifier. Parallel: [F; Y_1; ...]. Both from the readable forms."""
    features = torch.randn(2, 128, 9, 12)
    for variant in ("series", "parallel"):
        head = model.build(3, channels=8, variant=variant).eval().head
        if variant == "series":
            joined = torch.cat([naive.series(head.reduce(features), head.levels), features], dim=1)
        else:
            joined = naive.parallel(features, features, head.levels)
        close(head(features), head.classifier(head.bottleneck(joined)))


def test_tiny_without_context_cannot_see_the_key():
    """The premise of the `shapes` scenes: measured by input gradients, not computed by a formula."""
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
    with pytest.raises(ValueError, match="heads=3 must divide channels=64"):
        model.build(3, heads=3)
    with pytest.raises(ValueError, match="unknown backbone 'vgg'; valid: resnet18"):
        model.build(3, backbone="vgg")
    with pytest.raises(ValueError, match="regions"):
        model.build(3, regions=())


# ------------------------------------------------------------------------------------ weights from elsewhere


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
    with pytest.raises(ValueError, match=r"1 missing \(conv1.weight\); 1 unexpected \(layer9.weight\)"):
        official.load_backbone(target, weights)
    for name, value in target.state_dict().items():
        close(value, before[name])


def test_there_is_nothing_official():
    with pytest.raises(ValueError, match="no official PySA code or weights"):
        official.convert({})
    with pytest.raises(ValueError, match="ImageNet"):
        official.build_arguments({})
