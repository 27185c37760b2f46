"""UN-EPT: loops == whiteboard == fast, gradients, the official outputs, parameter counts, boundary
targets and losses."""

import functools
import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from .. import boundary as rims
from .. import fast, model, naive, official
from ..vit import VisionTransformer, resize_position
from .golden import seeded

cross_entropy = functools.partial(F.cross_entropy, ignore_index=255)

GOLDEN = Path(__file__).parent / "golden"
FORMS = (fast.deformable_attention, model.deformable_attention)
# (levels, batch, queries, heads, width, points): square, wide, one row, one column, 1 x 1, several
# resolutions
CASES = [
    ([(1, 1)], 1, 1, 1, 1, 1),
    ([(4, 4)], 2, 3, 2, 3, 2),
    ([(3, 7)], 1, 4, 1, 2, 4),
    ([(1, 6)], 1, 3, 2, 1, 2),
    ([(5, 1)], 2, 2, 1, 2, 3),
    ([(4, 5), (2, 3), (1, 1)], 2, 3, 2, 2, 2),
    ([(6, 3), (1, 4), (5, 1)], 1, 2, 1, 2, 16),
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def attention_inputs(shapes, batch, queries, heads, width, points, seed=0, spread=1.6):
    """value, shapes, locations, weights in float64; a good part of the points lies outside, none on
    a kink."""
    generator = torch.Generator().manual_seed(seed)
    sources, levels = sum(height * width for height, width in shapes), len(shapes)
    value = torch.randn(batch, sources, heads, width, generator=generator, dtype=torch.float64)
    locations = torch.rand(
        batch, queries, heads, levels, points, 2, generator=generator, dtype=torch.float64
    )
    locations = (locations - 0.5) * spread + 0.5
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64)[:, None]
    pixels = (
        locations * sizes - 0.5
    )  # kept a little away from whole pixels, where the function has a kink
    pixels = pixels.floor() + 0.05 + 0.9 * (pixels - pixels.floor())
    weights = torch.randn(
        batch, queries, heads, levels * points, generator=generator, dtype=torch.float64
    ).softmax(-1)
    return value, shapes, (pixels + 0.5) / sizes, weights.unflatten(3, (levels, points))


def gradients(function, value, shapes, locations, weights):
    """Output and the gradients of a fixed random combination of it."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (value, locations, weights)]
    out = function(leaves[0], shapes, *leaves[1:])
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=out.dtype)
    return out.detach(), torch.autograd.grad((out * probe).sum(), leaves)


def by_matrix(module):
    """Attention as the product of (I)'s matrix with the values."""

    def attention(value, shapes, locations, weights):
        matrix = module.attention_matrix(shapes, locations, weights)  # [B, M, Q, S]
        return (matrix @ value.transpose(1, 2)).transpose(1, 2).flatten(2)

    return attention


def by_level_bags(value, shapes, locations, weights):
    """The form of a GPU: bags whose gradients are autograd's."""
    out = 0
    for part, shape, points, share in zip(
        value.split([h * w for h, w in shapes], 1), shapes, locations.unbind(3), weights.unbind(3)
    ):
        out = out + fast.level_attention(fast.ringed_table(part, shape), points, share, shape)
    return out.view(*locations.shape[:2], -1)


# ------------------------------------------------------------------------------------------ the
# attention


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_forms_of_the_attention_are_equal(case):
    inputs = attention_inputs(*case)
    wanted, wanted_gradients = gradients(naive.deformable_attention, *inputs)
    assert wanted.abs().max() > 0
    for form in (*FORMS, by_matrix(model), by_matrix(naive), by_level_bags):
        out, found = gradients(form, *inputs)
        assert torch.allclose(out, wanted, rtol=0, atol=1e-12)
        for a, b in zip(found, wanted_gradients):
            assert torch.allclose(a, b, rtol=0, atol=1e-9)


def test_derivatives_by_finite_differences():
    value, shapes, locations, weights = attention_inputs([(2, 3), (1, 2)], 1, 2, 1, 2, 2, seed=3)
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, p, w: fast.deformable_attention(v, shapes, p, w), leaves
    )


def test_gradients_that_nobody_wants_are_left_out():
    value, shapes, locations, weights = attention_inputs([(3, 4)], 1, 2, 2, 2, 2)
    for wanted in range(3):
        leaves = [
            tensor.detach().requires_grad_(index == wanted)
            for index, tensor in enumerate((value, locations, weights))
        ]
        fast.deformable_attention(leaves[0], shapes, *leaves[1:]).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [index == wanted for index in range(3)]


@pytest.mark.parametrize("form", FORMS)
def test_far_points_give_zero_and_no_gradient(form):
    value, shapes, locations, weights = attention_inputs([(3, 4)], 1, 2, 2, 2, 2)
    for far in (-1e9, -0.8, 1.9, 1e9):  # 1e9 would not fit into an int32
        out, (value_gradient, location_gradient, _) = gradients(
            form, value, shapes, torch.full_like(locations, far), weights
        )
        assert not out.any() and not value_gradient.any() and not location_gradient.any()


def test_nan_stays_nan_and_breaks_nothing():
    value, shapes, locations, weights = attention_inputs([(3, 4)], 1, 2, 1, 2, 2)
    locations[0, 1] = math.nan
    out = fast.deformable_attention(value, shapes, locations, weights)
    assert out[0, 1].isnan().all() and out[0, 0].isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_what_the_attention_does_to_simple_maps(form):
    shapes = [(5, 6)]
    values = torch.randn(1, 30, 1, 2, dtype=torch.float64)
    centres = model.pixel_centres(5, 6, values).view(1, 30, 1, 1, 1, 2)
    ones = torch.ones(1, 30, 1, 1, 1, dtype=torch.float64)
    assert torch.allclose(form(values, shapes, centres, ones), values[:, :, 0])  # its own pixel
    shifted = centres + torch.tensor(
        [2 / 6, 1 / 5], dtype=torch.float64
    )  # two to the right, one down
    out = form(values, shapes, shifted, ones).view(5, 6, 2)
    picture = values.view(5, 6, 2)
    assert torch.allclose(out[:4, :4], picture[1:, 2:]) and out[:, 4:].abs().max() < 1e-12
    # half a pixel beyond the edge: half of the edge's value
    edge = centres.view(5, 6, 2)[:, :1] - torch.tensor([0.5 / 6, 0], dtype=torch.float64)
    out = form(values, shapes, edge.reshape(1, 5, 1, 1, 1, 2), ones[:, :5])
    assert torch.allclose(out[0], picture[:, 0] / 2)


def test_matrix_rows():
    _, shapes, locations, weights = attention_inputs([(6, 7), (4, 3)], 2, 5, 2, 1, 3, spread=2.0)
    matrix = model.attention_matrix(shapes, locations, weights)
    assert matrix.shape == (2, 2, 5, 54) and (matrix >= 0).all()
    assert ((matrix != 0).sum(-1) <= 4 * 2 * 3).all()
    assert (matrix.sum(-1) <= 1 + 1e-12).all() and (matrix.sum(-1) < 0.99).any()
    inside = locations.clamp(0.3, 0.7)
    assert torch.allclose(
        model.attention_matrix(shapes, inside, weights).sum(-1), weights.new_ones(())
    )


def test_predictions_and_locations():
    query, reference = torch.randn(2, 3, 4).double(), torch.rand(2, 3, 2).double()
    module = model.DeformableAttention(4, 2, 2, 3).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    layers = (module.sampling_offsets, module.attention_weights)
    maps = [(layer.weight, layer.bias) for layer in layers]
    quick, slow = module.predict(query), naive.predict(query, *maps, 2, 2, 3)
    for a, b in zip(quick, slow, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert torch.allclose(quick[1].sum((3, 4)), query.new_ones(()))  # one softmax over both levels
    shapes = [(3, 8), (5, 2)]
    located = [form.sampling_locations(reference, quick[0], shapes) for form in (model, naive)]
    assert torch.allclose(*located, atol=1e-12)
    moved = (located[0] - reference[:, :, None, None, None])[:, :, :, 0] / quick[0][:, :, :, 0]
    wanted = torch.tensor([1 / 8, 1 / 3], dtype=torch.float64)  # one pixel of its own level
    assert torch.allclose(moved, wanted)


def talk_attention(x, z, reference, shapes, w_q, u_wts, u_pos, w_v):
    """A_m = softmax(Q W^Q_m U^wts_m), Attn_m = A_m (V W^V_m)<Q W^Q_m U^pos_m>, as the talk has it,
    head by head: [B, Q, M, d_v]. <> reads the values at points, in pixels around each query."""
    rows = []
    for m in range(len(w_q)):
        key = z @ w_q[m]  # [B, Q, d_k]
        a = (key @ u_wts[m]).softmax(-1)  # [B, Q, N]
        delta = (key @ u_pos[m]).unflatten(-1, (-1, 2))  # [B, Q, N, 2]
        v = x @ w_v[m]  # [B, S, d_v]
        image = v.transpose(1, 2).unflatten(2, shapes[0])  # [B, d_v, H, W]
        size = torch.tensor(shapes[0][::-1]).to(delta)
        grid = 2 * (reference[:, :, None] + delta / size) - 1
        read = F.grid_sample(image, grid, align_corners=False)  # [B, d_v, Q, N]
        rows.append((read * a[:, None]).sum(-1).transpose(1, 2))
    return torch.stack(rows, dim=2)


@pytest.mark.parametrize("is_fast", [True, False])
def test_the_released_matrices_are_products_of_the_talks(is_fast):
    """The talk factors offsets and weights as W^Q_m U_m; the released code has one matrix for each,
    all heads one below the other. Folded, the talk's attention is the module's to rounding. The
    other way there is no way back: the rank of a product is at most d_k."""
    channels, heads, d_k, points, shapes = 12, 3, 4, 5, [(4, 6)]
    x, z = torch.randn(2, 24, channels).double(), torch.randn(2, 7, channels).double()
    reference = torch.rand(2, 7, 2).double()
    w_q, w_v = torch.randn(2, heads, channels, d_k).double()
    u_wts = torch.randn(heads, d_k, points).double()
    u_pos = torch.randn(heads, d_k, 2 * points).double()
    module = model.DeformableAttention(channels, heads, 1, points, fast=is_fast).double()
    with torch.no_grad():
        module.attention_weights.weight.copy_((w_q @ u_wts).transpose(1, 2).flatten(0, 1))
        module.sampling_offsets.weight.copy_((w_q @ u_pos).transpose(1, 2).flatten(0, 1))
        module.value_proj.weight.copy_(w_v.transpose(1, 2).flatten(0, 1))
        module.sampling_offsets.bias.zero_()
    module.output_proj = torch.nn.Identity()
    wanted = talk_attention(x, z, reference, shapes, w_q, u_wts, u_pos, w_v)
    found = module(z, reference, x, shapes)
    assert torch.allclose(found, wanted.flatten(2), rtol=0, atol=1e-12)
    for matrix in (w_q @ u_wts, w_q @ u_pos):
        assert (torch.linalg.matrix_rank(matrix) == min(d_k, matrix.shape[-1])).all()
    free = model.DeformableAttention(channels, heads, 1, points).sampling_offsets.weight
    torch.nn.init.normal_(free)
    assert (torch.linalg.matrix_rank(free.unflatten(0, (heads, -1)).double()) > d_k).all()


def test_the_queries_are_dynamic_and_learned():
    network, images = small(), torch.randn(2, 3, 64, 64)
    seen = {}
    network.spatial_branch.register_forward_hook(lambda _, inputs, out: seen.update(detail=out))
    network.decoder[0].register_forward_pre_hook(lambda _, inputs: seen.update(queries=inputs[0]))
    with torch.no_grad():
        network(images)
        wanted = naive.queries(seen["detail"], network.query_embed)
    assert torch.allclose(seen["queries"], wanted, atol=1e-6)


@pytest.mark.parametrize("shapes, points", [([(3, 5)], 1), ([(4, 3), (2, 2), (1, 1)], 4)])
@pytest.mark.parametrize("is_fast", [True, False])
def test_module_equals_its_naive_form(shapes, points, is_fast):
    module = model.DeformableAttention(6, 2, len(shapes), points, is_fast).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    sources = sum(h * w for h, w in shapes)
    query, source = torch.randn(2, 4, 6).double(), torch.randn(2, sources, 6).double()
    reference = torch.rand(2, 4, 2).double()
    results = []
    for run in (module, lambda *args: naive.attend(*args, module)):
        leaves = [query.clone().requires_grad_(), source.clone().requires_grad_()]
        out = run(leaves[0], reference, leaves[1], shapes)
        results.append(
            [out, *torch.autograd.grad((out * out).sum(), [*leaves, *module.parameters()])]
        )
    for a, b in zip(*results):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)


def test_attention_starts_as_a_compass():
    module = model.DeformableAttention(16, 8, 3, 4)
    bias = module.sampling_offsets.bias.view(8, 3, 4, 2)
    wanted = torch.tensor(
        [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    ).float()
    for level, point in itertools.product(range(3), range(4)):
        assert torch.allclose(bias[:, level, point], wanted * (point + 1), atol=1e-5)
    for zero in (
        module.sampling_offsets.weight,
        module.attention_weights.weight,
        module.attention_weights.bias,
    ):
        assert not zero.any()


@pytest.mark.parametrize(
    "levels, points, share",
    [(3, 4, 55), (1, 4, 29), (3, 16, 21), (1, 16, 7), (3, 64, 5), (1, 64, 2)],
)
def test_how_much_of_the_weight_starts_inside_small_maps(levels, points, share):
    """The column of paper.md's ablation: the mean over the queries of `tiny`'s decoder, in
    percent."""
    shapes = [(16, 16), (8, 8), (4, 4)][-levels:]
    module = model.DeformableAttention(64, 8, levels, points)
    reference = model.pixel_centres(16, 16, module.value_proj.weight)[None]
    offsets, weights = module.predict(torch.randn(1, 256, 64))
    matrix = model.attention_matrix(
        shapes, model.sampling_locations(reference, offsets, shapes), weights
    )
    assert round(100 * matrix.sum(-1).mean().item()) == share


def test_full_attention():
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, 2, 3, 4).double(),
        torch.randn(2, 2, 5, 4).double(),
        torch.randn(2, 2, 5, 3).double(),
    )
    wanted = naive.full_attention(q, k, v)
    assert torch.allclose(model.full_attention(q, k, v), wanted, atol=1e-12)
    assert torch.allclose(F.scaled_dot_product_attention(q, k, v), wanted, atol=1e-12)


# ------------------------------------------------------------------------------------------ the
# decoder's mixing


def self_attention(mixing, dropout=0.0, is_fast=True):
    torch.manual_seed(0)
    module = model.SelfAttention(8, 2, mixing, dropout, is_fast).double()
    torch.nn.init.normal_(module.projection.bias)
    return module


def reference_attention(module):
    """torch's own multi-head attention with the same weights, sequence first as in the released
    code."""
    theirs = torch.nn.MultiheadAttention(8, 2).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": module.projection.weight,
            "in_proj_bias": module.projection.bias,
            "out_proj.weight": module.output.weight,
            "out_proj.bias": module.output.bias,
        }
    )
    return lambda x: theirs(x, x, x)[0]


@pytest.mark.parametrize("is_fast", [True, False])
def test_the_three_readings_of_self_attention(is_fast):
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    none, batch, pixels = (
        self_attention(mixing, is_fast=is_fast) for mixing in ("none", "batch", "pixels")
    )
    theirs = reference_attention(none)
    assert torch.allclose(batch(x), theirs(x), atol=1e-12)  # sequence = first axis = batch
    assert torch.allclose(pixels(x), theirs(x.transpose(0, 1)).transpose(0, 1), atol=1e-12)
    alone = torch.cat([theirs(image[None]) for image in x])  # one image per forward pass
    assert torch.allclose(none(x), alone, atol=1e-12)
    assert not torch.allclose(batch(x), none(x), atol=1e-2) and not torch.allclose(
        pixels(x), none(x), atol=1e-2
    )


def test_dropout_drops_whole_heads():
    module = self_attention("none", dropout=0.5)
    module.output = torch.nn.Identity()
    heads = module(torch.randn(1, 50, 8, dtype=torch.float64)).view(50, 2, 4)
    dropped = heads == 0
    assert (dropped.all(-1) == dropped.any(-1)).all() and dropped.any() and not dropped.all()


def lively(network):
    """Non-trivial offsets, weights and statistics in place of those of the start."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name.endswith("running_var"):
            tensor.data.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point() and tensor.dim() <= 1:
            tensor.data.add_(0.1 * torch.randn(tensor.shape, generator=generator).to(tensor))
        elif name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            tensor.data.normal_(std=0.1, generator=generator)
    return network


def small(preset="tiny", **options):
    torch.manual_seed(0)
    sizes = {"img_size": 64, "channels": 16, "heads": 4, "hidden": 16}
    return lively(model.build(5, preset, **{**sizes, "boundary": True, **options})).eval()


def test_images_of_a_batch_do_not_see_each_other():
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for mixing in ("none", "batch", "pixels"):
            network = small(decoder_mixing=mixing)
            together = network(images)
            apart = [network(image[None]) for image in images]
            for name, scores in together.items():
                same = torch.allclose(scores, torch.cat([one[name] for one in apart]), atol=1e-5)
                assert same == (mixing != "batch" or name != "out")
            if mixing == "none":
                alone = apart[0]["out"]
            elif mixing == "batch":  # for a single image it is the same network
                assert torch.allclose(apart[0]["out"], alone, atol=1e-5)
            else:
                assert not torch.allclose(apart[0]["out"], alone, atol=1e-3)


# ------------------------------------------------------------------------------------------
# boundaries


@pytest.fixture(scope="module")
def boundary():
    case = seeded.load_case(GOLDEN / "unept_boundary.npz")
    meta, out = (
        case["meta"],
        {name: torch.from_numpy(array) for name, array in case["outputs"].items()},
    )
    out["logits"] = torch.from_numpy(seeded.seeded_image(meta["input_shape"], meta["input_seed"]))
    for name in ("mask_logits", "direction_logits"):
        out[name] = torch.from_numpy(
            seeded.seeded_image(meta[f"{name}_shape"], meta[f"{name}_seed"])
        )
    return out


def test_targets_equal_the_published_generator(boundary):
    label = boundary["label"].long()
    mask, direction = rims.boundary_targets(label)
    valid, near = label != 255, boundary["distance"] < 6
    assert near.sum() > 7000
    assert torch.equal(mask[valid], boundary["mask_target"].long()[valid])
    assert (mask[~valid] == 255).all() and (direction[~valid] == 255).all()
    assert torch.equal(direction[valid & near], boundary["direction_target"].long()[valid & near])
    assert (direction[valid & ~near] == 255).all()
    # With a longer reach every direction is decided. A few pixels lie deep inside on an axis of
    # symmetry, where the slope is zero up to rounding.
    _, direction = rims.boundary_targets(label, reach=55)
    assert (direction != boundary["direction_target"].long())[valid].sum() <= 5


def test_distances_equal_the_published_generator(boundary):
    label = boundary["label"].long()
    depth = rims.boundary_depth(label.byte(), 60).floor()
    counted = boundary["distance"] > 0
    assert torch.equal(depth[counted], boundary["distance"].double()[counted])


def test_targets_equal_their_naive_form():
    patches = torch.randint(0, 3, (2, 1, 3, 4), generator=torch.Generator().manual_seed(2)).float()
    label = F.interpolate(patches, (18, 22))[:, 0].long()
    label[0, 2:5, 3:9] = 255
    label[1] = torch.where(torch.arange(22) > torch.arange(18)[:, None], 1, 0)
    label[1, 5, 6] = 7  # a class of one pixel
    for found, slow in zip(rims.boundary_targets(label), naive.boundary_targets(label)):
        assert torch.equal(found, slow)
    mask, direction = rims.boundary_targets(torch.full((1, 20, 20), 4))
    assert not mask.any() and (direction == 255).all()  # a single class has no boundary


def test_targets_turn_with_the_image():
    label = torch.zeros(1, 40, 40, dtype=torch.long)
    label[:, 8:30, 5:27] = 1
    mirrored = torch.tensor([4, 3, 2, 1, 0, 7, 6, 5])
    _, direction = rims.boundary_targets(label)
    _, flipped = rims.boundary_targets(label.flip(2))
    assert (
        direction[0, 20, 5] == 4 and direction[0, 20, 26] == 0
    )  # from both edges towards the middle
    assert direction[0, 8, 15] == 6 and direction[0, 29, 15] == 2
    # exact up to the bytes of the published angles, which round to one side
    here, there = direction[direction != 255], flipped.flip(2)[direction != 255]
    assert (mirrored[here] == there).float().mean() > 0.95


def enlarge_both(mask, direction, size):
    return rims.enlarge({"mask": mask, "direction": direction}, size)


def test_refinement_equals_the_official_one(boundary):
    size = boundary["logits"].shape[2:]
    mask, direction = enlarge_both(boundary["mask_logits"], boundary["direction_logits"], size)
    refined = rims.refine(boundary["logits"], mask, direction)
    assert torch.allclose(refined, boundary["refined_logits"], atol=1e-4)
    assert not torch.allclose(boundary["logits"], refined, atol=1)
    part = (slice(None), slice(None), slice(0, 9), slice(0, 11))
    inputs = [tensor[part] for tensor in (boundary["logits"], mask, direction)]
    assert torch.equal(rims.refine(*inputs), naive.refine(*inputs))


def mean_of_all_pixels(scores, label):
    """The released code's mean: void pixels cost nothing but are counted."""
    return F.cross_entropy(scores, label, ignore_index=255, reduction="none").mean()


def test_segmentation_terms_divide_by_all_pixels():
    """As the released training: half of the pixels void, half of the loss. PyTorch's own mean, and
    that of the training loop, is over the valid ones and would not change."""
    scores, label = torch.randn(1, 4, 6, 8).double(), torch.randint(0, 4, (1, 6, 8))
    label[:, 3:] = label[:, :3]
    scores[:, :, 3:] = scores[:, :, :3]
    void = label.clone()
    void[:, 3:] = 255
    still, direction = torch.zeros(1, 2, 6, 8).double(), torch.randn(1, 8, 6, 8).double()
    whole, half = (rims.boundary_loss(scores, still, direction, y) for y in (label, void))
    for name in ("segmentation", "refined"):
        assert torch.allclose(half[name], whole[name] / 2, rtol=1e-12)
        assert torch.allclose(half[name], mean_of_all_pixels(scores, void), rtol=1e-12)
        assert torch.allclose(whole[name], cross_entropy(scores, void), rtol=1e-12)


def official_targets(boundary):
    """The released code trains void as boundary with direction 4."""
    return boundary["mask_target"].long(), boundary["direction_target"].long()


def test_losses_equal_the_official_ones(boundary):
    label, size = boundary["label"].long(), boundary["logits"].shape[2:]
    leaves = [
        boundary[name].clone().requires_grad_() for name in ("mask_logits", "direction_logits")
    ]
    mask, direction = enlarge_both(*leaves, size)
    targets = official_targets(boundary)
    terms = rims.boundary_loss(boundary["logits"], mask, direction, label, targets)
    total = rims.total_loss(terms)
    assert (label == 255).any()  # so that it matters by what is divided
    assert torch.allclose(torch.stack([*terms.values(), total]), boundary["loss_terms"], rtol=1e-5)
    for found, name in zip(torch.autograd.grad(total, leaves), ("mask_logits", "direction_logits")):
        assert torch.allclose(found, boundary[f"{name}_grad"], rtol=1e-4, atol=1e-6)


def test_losses_equal_their_naive_form():
    generator = torch.Generator().manual_seed(0)
    logits, mask, direction = (
        torch.randn(2, k, 12, 13, generator=generator, dtype=torch.float64).requires_grad_()
        for k in (3, 2, 8)
    )
    label = (torch.arange(13) > 5).long().expand(2, 12, -1).clone()
    label[1, 3:6, 2:8] = 255
    directions = torch.randint(0, 8, label.shape, generator=torch.Generator().manual_seed(3))
    targets = (rims.boundary_targets(label)[0], directions)
    results = []
    for terms in (
        rims.boundary_loss(logits, mask, direction, label, targets),
        naive.boundary_loss(logits, mask, direction, label, targets),
    ):
        total = sum(rims.LOSS_WEIGHTS[name] * term for name, term in terms.items())
        results.append([*terms.values(), *torch.autograd.grad(total, (logits, mask, direction))])
    for a, b in zip(*results):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_losses_of_nothing_are_zero():
    logits, label = torch.randn(1, 3, 12, 12, requires_grad=True), torch.full((1, 12, 12), 255)
    never, direction = (
        torch.stack([torch.ones(1, 12, 12), torch.zeros(1, 12, 12)], 1),
        torch.randn(1, 8, 12, 12),
    )
    terms = rims.boundary_loss(logits, never, direction, label)
    assert [term.item() for term in terms.values()] == [0, 0, 0, 0]
    sum(terms.values()).backward()
    assert not logits.grad.any()
    terms = rims.boundary_loss(logits, never, direction, torch.zeros_like(label))  # one class
    assert terms["mask"] == 0 and terms["direction"] == 0 and terms["segmentation"] > 0


@pytest.mark.parametrize("boundary", [True, False])
def test_the_training_loss(boundary):
    """With boundary heads the weighted sum of the released training, whatever the caller's mean is;
    without, the caller's."""
    network = small(boundary=boundary).train()
    images, label = torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))
    label[0, :40] = 255
    outputs = network(images)
    if not boundary:
        for mean in (cross_entropy, mean_of_all_pixels):
            assert torch.equal(network.loss(outputs, label, mean), mean(outputs["out"], label))
        return
    mask, direction = rims.enlarge(outputs, (64, 64))
    terms = rims.boundary_loss(outputs["out"], mask, direction, label)
    refined = rims.refine(outputs["out"], mask, direction)
    assert torch.allclose(terms["segmentation"], mean_of_all_pixels(outputs["out"], label))
    assert torch.allclose(terms["refined"], mean_of_all_pixels(refined, label))
    assert terms["refined"] != terms["segmentation"]
    wanted = 0.8 * terms["segmentation"] + 5 * terms["mask"] + 0.6 * terms["direction"]
    assert torch.allclose(network.loss(outputs, label, cross_entropy), wanted + terms["refined"])


def test_the_training_loss_in_parts():
    """The segmentation terms of equal parts of a batch average to those of the batch, however many
    pixels of a part are void: so they do over processes and accumulated steps."""
    scores, label = torch.randn(4, 3, 20, 20).double(), torch.randint(0, 3, (4, 20, 20))
    label[0] = 255
    mask, direction = torch.randn(4, 2, 20, 20).double(), torch.randn(4, 8, 20, 20).double()
    whole = rims.boundary_loss(scores, mask, direction, label)
    parts = [
        rims.boundary_loss(*(t[part] for t in (scores, mask, direction, label)))
        for part in (slice(0, 2), slice(2, 4))
    ]
    for name in ("segmentation", "refined"):
        assert torch.allclose(sum(part[name] for part in parts) / 2, whole[name], rtol=1e-12)


# ------------------------------------------------------------------------------------------ the
# official network


@pytest.fixture(scope="module")
def golden():
    case = seeded.load_case(GOLDEN / "unept_res50.npz")
    state = {
        name: torch.from_numpy(array)
        for name, array in seeded.seeded_state(case["shapes"]).items()
        if not name.endswith("num_batches_tracked")
    }
    state |= {
        name: torch.tensor(0) for name in case["shapes"] if name.endswith("num_batches_tracked")
    }
    with torch.device("meta"):
        network = model.build(**official.build_arguments({"state_dict": state}))
    network.load_state_dict(official.convert({"state_dict": state}), assign=True)
    network.requires_grad_()
    return case, state, network.eval()


def close(found, wanted, tolerance=1e-4):
    wanted = torch.as_tensor(wanted)
    return (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_official_outputs_and_gradients(golden):
    case, _, network = golden
    meta, wanted = case["meta"], case["outputs"]
    images = torch.from_numpy(seeded.seeded_image(meta["input_shape"], meta["input_seed"]))
    seen = {}
    hooks = [
        network.spatial_branch.register_forward_hook(
            lambda _, inputs, out: seen.update(spatial=out)
        ),
        network.encoder[-1].register_forward_hook(
            lambda _, inputs, out: seen.update(encoder_memory=out)
        ),
        network.decoder[-1].register_forward_hook(lambda _, inputs, out: seen.update(context=out)),
    ]
    outputs = network(images)
    for hook in hooks:
        hook.remove()
    for name, theirs in (
        ("out", "logits"),
        ("mask", "mask_logits"),
        ("direction", "direction_logits"),
    ):
        assert close(outputs[name], wanted[theirs], 1e-5)
    assert close(seen["spatial"], wanted["spatial"]) and close(
        seen["encoder_memory"], wanted["encoder_memory"]
    )
    assert close(seen["context"].transpose(1, 2).view(1, 256, 12, 12), wanted["context"])

    network.zero_grad()
    loss = sum((outputs[name] ** 2).mean() for name in ("out", "mask", "direction"))
    loss.backward()
    assert loss.item() == pytest.approx(meta["grad_loss_value"], rel=1e-5)
    here = {official.rename(name): name for name in case["shapes"]}
    squares = dict.fromkeys(meta["grad_norm"], 0.0)
    for name, parameter in network.named_parameters():
        (group,) = [group for group in squares if (here[name] + ".").startswith(group + ".")]
        squares[group] += parameter.grad.double().square().sum().item()
    for group, square in squares.items():
        # The stored norms of the spatial branch are wrong: see paper.md and the next test.
        if not group.startswith("spatial_branch"):
            assert math.sqrt(square) == pytest.approx(meta["grad_norm"][group], rel=2e-4), group


@pytest.mark.parametrize("boundary", [True, False])
def test_gradient_of_the_spatial_branch_by_finite_differences(boundary):
    """For one image PyTorch's BatchNorm gets a gradient with odd strides, which it misreads on the
    CPU."""
    network = small(boundary=boundary).double()
    images, weight = torch.randn(1, 3, 64, 64).double(), network.spatial_branch[6].weight
    direction = (
        torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).double() * 1e-6
    )

    def loss():
        return sum((scores**2).mean() for scores in network(images).values())

    (gradient,) = torch.autograd.grad(loss(), weight)
    with torch.no_grad():
        weight += direction
        difference = loss()
        weight -= 2 * direction
        difference -= loss()
    assert difference.item() == pytest.approx(2 * (gradient * direction).sum().item(), rel=1e-4)


PARAMETERS = {
    ("resnet50", 150): 32_357_942,
    ("deit", 150): 94_842_326,
    ("deit", 60): 94_819_196,
    ("deit_cityscapes", 19): 97_324_627,
}
PARTS = {
    "backbone": 23_527_264,
    "pyramid": 918_272,
    "spatial_branch": 371_264,
    "direction_head": 68_096,
    "mask_head": 66_560,
    "classifier": 38_550,
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts():
    with torch.device("meta"):
        for (preset, classes), wanted in PARAMETERS.items():
            assert count(model.build(classes, preset)) == wanted
        network = model.build(150, "resnet50")
    assert {name: count(getattr(network, name)) for name in PARTS} == PARTS
    assert network.query_embed.numel() == 921_600
    assert count(network.encoder[0]) == 1_479_552 and count(network.decoder[0]) == 1_743_232
    assert (
        count(network.encoder) + count(network.decoder) + network.level_embed.numel() == 6_446_336
    )


def test_deep_blocks_are_dilated_as_released():
    with torch.device("meta"):
        backbone = model.build(2, "resnet50").backbone
    dilations = [
        [block.conv2.dilation[0] for block in layer] for layer in (backbone.layer3, backbone.layer4)
    ]
    assert dilations == [[1, 2, 2, 2, 2, 2], [2, 4, 4]]


def rename_back(state):
    """What the released code would have saved for a network of ours: the inverse of
    official.rename."""
    with torch.device("meta"):
        keys = []
        for stem in official.STEM:
            keys += [
                f"backbone.stem.{stem}.{part}"
                for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            ]
        for branch in official.BRANCH:
            keys += [
                f"spatial_branch.convblock{branch}.{part}"
                for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            ]
        for i in range(2):
            for half, attentions, norms in (
                ("encoder", ("self_attn",), 2),
                ("decoder", ("cross_attn",), 3),
            ):
                start = f"context_branch.{half}.layers.{i}."
                linear = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
                for attention, part, kind in itertools.product(
                    attentions, linear, ("weight", "bias")
                ):
                    keys.append(f"{start}{attention}.{part}.{kind}")
                keys += [f"{start}linear{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")]
                keys += [
                    f"{start}norm{n + 1}.{kind}"
                    for n in range(norms)
                    for kind in ("weight", "bias")
                ]
            keys += [
                f"context_branch.decoder.layers.{i}.self_attn.{part}"
                for part in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
            ]
        keys += [
            f"{head}.{i}.{part}"
            for head in ("dir_head", "mask_head")
            for i, part in (
                (0, "weight"),
                (1, "weight"),
                (1, "bias"),
                (1, "running_mean"),
                (1, "running_var"),
                (1, "num_batches_tracked"),
                (3, "weight"),
            )
        ]
        keys += [f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
        keys += ["cls.weight", "cls.bias", "query_embed.weight", "context_branch.level_embed"]
    names = {official.rename(key): key for key in keys}
    return {names.get(name, name): value for name, value in state.items()}


@pytest.mark.parametrize("preset, classes", PARAMETERS)
def test_every_released_variant_converts(preset, classes):
    with torch.device("meta"):
        network = model.build(classes, preset)
    state = rename_back(network.state_dict())
    assert len(state) == (448 if preset == "resnet50" else 267)
    arguments = official.build_arguments(state)
    assert (arguments["preset"], arguments["num_classes"]) == (preset, classes)
    assert official.convert(state).keys() == network.state_dict().keys()


def test_older_names_convert(golden):
    _, state, _ = golden
    wanted = official.convert(state)
    older = {
        name.replace("context_branch.", "transformer.").replace(
            "spatial_branch.", "context_path."
        ): value
        for name, value in state.items()
    }
    assert (
        official.convert({f"module.{name}": value for name, value in older.items()}).keys()
        == wanted.keys()
    )
    headless = {name: value for name, value in older.items() if "_head." not in name}
    assert official.build_arguments(headless)["boundary"] is False
    assert "mask_head.0.weight" not in official.convert(headless)


def test_convert_says_what_is_wrong(golden):
    _, state, _ = golden
    broken = dict(state, surprise=torch.zeros(1))
    del broken["layers.1.weight"]
    broken["cls.bias"] = torch.zeros(3)
    with pytest.raises(
        ValueError,
        match=(r"1 missing \(pyramid.1.weight\); 1 unexpected \(surprise\); 1 of another shape"),
    ):
        official.convert(broken)
    with pytest.raises(ValueError, match="not a checkpoint of the UN-EPT training code: it lacks"):
        official.convert({"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="not a checkpoint"):
        official.build_arguments({})


def test_what_a_file_does_not_tell_can_be_said(golden):
    _, state, network = golden
    told = official.build_arguments(state, heads=4, decoder_mixing="batch")
    assert (told["heads"], told["points"], told["decoder_mixing"]) == (4, 32, "batch")
    assert official.convert(state, heads=4).keys() == network.state_dict().keys()
    with pytest.raises(ValueError, match="heads=5 does not fit: the checkpoint has 384 weights"):
        official.convert(state, heads=5)
    with pytest.raises(ValueError, match=r"of another shape \(decoder|of another shape \(encoder"):
        official.convert(state, points=4)


def test_resnet_files_load(golden):
    _, state, network = golden
    inner = {
        name.removeprefix("backbone."): value
        for name, value in state.items()
        if name.startswith("backbone.")
    }
    target = model.build(3, "resnet50", img_size=32, channels=8, hidden=8, depth=1, context=False)
    assert "loaded" in official.load_backbone(
        target, {"state_dict": {**inner, "fc.weight": torch.zeros(2, 2)}}
    )
    for (name, a), b in zip(
        target.backbone.state_dict().items(), network.backbone.state_dict().values()
    ):
        assert torch.equal(a, b), name
    before = target.backbone.conv1.weight.clone()
    del inner["layer1.0.conv1.weight"]
    inner["stem.0.weight"] = inner["stem.0.weight"] + 1
    with pytest.raises(ValueError, match=r"another backbone: 1 missing \(layer1.0.conv1.weight\)"):
        official.load_backbone(target, inner)
    assert torch.equal(target.backbone.conv1.weight, before)
    with pytest.raises(ValueError, match="another backbone"):
        official.load_backbone(small(), inner)


# ------------------------------------------------------------------------------------------ DeiT


def small_vit(size=64):
    torch.manual_seed(0)
    backbone = VisionTransformer(size, width=16, heads=2, taps=(2, 3))
    torch.nn.init.normal_(backbone.pos_embed)
    return backbone.eval()


def test_taps_are_blocks_without_norm():
    backbone, images = small_vit(), torch.randn(1, 3, 64, 48)
    assert model.VisionTransformer is VisionTransformer and len(backbone.blocks) == 3
    x = F.conv2d(images, backbone.patch_embed.proj.weight, backbone.patch_embed.proj.bias, 16)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([backbone.cls_token, backbone.dist_token, x], 1) + resize_position(
        backbone.pos_embed, (4, 3)
    )
    wanted = []
    for block in backbone.blocks:
        q, k, v = (
            t.unflatten(2, (2, 8)).transpose(1, 2)
            for t in block.attn.qkv(block.norm1(x)).chunk(3, dim=2)
        )
        x = x + block.attn.proj(naive.full_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
        wanted.append(x[:, 2:].transpose(1, 2).unflatten(2, (4, 3)))
    maps = backbone(images)
    assert len(maps) == 2
    assert torch.allclose(maps[0], wanted[1], atol=1e-5) and torch.allclose(
        maps[1], wanted[2], atol=1e-5
    )
    assert backbone.blocks[0].norm1.eps == 1e-6
    with torch.device("meta"):
        assert VisionTransformer(480).taps == (4, 8, 12)


def test_position_embedding_is_resized():
    position = torch.randn(1, 2 + 16, 5)
    assert resize_position(position, (4, 4)) is position
    resized = resize_position(position, (6, 3))
    assert resized.shape == (1, 20, 5) and torch.equal(resized[:, :2], position[:, :2])
    ramp = torch.arange(24.0)[:, None].expand(24, 24).reshape(1, -1, 1)  # grows downwards
    rows = resize_position(torch.cat([torch.zeros(1, 2, 1), ramp], 1), (12, 12))[0, 2:, 0].view(
        12, 12
    )
    assert (rows.diff(dim=0) > 0).all() and torch.allclose(
        rows, rows[:, :1].expand(-1, 12), atol=1e-4
    )


@pytest.fixture
def deit(monkeypatch):
    """The DeiT network with a backbone of a few thousand parameters."""

    def shrunk(size):
        return VisionTransformer(size, width=16, heads=2, taps=(1, 2, 3))

    monkeypatch.setattr(model, "VisionTransformer", shrunk)
    return small("deit", depth=1, heads=4, points=2)


def test_deit_takes_any_size(deit):
    with torch.no_grad():
        for size in ((64, 64), (33, 50), (81, 64)):
            images = torch.randn(1, 3, *size)
            outputs = deit(images)
            assert outputs["out"].shape == (1, 5, *size)
            assert outputs["mask"].shape == (1, 2, -(-size[0] // 8), -(-size[1] // 8))
            padded = F.pad(images, (0, -size[1] % 16, 0, -size[0] % 16))
            assert torch.equal(deit(padded)["out"][..., : size[0], : size[1]], outputs["out"])


def test_deit_files_load(deit):
    torch.manual_seed(3)
    file = VisionTransformer(96, width=16, heads=2, taps=(1, 2, 3)).state_dict()
    extra = {
        "norm.weight": torch.ones(16),
        "head.weight": torch.ones(2, 16),
        "head_dist.bias": torch.ones(2),
    }
    assert "loaded" in official.load_backbone(deit, {"model": {**file, **extra}})
    assert torch.equal(deit.backbone.pos_embed, resize_position(file["pos_embed"], (4, 4)))
    assert torch.equal(deit.backbone.blocks[2].mlp.fc1.weight, file["blocks.2.mlp.fc1.weight"])


# ------------------------------------------------------------------------------------------ the
# network


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (41, 70), (128, 33)])
def test_any_size(size):
    outputs = small()(torch.randn(1, 3, *size))
    grid = (-(-size[0] // 8), -(-size[1] // 8))
    assert {name: tuple(scores.shape) for name, scores in outputs.items()} == {
        "out": (1, 5, *size),
        "mask": (1, 2, *grid),
        "direction": (1, 8, *grid),
    }
    assert all(scores.isfinite().all() for scores in outputs.values())


def test_tiny_has_three_resolutions():
    network = model.build(5).eval()
    maps = network.backbone(torch.zeros(1, 3, 128, 128))[-3:]
    assert [tuple(x.shape[-2:]) for x in maps] == [(16, 16), (8, 8), (4, 4)]
    assert network.query_embed.shape == (256, 64)


def test_forward_step_by_step():
    """The whole network once more, with other means: loops over levels, naive positions,
    grid_sample."""
    network = small(depth=2).double()
    images = torch.randn(1, 3, 64, 96).double()
    level_maps = [p(x) for p, x in zip(network.pyramid, network.backbone(images)[1:])]
    shapes = [tuple(x.shape[-2:]) for x in level_maps]

    def position(i, j, height, width, channel):
        half, channel = divmod(channel, 8)
        u = 2 * math.pi * ((i + 1) / (height + 1e-6), (j + 1) / (width + 1e-6))[half]
        return (math.sin, math.cos)[channel % 2](u / 10000 ** (2 * (channel // 2) / 8))

    def centres(height, width):
        return torch.tensor(
            [((j + 0.5) / width, (i + 0.5) / height) for i in range(height) for j in range(width)],
            dtype=torch.float64,
        )

    places = torch.cat(
        [
            torch.tensor(
                [
                    [position(i, j, *shape, c) for c in range(16)]
                    for i in range(shape[0])
                    for j in range(shape[1])
                ],
                dtype=torch.float64,
            )
            + embed
            for shape, embed in zip(shapes, network.level_embed)
        ]
    )
    reference = torch.cat([centres(*shape) for shape in shapes])[None]

    def look(module, query, reference, source):
        value = module.value_proj(source).unflatten(2, (4, 4))
        offsets = module.sampling_offsets(query).view(1, -1, 4, 3, 4, 2)
        weights = (
            module.attention_weights(query).view(1, -1, 4, 12).softmax(-1).view(1, -1, 4, 3, 4)
        )
        sizes = torch.tensor([(w, h) for h, w in shapes]).double()[:, None]
        locations = reference[:, :, None, None, None] + offsets / sizes
        return module.output_proj(model.deformable_attention(value, shapes, locations, weights))

    x = torch.cat([level.flatten(2).transpose(1, 2) for level in level_maps], 1)
    for layer in network.encoder:
        x = layer.norm_attention(x + look(layer.attention, x + places, reference, x))
        x = layer.norm_ffn(x + layer.ffn[3](layer.ffn[0](x).relu()))
    detail = network.spatial_branch(images)
    assert (detail < 0).any()
    embed = F.interpolate(network.query_embed.T.reshape(1, 16, 8, 8), (8, 12), mode="bilinear")
    queries = (detail + embed).flatten(2).transpose(1, 2)
    for layer in network.decoder:
        attention = layer.self_attention
        own = queries @ attention.projection.weight[32:].T + attention.projection.bias[32:]
        queries = layer.norm_self(queries + attention.output(own))
        queries = layer.norm_cross(
            queries + look(layer.cross_attention, queries, centres(8, 12)[None], x)
        )
        queries = layer.norm_ffn(queries + layer.ffn[3](layer.ffn[0](queries).relu()))
    scores = network.classifier(queries.transpose(1, 2).unflatten(2, (8, 12)))
    out = F.interpolate(scores, (64, 96), mode="bilinear", align_corners=False)
    assert torch.allclose(network(images)["out"], out, atol=1e-10)


def test_refine_corrects_the_output_in_evaluation_only():
    network, plain = small(refine=True), small()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for head in (network, plain):
            head.mask_head[3].weight.mul_(20)
        before, after = plain(images), network(images)
        refined = rims.refine(before["out"], *rims.enlarge(before, (64, 64)))
        assert torch.equal(after["out"], refined)
        assert not torch.equal(after["out"], before["out"])
        for each in (network, plain):
            for part in each.modules():
                part.training = not isinstance(
                    part, (torch.nn.BatchNorm2d, torch.nn.Dropout, model.SelfAttention)
                )
        assert torch.equal(network(images)["out"], plain(images)["out"])


@pytest.mark.parametrize(
    "options, outputs",
    [
        (dict(context=False), {"out"}),
        (dict(spatial=False), {"out"}),
        (dict(boundary=False), {"out"}),
        (dict(levels=1), {"out", "mask", "direction"}),
        (dict(levels=2, points=1), {"out", "mask", "direction"}),
        (dict(points=64, depth=2), {"out", "mask", "direction"}),
        (dict(heads=8), {"out", "mask", "direction"}),
        (dict(decoder_mixing="batch"), {"out", "mask", "direction"}),
        (dict(refine=True), {"out", "mask", "direction"}),
        (dict(decoder_mixing="pixels"), {"out", "mask", "direction"}),
    ],
    ids=lambda value: str(len(value) if isinstance(value, set) else value),
)  # a set is printed in any order
def test_every_option_trains_every_parameter(options, outputs):
    network = small(dropout=0.0, **options).train()
    images, label = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.long)
    label[:, 20:50, 15:40] = 2
    found = network(images)
    assert found.keys() == outputs
    network.loss(found, label, cross_entropy).backward()
    idle = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert not idle
    assert len(network.pyramid) == (
        1 if options.get("context") is False else options.get("levels", 3)
    )


def test_without_the_spatial_branch_queries_do_not_see_the_image():
    network = small(spatial=False)
    assert network.spatial_branch is None and network.mask_head is None
    network.pyramid.apply(
        lambda m: torch.nn.init.zeros_(m.weight) if isinstance(m, torch.nn.Conv2d) else None
    )
    with torch.no_grad():
        first, second = network(torch.randn(2, 3, 64, 64))["out"]
    assert torch.allclose(first, second)


def test_without_context_the_network_is_local():
    network = model.build(3, context=False).eval()
    images = torch.randn(1, 3, 256, 256, requires_grad=True)
    network(images)["out"][0, :, 128, 128].sum().backward()
    rows, columns = images.grad.abs().sum((0, 1)).nonzero().unbind(1)
    assert (
        max((rows - 128).abs().max(), (columns - 128).abs().max()) < 40
    )  # half the cue distance is 64
    network = model.build(3).eval()
    images.grad = None
    network(images)["out"][0, :, 128, 128].sum().backward()
    rows, columns = images.grad.abs().sum((0, 1)).nonzero().unbind(1)
    assert max((rows - 128).abs().max(), (columns - 128).abs().max()) > 90


OPTIONS = [
    {},
    {"context": False},
    {"spatial": False},
    {"boundary": False},
    {"levels": 1},
    {"points": 1},
    {"decoder_mixing": "batch"},
    {"decoder_mixing": "pixels"},
    {"refine": True},
    {"depth": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_the_whiteboard_equals_the_fast_form(options, training):
    """The whole network, outputs and gradients, in double precision. What is random is off."""
    networks = [small(fast=is_fast, dropout=0.0, **options).double() for is_fast in (True, False)]
    for size in ((64, 64), (33, 50)):
        images, results = torch.randn(2, 3, *size).double(), []
        for network in networks:
            outputs = network.train(training)(images)
            total = sum((scores**2).mean() for scores in outputs.values())
            parameters = list(network.parameters())
            results.append([*outputs.values(), *torch.autograd.grad(total, parameters)])
        for a, b in zip(*results, strict=True):
            assert (a - b).abs().max() <= 1e-9 * b.abs().max().clamp(min=1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("is_fast", [False, True])
def test_every_layer_is_called(options, is_fast):
    """So that hooks, summaries, pruning and quantisation see all of them, in either form."""
    every = not is_fast and ("context" in options or not options)
    for preset in list(model.PRESETS) if every else ["tiny"]:
        with torch.device("meta"):
            network = model.build(3, preset, **{"boundary": True, "fast": is_fast, **options})
        for training in (False, True):
            assert layers_called(network.train(training))


def layers_called(network):
    """The names of the modules with parameters of their own; all must run in a forward pass."""
    owners = {n for n, part in network.named_modules() if list(part.parameters(recurse=False))}
    called = set()
    for name, part in network.named_modules():
        part.register_forward_hook(lambda *_, name=name: called.add(name))
    network(torch.empty(2, 3, 64, 96, device="meta"))
    assert owners <= called, owners - called
    return owners


@pytest.mark.parametrize("mixing", ["none", "pixels"])
def test_the_switch(monkeypatch, mixing):
    """fast=False takes nothing from fast.py and writes (A) and (B) out; fast=True does not."""
    images = torch.randn(1, 3, 64, 64)
    slow, quick = (small(decoder_mixing=mixing, fast=is_fast) for is_fast in (False, True))

    def forbidden(*_, **__):
        raise RuntimeError("a shortcut")

    def works(network):
        with torch.no_grad():
            return network(images)["out"].isfinite().all()

    for place, name, used in (
        (fast, "deformable_attention", True),
        (F, "scaled_dot_product_attention", mixing == "pixels"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, forbidden)
            assert works(slow)
            if used:
                with pytest.raises(RuntimeError, match="a shortcut"):
                    works(quick)


@pytest.mark.parametrize("form", FORMS)
def test_places_are_never_in_half_precision(form):
    """Which cannot tell the pixels of a long map apart."""
    value = torch.randn(1, 3000, 1, 2).half()
    centres = model.pixel_centres(1, 3000, value)
    ones = value.new_ones(1, 3000, 1, 1, 1)
    found = form(value, [(1, 3000)], centres.view(1, 3000, 1, 1, 1, 2), ones)
    assert found.dtype == torch.half and torch.allclose(found, value[:, :, 0], atol=5e-3)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_fast", [False, True])
def test_half_precision_weights(kind, is_fast):
    network, images = small(fast=is_fast), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = network(images)["out"]
        found = network.to(kind)(images.to(kind))["out"]
    assert found.dtype == kind and (found - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_unknown_names_are_refused():
    with pytest.raises(
        ValueError, match="unknown preset 'huge'; valid: tiny, resnet50, deit, deit_cityscapes"
    ):
        model.build(3, "huge")
    with pytest.raises(ValueError, match="unknown option 'colour'; valid: backbone, img_size"):
        model.build(3, colour=1)
    for wrong, message in (
        (dict(decoder_mixing="rows"), "unknown decoder_mixing 'rows'; valid: none, batch, pixels"),
        (dict(levels=4), "unknown levels 4; valid: 1, 2, 3"),
        (dict(backbone="vgg"), "unknown backbone"),
        (dict(img_size=100), "multiple of 8"),
        (dict(backbone="deit", img_size=104), "multiple of 16"),
        (dict(heads=5), "heads=5 must divide channels=64"),
        (dict(channels=66), "a multiple of 4"),
        (dict(points=0), "points must be positive"),
        (dict(depth=0), "depth must be positive"),
        (dict(refine=True, boundary=False), "refine must be False without boundary, spatial"),
    ):
        with pytest.raises(ValueError, match=message):
            model.build(3, **wrong)
    with pytest.raises(ValueError, match="heads=3 must divide channels=8"):
        model.DeformableAttention(8, 3, 1, 1)


def test_half_precision_keeps_the_loss_exact():
    network = small().train()
    images, label = torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(images)
    loss = network.loss(outputs, label, cross_entropy)
    assert loss.dtype == torch.float32 and loss.isfinite()
    loss.backward()


def test_recipes_speak_of_this_network():
    make_optimizer = pytest.importorskip("common.recipe", reason="taken alone").make_optimizer
    from .. import recipe

    assert {
        "shapes",
        "camvid",
        "default",
        "ade20k",
        "pascal_context60",
        "cityscapes",
    } <= recipe.RECIPES.keys()
    ade = recipe.RECIPES["ade20k"]
    groups = make_optimizer(small(), ade).param_groups
    assert sorted(round(ade.lr * group["factor"], 9) for group in groups) == [1e-5, 1e-4]
    assert all(group["weight_decay"] == 1e-4 for group in groups)
