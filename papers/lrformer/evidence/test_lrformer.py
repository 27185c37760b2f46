"""LRFormer: loops == efficient form, the identities of the mechanism, exact sizes, the official
network's outputs."""

import functools
import itertools
import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from .. import fast, model, naive, official
from .golden.seeded import load_case, seeded_image, seeded_state

GOLDEN = Path(__file__).parent / "golden"
SIZES = [(5, 7), (1, 1), (3, 2), (9, 4), (1, 3), (4, 4), (2, 4), (8, 8)]
RADIUS_WITHOUT_CONTEXT = 221
SMALL = dict(
    embed_dims=(4, 4, 8, 8),
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 2, 2),
    mlp_ratios=(2, 2, 1, 1),
    pool_sizes=(4, 4, 4, 2),
    head_channels=8,
    head_pool_size=4,
    drop_path=0.0,
)


@pytest.fixture(autouse=True)
def float64():
    """Everything here is compared in double precision, from the same random numbers every time."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def randomise(module):
    """Random weights and biases, so that no term can hide behind a zero or a one; BatchNorm
    statistics as well."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return module.eval()


def attention(channels=4, heads=2, side=4):
    return randomise(model.Attention(channels, heads, side))


def switch(module, fast):
    """The same module on the whiteboard's path or, where `fast`, on that of fast.py."""
    for part in module.modules():
        if hasattr(part, "fast"):
            part.fast = fast
    return module


both_forms = pytest.mark.parametrize("fast_form", [True, False], ids=["fast", "whiteboard"])


def close(a, b, tolerance=1e-10):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * max(1, b.abs().max()), (a - b).abs().max()


def same_with_gradients(f, g, inputs, tolerance=1e-10):
    """f and g give the same values and the same gradients with respect to all `inputs`."""
    a, b = f(), g()
    close(a, b, tolerance)
    seed = torch.randn_like(a)
    for x, y in zip(torch.autograd.grad(a, inputs, seed), torch.autograd.grad(b, inputs, seed)):
        close(x, y, tolerance)


# ------------------------------------------------------------------------------------ loops ==
# efficient


@pytest.mark.parametrize(
    "size,grids",
    [
        ((128, 128), [(16, 16), (11, 11), (8, 8), (6, 6), (4, 4)]),
        ((128, 176), [(16, 22), (11, 15), (8, 11), (6, 8), (4, 6)]),
        ((256, 512), [(16, 32), (11, 22), (8, 16), (6, 12), (4, 8)]),
        (
            (24, 16),
            [(24, 16), (17, 11), (12, 8), (9, 6), (6, 4)],
        ),  # 16.5 goes up, where round() would go to the even 16
    ],
)
def test_grid(size, grids):
    for form in (model, naive):
        assert [form.grid(size, side) for side in (16, 11, 8, 6, 4)] == grids
        assert [form.grid(size[::-1], side) for side in (16, 11, 8, 6, 4)] == [
            (b, a) for a, b in grids
        ]


def test_grid_everywhere():
    for height, width, side in itertools.product(
        range(1, 70, 3), range(1, 70, 2), (1, 2, 6, 11, 16, 32)
    ):
        cells = model.grid((height, width), side)
        assert cells == naive.grid((height, width), side) and min(cells) == side


@pytest.mark.parametrize(
    "side,sides",
    [
        (16, (11, 8, 6, 4)),
        (32, (22, 16, 12, 8)),
        (8, (6, 4, 3, 2)),
        (4, (3, 2, 2, 1)),
        (2, (1, 1, 1, 1)),
    ],
)
def test_pyramid(side, sides):
    assert model.pyramid(side) == naive.pyramid(side) == sides == model.Attention(8, 1, side).sides


@pytest.mark.parametrize("size", SIZES)
def test_pool(size):
    x = torch.randn(2, 3, *size, requires_grad=True)
    for cells in ((2, 3), (5, 4), (8, 8)):
        same_with_gradients(lambda: naive.pool(x, cells), lambda: model.pool(x, cells), [x])
        close(model.pool(x, cells), F.adaptive_avg_pool2d(x, cells))
    grids = [(3, 4), (1, 2), (6, 5)]
    for number, cells in enumerate(grids):
        same_with_gradients(
            lambda: naive.pool(x, cells),
            lambda: fast.pool_all(x, grids)[number],
            [x],  # noqa: B023
        )
    assert fast.pool_all(x.float(), grids)[0].dtype == torch.float32
    with torch.no_grad():  # PyTorch's own pooling
        for together, cells in zip(fast.pool_all(x, grids), grids, strict=True):
            close(together, F.adaptive_avg_pool2d(x, cells))


@pytest.mark.parametrize("size", SIZES)
def test_enlarge(size):
    for cells in ((2, 3), (5, 4), (8, 8)):
        o = torch.randn(2, 3, *cells, requires_grad=True)
        with torch.inference_mode():  # where the matrices of the next calls are made
            fast.enlarge(o, size)
        same_with_gradients(lambda: naive.enlarge(o, size), lambda: model.enlarge(o, size), [o])
        same_with_gradients(lambda: naive.enlarge(o, size), lambda: fast.enlarge(o, size), [o])
        close(model.enlarge(o, size), F.interpolate(o, size, mode="bilinear", align_corners=False))


def test_queries_keys_values_attend():
    one = attention(6, 3)
    convs = [randomise(model.depthwise(6)) for _ in range(2)]
    maps = [
        torch.randn(2, 6, 3, 2, requires_grad=True),
        torch.randn(2, 6, 1, 4, requires_grad=True),
    ]
    same_with_gradients(
        lambda: naive.queries(maps[0], one), lambda: one.query(model.as_tokens(maps[0])), [maps[0]]
    )
    close(model.as_map(model.as_tokens(maps[1]), (1, 4)), maps[1])
    for part, used in itertools.product((0, 1), (convs, ())):
        same_with_gradients(
            lambda: naive.keys_values(maps, one, used)[part],  # noqa: B023
            lambda: one.keys_values(maps, used)[part],  # noqa: B023
            maps,
        )
    q, k, v = (torch.randn(2, n, 6, requires_grad=True) for n in (5, 7, 7))
    for heads in (1, 2, 3):

        def attend():
            cut = (model.by_head(t, heads) for t in (q, k, v))  # noqa: B023
            return F.scaled_dot_product_attention(*cut).transpose(1, 2).flatten(2)

        same_with_gradients(lambda: naive.attend(q, k, v, heads), attend, [q, k, v])  # noqa: B023


def test_the_switch_reaches_every_module():
    for wanted in (True, False):
        parts = [part for part in model.build(2, fast=wanted).modules() if hasattr(part, "fast")]
        assert parts and all(part.fast == wanted for part in parts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("in_encoder", [True, False])
@both_forms
def test_lrsa(size, in_encoder, fast_form):
    """Maps smaller than the grid, portrait, odd, a single pixel, a whole multiple (the short cut),
    larger."""
    one = switch(attention(side=4 if min(size) > 1 and max(size) < 9 else 2), fast_form)
    x = torch.randn(2, 4, *size, requires_grad=True)
    convs = [randomise(model.depthwise(4)) for _ in range(4)] if in_encoder else []
    inputs = [x, *one.parameters(), *(p for conv in convs for p in conv.parameters())]
    same_with_gradients(lambda: naive.lrsa(x, one, convs), lambda: one(x, convs), inputs)


@pytest.mark.parametrize("heads", [1, 2, 4])
@both_forms
def test_heads(heads, fast_form):
    one, x = switch(attention(4, heads), fast_form), torch.randn(1, 4, 6, 9)
    close(naive.lrsa(x, one), one(x))


def queries_asked(one):
    """How many queries an attention asks for maps of several sizes around its grid of side 4."""
    counts = []
    hook = one.query.register_forward_hook(lambda *called: counts.append(called[2].shape[1]))
    for size in ((2, 2), (4, 4), (2, 4), (1, 1), (3, 3), (8, 16), (16, 32)):
        one(torch.randn(1, 4, *size))
    hook.remove()
    return counts


def test_a_small_map_asks_no_more_queries_than_it_has_pixels():
    one = attention(side=4)
    assert queries_asked(one) == [4, 16, 8, 1, 16, 32, 32]
    assert queries_asked(switch(one, False)) == [16, 16, 32, 16, 16, 32, 32]


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (6, 2)])
@both_forms
def test_feed_forward(size, fast_form):
    ffn = switch(randomise(model.FeedForward(3, 2)), fast_form)
    x = torch.randn(2, 3, *size, requires_grad=True)
    inputs = [x, *ffn.parameters()]
    same_with_gradients(lambda: naive.feed_forward(x, ffn), lambda: ffn(x), inputs)


@pytest.mark.parametrize("height", [1, 8, 9, 16, 17, 23])
@torch.no_grad()
def test_feed_forward_in_strips(height, monkeypatch):
    ffn, x = randomise(model.FeedForward(3, 2)), torch.randn(2, 3, height, 5)
    wanted, rows = switch(ffn, False)(x), []
    ffn.widen.register_forward_hook(lambda *called: rows.append(called[2].shape[1]))
    monkeypatch.setattr(fast, "STRIP", 1)
    close(switch(ffn, True)(x), wanted)
    assert max(rows) <= 8 and sum(rows) == height  # no row is widened twice


def test_the_module_picks_strips_only_without_gradients():
    ffn, x = randomise(model.FeedForward(8, 8)), torch.randn(1, 8, 200, 200)
    calls = []
    ffn.widen.register_forward_hook(lambda *called: calls.append(called[2].shape[1]))
    with torch.no_grad():
        first = ffn(x)
    assert len(calls) > 1 and max(calls) < 200
    close(first, ffn(x))
    assert calls[-1] == 200


@both_forms
def test_residual_in_mixed_precision(fast_form):
    """The sum around the depth-wise convolution keeps what small weights add: beside a 1 in the
    kernel they would be nothing in bfloat16."""
    ffn, x = switch(model.FeedForward(4, 2), fast_form), torch.randn(2, 4, 5, 6)
    nn.init.constant_(ffn.conv.weight, 1e-3)
    called = []
    ffn.conv.register_forward_hook(lambda *_: called.append(True))
    wanted = naive.feed_forward(x, ffn)
    with torch.autocast("cpu", torch.bfloat16):
        got = ffn.float()(x.float()).double()
    assert called  # with its own kernel
    assert (got - wanted).abs().max() < 0.03


@pytest.mark.parametrize("size", [(1, 1), (4, 3)])
@pytest.mark.parametrize(
    "norm,pre_norm",
    [(model.ChannelNorm, False), (model.ChannelNorm, True), (nn.BatchNorm2d, False)],
)
@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("layer_scale", [0.3, None])
@both_forms
def test_block(size, norm, pre_norm, context, layer_scale, fast_form):
    one = randomise(
        model.Block(4, 2, 2, 2, norm, layer_scale, 0.5, pre_norm, context, fast=fast_form)
    )
    convs = [randomise(model.depthwise(4)) for _ in range(4)] if norm is model.ChannelNorm else []
    x = torch.randn(2, 4, *size, requires_grad=True)
    same_with_gradients(
        lambda: naive.block(x, one, convs), lambda: one(x, convs), [x, *one.parameters()]
    )


@pytest.mark.parametrize("context", [True, False])
@both_forms
def test_decode(context, fast_form):
    """Squeezing before enlarging is squeezing after it."""
    decoder = randomise(model.Decoder((3, 4, 5), 2, 8, 2, 0.5, context, fast_form))
    features = [
        torch.randn(1, c, *size, requires_grad=True)
        for c, size in ((3, (3, 4)), (4, (2, 2)), (5, (1, 1)))
    ]
    same_with_gradients(
        lambda: naive.decode(features, decoder),
        lambda: decoder(features),
        [*features, *decoder.parameters()],
    )


OPTIONS = [
    {},
    {"context": False},
    {"layer_scale": 0.5, "init_std": 0.5},
    {"pool_sizes": (16, 6, 8, 2), "head_pool_size": 5, "num_heads": (4, 1, 4, 8)},
    {"depths": (2, 1, 22, 1)},
    {"mlp_ratios": (4, 1, 2, 3), "head_channels": 16, "drop_path": 0.3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [(32, 32), (41, 70)])
@pytest.mark.parametrize("training", [False, True])
def test_both_forms_of_the_network(options, size, training):
    """Same scores, same gradients, whatever the options; same random numbers for both."""
    network = randomise(model.build(3, **{**SMALL, **options})).train(training)
    images, results = torch.randn(2, 3, *size, requires_grad=True), []
    for form in (True, False):
        torch.manual_seed(1)  # of dropout and drop path
        out = switch(network, form)(images)["out"]
        inputs = [images, *network.parameters()]
        results.append([out, *torch.autograd.grad(out.square().mean(), inputs)])
    largest = max(gradient.abs().max() for gradient in results[0][1:])
    for a, b in zip(*results, strict=True):
        # A bias in front of BatchNorm has no gradient but rounding, of the size of the others'.
        assert (a - b).abs().max() <= 1e-10 * max(largest, b.abs().max())
    with torch.no_grad():  # strips in the feed-forward part
        torch.manual_seed(1)
        close(switch(network.eval(), True)(images)["out"], switch(network, False)(images)["out"])


SPLIT = ("squeeze1", "squeeze2", "position", "feed_forward.conv")  # in the docstring of fast.py


@pytest.mark.parametrize("preset", list(model.PRESETS))
@pytest.mark.parametrize("training", [False, True])
def test_every_layer_is_called(preset, training):
    """So that hooks, summaries, pruning and quantisation see all of them."""
    with torch.device("meta"):
        network = model.build(3, preset).train(training)
    assert not missed(switch(network, False))
    assert missed(switch(network, True)) == split(network)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_every_layer_is_called_whatever_the_options(options, training):
    network = model.build(3, **{**SMALL, **options}).to("meta").train(training)
    assert not missed(switch(network, False))
    assert missed(switch(network, True)) == split(network)


def split(network):
    """The names of the layers that fast.py does not call."""
    return {name for name, _ in network.named_modules() if name.endswith(SPLIT)}


def missed(network):
    """The names of the modules with parameters of their own that a forward pass does not call."""
    owners = {n for n, part in network.named_modules() if list(part.parameters(recurse=False))}
    called, hooks = set(), []
    for name, part in network.named_modules():
        hooks.append(part.register_forward_hook(lambda *_, name=name: called.add(name)))
    network(torch.empty(2, 3, 64, 96, device="meta"))
    for hook in hooks:
        hook.remove()
    return owners - called


@both_forms
def test_linear_layers_can_be_replaced(fast_form):
    """Tools swap layers for their own, which have no weight to be read: quantised ones,
    adapters."""

    class Wrapped(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x)

    network = switch(randomise(model.build(3, **SMALL)), fast_form)
    images = torch.randn(1, 3, 40, 56)
    wanted = network(images)["out"]
    for part in list(network.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.Linear):
                setattr(part, name, Wrapped(child))
    close(network(images)["out"], wanted)


def test_gradcheck():
    one, convs = attention(4, 2, 2), [randomise(model.depthwise(4)) for _ in range(4)]
    x = torch.randn(1, 4, 3, 5, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: one(x, convs), x)


# ------------------------------------------------------------------------------------ identities


@both_forms
def test_without_pooling_it_is_ordinary_self_attention(fast_form):
    """A grid as large as the map and one key level of that size: PyTorch's own multi-head
    attention, exactly."""
    one, x = switch(attention(8, 4, 5), fast_form), torch.randn(2, 8, 5, 5)
    one.sides = (5,)
    ordinary = nn.MultiheadAttention(8, 4, batch_first=True)
    with torch.no_grad():
        ordinary.in_proj_weight.copy_(torch.cat([one.query.weight, one.key_value.weight]))
        ordinary.in_proj_bias.copy_(torch.cat([one.query.bias, one.key_value.bias]))
        ordinary.out_proj.load_state_dict(one.output.state_dict())
    tokens = x.flatten(2).transpose(1, 2)
    normed = F.layer_norm(tokens, (8,), one.norm.weight, one.norm.bias, 1e-5)
    wanted = ordinary(tokens, normed, normed, need_weights=False)[0]
    close(one(x), wanted.transpose(1, 2).unflatten(2, (5, 5)))


@pytest.mark.parametrize("size", [(4, 8), (1, 1), (1, 2), (2, 2), (8, 8), (8, 4)])
def test_whole_multiples_of_the_map_take_the_general_path_to_the_same_place(size):
    """The short cut for small maps against pooling to the grid and enlarging back."""
    one, x = attention(side=8), torch.randn(1, 4, *size, requires_grad=True)
    asked = []
    one.query.register_forward_hook(lambda *called: asked.append(called[2].shape[1]))
    inputs = [x, *one.parameters()]
    same_with_gradients(lambda: switch(one, True)(x), lambda: switch(one, False)(x), inputs)
    assert asked == [size[0] * size[1], 64 * max(size) // min(size)]


@both_forms
def test_the_number_of_cells_does_not_depend_on_the_resolution(fast_form):
    one, shapes = switch(attention(side=8), fast_form), []
    for layer in (one.query, one.key_value):
        layer.register_forward_hook(lambda *called: shapes.append(called[2].shape[1]))
    for factor in (1, 2, 4):
        one(torch.randn(1, 4, 12 * factor, 16 * factor))
    assert shapes == [8 * 11, 6 * 8 + 4 * 5 + 3 * 4 + 2 * 3] * 3


@both_forms
def test_tokens_are_a_set(fast_form):
    """The order of the pyramid matters only for which convolution a level gets."""
    one, x = switch(attention(side=16), fast_form), torch.randn(1, 4, 20, 20)
    convs = [randomise(model.depthwise(4)) for _ in range(4)]
    y = one(x, convs)
    one.sides = one.sides[::-1]
    close(one(x, convs[::-1]), y)
    assert (one(x, convs) - y).abs().max() > 1e-3


@both_forms
def test_constant_map_gives_a_constant_map(fast_form):
    x = torch.randn(1, 4, 1, 1)
    one = switch(attention(side=8), fast_form)
    close(one(x.expand(1, 4, 9, 13)), one(x).expand(1, 4, 9, 13))


@both_forms
def test_flips_and_transposition_commute(fast_form):
    one, x = switch(attention(side=4), fast_form), torch.randn(1, 4, 12, 20)
    close(one(x.flip(-1)), one(x).flip(-1))
    close(one(x.transpose(2, 3)), one(x).transpose(2, 3))


@both_forms
def test_images_of_a_batch_do_not_influence_each_other(fast_form):
    one, x = switch(attention(), fast_form), torch.randn(3, 4, 9, 14)
    close(one(x), torch.cat([one(image[None]) for image in x]))


def test_norms_have_their_own_eps():
    assert model.Attention(4, 1, 4).norm.eps == 1e-5 and model.ChannelNorm(4).eps == 1e-6
    tokens = 1e-3 * torch.randn(1, 4, 3, 3)  # variance about eps: the choice shows
    close(
        model.ChannelNorm(4)(tokens),
        F.layer_norm(tokens.movedim(1, 3), (4,), eps=1e-6).movedim(3, 1),
    )


def test_drop_path():
    one = randomise(model.Block(4, 2, 2, 2, model.ChannelNorm, None, 0.75))
    y = torch.ones(4000, 1, 1, 1)
    close(one.drop(y), y)
    dropped = one.train().drop(y)
    assert set(dropped.flatten().tolist()) == {0.0, 4.0} and abs(dropped.mean() - 1) < 0.2
    one.drop.rate, x = 1 - 1e-12, torch.randn(2, 4, 3, 5)  # both branches left out
    close(one(x), x + one.position(x))
    network = model.build(3, **{**SMALL, "drop_path": 0.4})
    rates = [block.drop.rate for stage in network.backbone.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert network.head.fuse1.drop.rate == network.head.fuse2.drop.rate == 0


# ------------------------------------------------------------------------------------ the network


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    "preset,encoder,decoder",
    [
        ("t", 11_269_992, 1_994_902),
        ("s", 27_861_280, 4_362_390),
        ("b", 59_993_192, 7_512_214),
        ("l", 99_306_000, 11_673_750),
        ("xl", 184_721_344, None),
    ],
)
def test_parameter_counts(preset, encoder, decoder):
    with torch.device("meta"):
        network = model.build(150, preset)
    assert count(network.backbone) == encoder
    assert decoder is None or count(network.head) == decoder


def test_presets_are_the_published_ones():
    with torch.device("meta"):
        networks = {preset: model.build(3, preset) for preset in ("t", "s", "b", "l", "xl")}
    for preset, network in networks.items():
        stages = network.backbone.stages
        assert [stage.blocks[0].attention.heads for stage in stages] == [2, 4, 10, 16]
        assert [
            stage.blocks[0].feed_forward.conv.in_channels // stage.blocks[0].position.in_channels
            for stage in stages
        ] == [8, 8, 4, 4]
        assert {block.attention.side for stage in stages for block in stage.blocks} == {16}
        assert [stage.blocks[0].scale1 is None for stage in stages] == [True, True, False, False]
        normed = [j for j, block in enumerate(stages[2].blocks) if block.pre_norm is not None]
        assert normed == ([7, 15] if preset == "xl" else [])
        assert network.head.fuse1.attention.heads == 8 and network.head.fuse1.attention.side == 32
    last = {
        preset: network.backbone.stages[3].blocks[-1].drop.rate
        for preset, network in networks.items()
    }
    assert last == pytest.approx({"t": 0.1, "s": 0.2, "b": 0.4, "l": 0.6, "xl": 0.4})


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 61), (95, 32)])
@pytest.mark.parametrize("context", [True, False])
def test_every_size_runs_and_every_parameter_learns(size, context):
    network = model.build(5, **SMALL, layer_scale=1.0, context=context).train()
    images = torch.randn(2, 3, *size)
    for size_here, stride in zip((c.shape[-2:] for c in network.backbone(images)), (4, 8, 16, 32)):
        assert tuple(size_here) == tuple(-(-side // stride) for side in size)
    outputs = network(images)
    assert {name: tuple(o.shape) for name, o in outputs.items()} == {"out": (2, 5, *size)}
    (outputs["out"] * torch.randn_like(outputs["out"])).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        # BatchNorm takes a bias before it away again, and the keys of one token or a key's bias
        # move no weight.
        if (
            "embed" not in name
            and "norm.bias" not in name
            and "query" not in name
            and "key_value" not in name
        ):
            assert parameter.grad.abs().max() > 0, name


def test_network_is_its_parts():
    network, images = randomise(model.build(3, **SMALL)), torch.randn(2, 3, 40, 56)
    c1, c2, c3, c4 = network.backbone(images)
    x = images
    for stage, wanted in zip(network.backbone.stages, (c1, c2, c3, c4)):
        x = F.layer_norm(
            stage.embed(x).movedim(1, 3),
            stage.norm.normalized_shape,
            stage.norm.weight,
            stage.norm.bias,
            1e-6,
        ).movedim(3, 1)
        for block in stage.blocks:
            x = block(x, stage.convs)
        close(x, wanted)
    scores = network.head((c2, c3, c4))
    close(network.scores(images), scores)
    close(
        network(images)["out"],
        F.interpolate(scores, (40, 56), mode="bilinear", align_corners=False),
    )


def test_memory_layout_does_not_matter():
    network, images = randomise(model.build(3, **SMALL)), torch.randn(2, 3, 40, 56)
    close(
        network(images)["out"], network(images.contiguous(memory_format=torch.channels_last))["out"]
    )
    with torch.no_grad():  # strips in the feed-forward part
        close(network(images)["out"], network(images.clone().requires_grad_())["out"])
    assert network.backbone(images)[0].is_contiguous(memory_format=torch.channels_last)


def test_evaluation_between_training_steps():
    """Nothing made in inference mode may linger and break the gradients of a later step."""
    network, images = model.build(3, **SMALL), torch.randn(2, 3, 32, 48)
    with torch.inference_mode():
        network.eval()(images)
    network.train()(images)["out"].sum().backward()


def test_no_context_leaves_out_the_attention_and_nothing_else():
    network, plain = model.build(3, **SMALL), model.build(3, **SMALL, context=False)
    gone = set(network.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) < set(network.state_dict())
    assert {
        next(p for p in ("attention", "norm1", "scale1", "convs") if p in name.split("."))
        for name in gone
    } == {"attention", "norm1", "scale1", "convs"}


def test_what_the_convolutions_see_without_attention():
    """Not local: four stages down, a 3x3 kernel spans 96 pixels. With attention every pixel sees
    every other."""
    narrow = dict(
        embed_dims=(4, 4, 4, 4), num_heads=(1, 1, 1, 1), mlp_ratios=(1, 1, 1, 1), head_channels=8
    )
    seen = {}
    for context in (True, False):
        network = model.build(
            12, **narrow, context=context
        ).eval()  # how far `tiny` sees is not a matter of its widths
        images = torch.randn(1, 3, 512, 512, requires_grad=True)
        network.scores(images)[0, :, 32, 32].sum().backward()
        rows, columns = images.grad.abs().amax((0, 1)).nonzero().T
        seen[context] = int(max((rows - 256).abs().max(), (columns - 256).abs().max()))
    assert seen == {True: 256, False: RADIUS_WITHOUT_CONTEXT}


def test_initialisation():
    torch.set_default_dtype(torch.float32)
    network = model.build(150, "t", depths=(1, 1, 1, 1))
    block, head = network.backbone.stages[2].blocks[0], network.head

    def std(weight):
        return weight.std().item()

    assert std(block.attention.query.weight) == pytest.approx(0.02, rel=0.05)
    assert std(head.fuse1.attention.key_value.weight) == pytest.approx(0.02, rel=0.05)
    assert std(head.fuse1.attention.query.weight) == pytest.approx(
        (1 / 3 / 256) ** 0.5, rel=0.05
    )  # a convolution's
    assert (
        std(head.classifier.weight) == pytest.approx(0.01, rel=0.05)
        and head.classifier.bias.abs().max() == 0
    )
    assert std(head.squeeze1.weight) == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    assert block.attention.output.bias.abs().max() == 0
    for factor in (block.scale1, block.scale2, head.fuse2.scale1, head.fuse1.scale2):
        assert factor.unique().tolist() == pytest.approx([1e-6])
    wider = (
        model.build(3, **SMALL, init_std=1.0)
        .backbone.stages[3]
        .blocks[0]
        .attention.key_value.weight
    )
    assert std(wider) == pytest.approx(1.0, rel=0.3)


def test_loss():
    label = torch.randint(0, 3, (2, 33, 40))
    label[0, :20] = 255
    scores = {"out": torch.randn(2, 3, 33, 40)}

    def cross_entropy(scores, label):
        return F.cross_entropy(scores, label, ignore_index=255)

    ours = model.build(3, **SMALL).loss(scores, label, cross_entropy)
    theirs = model.build(3, **SMALL, loss_pixels="all").loss(scores, label, cross_entropy)
    per_pixel = F.cross_entropy(scores["out"].float(), label, ignore_index=255, reduction="none")
    close(ours, cross_entropy(scores["out"], label))
    close(theirs, per_pixel.mean(), 1e-6)
    close(theirs.double(), ours * (label != 255).double().mean(), 1e-6)


def test_recipe_decays_what_the_release_decays():
    make_optimizer = pytest.importorskip("common.recipe", reason="taken alone").make_optimizer
    from ..recipe import RECIPES

    with torch.device("meta"):
        network = model.build(150, "xl")
        groups = make_optimizer(network, RECIPES["ade20k"]).param_groups
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for group in groups:
        for name in (names[id(parameter)] for parameter in group["params"]):
            assert group["factor"] == (10 if name.startswith("head.") else 1), name
            spared = name.startswith("backbone.") and "norm" in name
            assert group["weight_decay"] == (0 if spared else 0.01), name


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="unknown preset 'm'; valid: tiny, t, s, b, l, xl"):
        model.build(3, "m")
    with pytest.raises(ValueError, match="unknown option 'pool_size'; valid: .*pool_sizes"):
        model.build(3, pool_size=3)
    with pytest.raises(ValueError, match="unknown loss_pixels 'some'; valid: valid, all"):
        model.build(3, loss_pixels="some")
    with pytest.raises(ValueError, match="3 heads do not divide 32 channels"):
        model.build(3, num_heads=(3, 2, 4, 6))
    with pytest.raises(ValueError, match="depths needs one number for each of the four stages"):
        model.build(3, depths=(1, 1))
    with pytest.raises(ValueError, match="at least 2, not 1"):
        model.build(3, head_pool_size=1)


# ------------------------------------------------------------------------------------ the official
# network


@functools.cache
def golden(name):
    """(case, official weights, input) of a stored case, in double precision. Kept: it takes a
    second to draw them."""
    case = load_case(GOLDEN / f"{name}.npz")
    weights = {key: torch.from_numpy(value) for key, value in seeded_state(case["shapes"]).items()}
    weights = {
        key: value.double() if value.is_floating_point() else value
        for key, value in weights.items()
    }
    images = torch.from_numpy(
        seeded_image(case["meta"]["input_shape"], case["meta"]["input_seed"])
    ).double()
    return case, weights, images


def run(network, images):
    """Outputs under the names of the stored cases; of an attention: behind Eq. (7), before its
    scale."""
    found = {}

    def keep(name):
        return lambda module, inputs, output: found.update({name: output})

    stages = network.backbone.stages
    hooks = [
        stages[0].blocks[0].attention.register_forward_hook(keep("attn.block1.0")),
        stages[2].blocks[0].attention.register_forward_hook(keep("attn.block3.0")),
        network.head.fuse1.attention.register_forward_hook(keep("attn.head1")),
        network.backbone.register_forward_hook(lambda m, i, o: found.update(c1=o[0], c4=o[3])),
    ]
    with torch.no_grad():
        found["logits"] = network.scores(images)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    "name,dtype,tolerance",
    [
        ("lrformer_t_256x320", torch.float32, 1e-4),
        ("lrformer_t_batch2_96x64_grad", torch.float64, 1e-6),
    ],
)
def test_outputs_of_the_official_network(name, dtype, tolerance):
    """Relative to the standard deviation of each output."""
    case, weights, images = golden(name)
    with torch.device("meta"):  # no use in drawing initial weights
        network = model.build(**official.build_arguments(weights)).eval()
    network.load_state_dict(official.convert(weights), assign=True)
    found = run(network.to(dtype), images.to(dtype))
    for key, wanted in case["outputs"].items():
        wanted = torch.from_numpy(wanted).double()
        assert found[key].shape == wanted.shape
        assert (found[key].double() - wanted).abs().max() < tolerance * wanted.std(), key


def test_gradients_of_the_official_network():
    case, weights, images = golden("lrformer_t_batch2_96x64_grad")
    with torch.device("meta"):
        network = model.build(**official.build_arguments(weights), drop_path=0.0).train()
    network.load_state_dict(
        {name: value.clone() for name, value in official.convert(weights).items()}, assign=True
    )
    network.head.dropout.p = 0
    loss = network.scores(images).square().mean()
    assert loss.item() == pytest.approx(case["meta"]["grad_loss"], rel=1e-10)
    loss.backward()
    groups = {
        f"backbone.patch_embed{i + 1}": [
            f"backbone.stages.{i}.embed.",
            f"backbone.stages.{i}.norm.",
        ]
        for i in range(4)
    }
    groups |= {f"backbone.d_convs{i + 1}": [f"backbone.stages.{i}.convs."] for i in range(4)}
    groups |= {f"backbone.block{i + 1}": [f"backbone.stages.{i}.blocks."] for i in range(4)}
    groups |= {f"decode_head.squeeze{i}": [f"head.squeeze{i}.", f"head.bn{i}."] for i in (1, 2)}
    groups |= {f"decode_head.fuse_block{i}": [f"head.fuse{i}."] for i in (1, 2)}
    groups["decode_head.conv_seg"] = ["head.classifier."]
    assert set(groups) == set(case["meta"]["grad_norm"])
    for group, prefixes in groups.items():
        squares = [
            p.grad.square().sum()
            for n, p in network.named_parameters()
            if n.startswith(tuple(prefixes))
        ]
        assert sum(squares).sqrt().item() == pytest.approx(
            case["meta"]["grad_norm"][group], rel=1e-8
        ), group


def official_shapes(dims, depths, ratios=(8, 8, 4, 4), classes=150, channels=None):
    """Names and shapes of an official segmentor (channels=None: of an encoder), written down from
    its layer list."""
    shapes = {}

    def norm(name, width, batch=False):
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})
        if batch:
            shapes.update({f"{name}.running_mean": (width,), f"{name}.running_var": (width,)})
            shapes[f"{name}.num_batches_tracked"] = ()

    def conv(name, *shape):
        shapes.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    def block(name, width, ratio, scaled, in_decoder, pre_norm=False):
        if scaled:
            shapes.update({f"{name}.layer_scale_1": (width,), f"{name}.layer_scale_2": (width,)})
        if pre_norm:
            norm(f"{name}.pre_norm", width, batch=True)
        norm(f"{name}.norm1", width, in_decoder)
        norm(f"{name}.norm2", width, in_decoder)
        norm(f"{name}.attn.norm", width)
        conv(
            f"{name}.attn.q" if in_decoder else f"{name}.attn.q.0",
            width,
            width,
            *([1, 1] if in_decoder else []),
        )
        conv(f"{name}.attn.kv" if in_decoder else f"{name}.attn.kv.0", 2 * width, width)
        conv(f"{name}.attn.proj", width, width)
        conv(f"{name}.mlp.fc1", ratio * width, width, 1, 1)
        conv(f"{name}.mlp.conv", ratio * width, 1, 3, 3)
        conv(f"{name}.mlp.fc2", width, ratio * width, 1, 1)
        conv(f"{name}.cpe", width, 1, 3, 3)

    half = dims[0] // 2
    for number, (outputs, inputs) in zip(
        (0, 3, 6, 9), ((half, 3), (half, half), (dims[0], half), (dims[0], dims[0]))
    ):
        conv(f"backbone.patch_embed1.conv1.{number}", outputs, inputs, 3, 3)
        if number < 9:
            norm(f"backbone.patch_embed1.conv1.{number + 1}", outputs, batch=True)
    for i, (width, depth) in enumerate(zip(dims, depths)):
        if i:
            conv(f"backbone.patch_embed{i + 1}.proj", width, dims[i - 1], 3, 3)
        norm(f"backbone.patch_embed{i + 1}.norm", width)
        for level in range(4):
            conv(f"backbone.d_convs{i + 1}.{level}", width, 1, 3, 3)
        for j in range(depth):
            block(
                f"backbone.block{i + 1}.{j}",
                width,
                ratios[i],
                i > 1,
                False,
                i == 2 and depth > 20 and j in (7, 15),
            )
    if channels:
        for number, inputs in ((1, sum(dims[1:])), (2, channels + dims[3])):
            shapes[f"decode_head.squeeze{number}.conv.weight"] = (channels, inputs, 1, 1)
            norm(f"decode_head.squeeze{number}.bn", channels, batch=True)
            block(f"decode_head.fuse_block{number}", channels, 4, True, True)
        conv("decode_head.conv_seg", classes, channels, 1, 1)
    return shapes


def weights_like(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "preset,prefix", [("t", ""), ("s", "module."), ("b", ""), ("l", ""), ("xl", "module.")]
)
def test_official_names(preset, prefix):
    options = model.PRESETS[preset]
    shapes = official_shapes(
        options["embed_dims"], options["depths"], classes=21, channels=options["head_channels"]
    )
    if preset == "t":
        stored = official_shapes(options["embed_dims"], options["depths"], classes=19, channels=256)
        assert stored == load_case(GOLDEN / "lrformer_t_256x320.npz")["shapes"]
    weights = {prefix + name: value for name, value in weights_like(shapes).items()}
    assert official.build_arguments({"state_dict": weights}) == {
        "num_classes": 21,
        "preset": preset,
    }
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in model.build(21, preset).state_dict().items()}
    for wrapped in (weights, {"state_dict": weights}, {"model": weights, "epoch": 3})[
        : 3 if preset == "t" else 1
    ]:
        assert {name: value.shape for name, value in official.convert(wrapped).items()} == wanted


def test_files_without_the_counters_of_batchnorm():
    """Older files lack num_batches_tracked, which no result depends on."""
    options = model.PRESETS["t"]
    weights = weights_like(official_shapes(
        options["embed_dims"], options["depths"], classes=21, channels=options["head_channels"]))
    fewer = {name: value for name, value in weights.items() if "num_batches" not in name}
    assert len(fewer) < len(weights)
    assert official.convert(fewer).keys() == official.convert(weights).keys()


def test_options_of_an_official_file():
    shapes = official_shapes((16, 16, 40, 64), (1, 2, 1, 3), (2, 4, 4, 4), 3, 24)
    arguments = official.build_arguments(weights_like(shapes))
    assert arguments == dict(
        num_classes=3,
        preset="t",
        embed_dims=(16, 16, 40, 64),
        depths=(1, 2, 1, 3),
        mlp_ratios=(2, 4, 4, 4),
        head_channels=24,
    )
    network = model.build(**arguments)
    source = {name: torch.randn(shape) for name, shape in shapes.items()}
    network.load_state_dict(official.convert(source))
    close(
        network.backbone.stages[1].blocks[1].attention.query.weight,
        source["backbone.block2.1.attn.q.0.weight"],
    )
    close(
        network.head.fuse2.attention.query.weight,
        source["decode_head.fuse_block2.attn.q.weight"][:, :, 0, 0],
    )
    with_other_head = official_shapes((48, 96, 240, 384), (2, 2, 6, 3), channels=64)
    assert official.build_arguments(weights_like(with_other_head)) == {
        "num_classes": 150,
        "preset": "t",
        "head_channels": 64,
    }


def test_wrong_official_files():
    weights = weights_like(official_shapes((48, 96, 240, 384), (2, 2, 6, 3), channels=256))
    del weights["backbone.block1.0.cpe.bias"]
    weights["backbone.block1.0.q_conv.weight"] = torch.zeros(1)
    with pytest.raises(
        ValueError,
        match=r"1 missing \(backbone.stages.0.blocks.0.position.bias\); 1 unexpected "
        r"\(backbone.stages.0.blocks.0.q_conv.weight\)",
    ):
        official.convert(weights)
    with pytest.raises(ValueError, match="no LRFormer in this file"):
        official.build_arguments({"conv1.weight": torch.zeros(1)})
    encoder = weights_like(official_shapes((48, 96, 240, 384), (2, 2, 6, 3)))
    with pytest.raises(ValueError, match="an encoder only: give it to train.py as --weights$"):
        official.convert(encoder)


QUERY_DECODER = {"decode_head.pixel_decoder.x.weight": (1,), "decode_head.cls_embed.bias": (151,)}


def test_lrformer_plus():
    """The encoder loads; the query decoder is refused by name; of XL there is nothing else."""
    for preset in ("t", "xl"):
        sizes = model.PRESETS[preset]
        shapes = official_shapes(sizes["embed_dims"], sizes["depths"]) | QUERY_DECODER
        says = r"the query decoder of LRFormer\+ .* not part of this project; .* as --weights"
        continuation = ".*the decoder of preset xl is this project's continuation"
        with pytest.raises(ValueError, match=says) as raised:
            official.build_arguments({"state_dict": weights_like(shapes)})
        assert bool(re.search(continuation, str(raised.value))) == (preset == "xl")
        alone = {name: shape for name, shape in shapes.items() if name.startswith("backbone")}
        with pytest.raises(ValueError, match="an encoder only") as raised:
            official.build_arguments(weights_like(alone))
        assert bool(re.search(continuation, str(raised.value))) == (preset == "xl")
    small = dict(embed_dims=(4, 4, 10, 16), depths=(1, 1, 1, 1))
    file = {n: torch.randn(shape) for n, shape in official_shapes(**dims(small)).items()}
    network = model.build(3, "t", **small)
    plus = {n: torch.zeros(shape) for n, shape in QUERY_DECODER.items()}
    count = len(file)
    assert official.load_backbone(network, {"state_dict": file | plus}).startswith(
        f"loaded {count} tensors"
    )
    last = network.backbone.stages[3].blocks[0].scale2
    close(last, file["backbone.block4.0.layer_scale_2"])


def dims(options):
    """The arguments of `official_shapes` that are options of `build`."""
    return {"dims": options["embed_dims"], "depths": options["depths"]}


def test_options_that_a_file_does_not_tell():
    """Heads and grids: given, they reach the network; unknown or impossible ones are named."""
    small = dict(embed_dims=(4, 4, 10, 16), depths=(1, 1, 1, 1))
    shapes = official_shapes(**dims(small), channels=16, classes=3)
    file = {name: torch.randn(shape) for name, shape in shapes.items()}
    told = dict(num_heads=(1, 2, 5, 8), pool_sizes=(4, 4, 4, 2), head_pool_size=4)
    arguments = official.build_arguments(file, **told)
    assert {name: arguments[name] for name in told} == told
    network = model.build(**arguments)
    network.load_state_dict(official.convert(file, **told))
    stages, fuse = network.backbone.stages, network.head.fuse1.attention
    assert [stage.blocks[0].attention.heads for stage in stages] == [1, 2, 5, 8]
    assert [stage.blocks[0].attention.side for stage in stages] == [4, 4, 4, 2] and fuse.side == 4
    with pytest.raises(ValueError, match="3 heads do not divide 4 channels"):
        official.convert(file, num_heads=(3, 2, 5, 8))
    with pytest.raises(ValueError, match="unknown option 'heads'; valid: .*num_heads"):
        official.convert(file, heads=3)
    with pytest.raises(ValueError, match="of another network: .* missing"):
        official.convert(file, depths=(2, 1, 1, 1))


def test_imagenet_weights():
    options = dict(
        embed_dims=(16, 16, 40, 64),
        depths=(1, 1, 1, 1),
        num_heads=(2, 2, 4, 4),
        mlp_ratios=(2, 2, 2, 2),
    )
    shapes = official_shapes((16, 16, 40, 64), (1, 1, 1, 1), (2, 2, 2, 2))
    encoder = {name.removeprefix("backbone."): torch.randn(shape) for name, shape in shapes.items()}
    encoder["head.weight"] = torch.zeros(1000, 64)
    prefixes = ("", "module.", "backbone.", "module.backbone.")
    for prefix, wrap in itertools.product(prefixes, (None, "state_dict", "model")):
        network = model.build(3, **options)
        weights = {prefix + name: value for name, value in encoder.items()}
        assert "encoder" in official.load_backbone(network, {wrap: weights} if wrap else weights)
        close(network.backbone.stages[3].blocks[0].scale2, encoder["block4.0.layer_scale_2"])
        close(network.backbone.stages[0].embed[9].weight, encoder["patch_embed1.conv1.9.weight"])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    del encoder["block4.0.layer_scale_2"]
    encoder["strange"] = torch.zeros(1)
    with pytest.raises(
        ValueError, match=r"another encoder: 1 missing .*scale2\); 1 unexpected \(strange\)"
    ):
        official.load_backbone(network, encoder)
    for name, value in network.state_dict().items():
        close(value, before[name])


class Foreign:
    """An object as a training framework leaves them in its files."""

    def __init__(self):
        self.history = [1.0, 2.0]


def test_files_with_foreign_objects(tmp_path, monkeypatch):
    weights = {"backbone.block1.0.cpe.bias": torch.randn(3)}
    torch.save({"state_dict": weights, "message_hub": {"loss": Foreign()}}, tmp_path / "hub.pth")
    name = f"{Foreign.__module__}.Foreign"
    with pytest.raises(
        ValueError, match="hub.pth holds a foreign object, .*Foreign, that could run code"
    ):
        official.load(tmp_path / "hub.pth")
    monkeypatch.setattr(official, "STAND_INS", (*official.STAND_INS, name))
    read = official.load(tmp_path / "hub.pth")
    close(read["state_dict"]["backbone.block1.0.cpe.bias"], weights["backbone.block1.0.cpe.bias"])
    assert isinstance(read["message_hub"]["loss"], official.StandIn)


def test_arrays_and_methods_in_a_file_are_skipped_and_code_is_refused(tmp_path):
    import numpy as np

    torch.save(
        {"state_dict": {}, "log": np.arange(3.0), "best": np.float64(3)}, tmp_path / "arrays.pth"
    )
    assert official.load(tmp_path / "arrays.pth")["state_dict"] == {}

    class Evil:
        def __reduce__(self):
            return (print, ("this must never be seen",))

    torch.save({"state_dict": {}, "x": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="could run code"):
        official.load(tmp_path / "evil.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"x": Evil()}, protocol=2))
    with pytest.raises(ValueError, match="could run code"):
        official.load(tmp_path / "plain.pkl")
    (tmp_path / "noise.pth").write_bytes(b"no checkpoint at all")
    with pytest.raises(ValueError, match="noise.pth is damaged"):
        official.load(tmp_path / "noise.pth")
