"""The backbones that papers share, held to PyTorch's own layers, to published counts and to worked
examples. tests/test_layout.py holds the copies of the other folders to these."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from papers.pan import resnet
from papers.pan.resnet import ResNet
from papers.unept.vit import MLP, Block, VisionTransformer, load_imagenet, resize_position

close = functools.partial(torch.allclose, rtol=1e-4, atol=1e-5)


def random_norms(model):
    """BatchNorms that do something: random means, variances, weights and biases."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


# ------------------------------------------------------------------------------------------ ResNet


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name,whole,features", [
    ("resnet18", 11_689_512, 512), ("resnet34", 21_797_672, 512), ("resnet50", 25_557_032, 2048),
    ("resnet101", 44_549_160, 2048), ("resnet152", 60_192_808, 2048),
])
def test_as_many_parameters_as_torchvision(name, whole, features):
    """torchvision's published counts, less the classifier of 1000 classes."""
    with torch.device("meta"):
        assert count(ResNet(name)) == whole - 1000 * (features + 1)


@pytest.mark.parametrize("strides,dilations,shares", [
    ((1, 2, 2, 2), None, (4, 8, 16, 32)), ((1, 2, 1, 1), (1, 1, 2, 4), (4, 8, 8, 8)),
    ((1, 2, 2, 1), (1, 1, 1, 2), (4, 8, 16, 16)),
])
@pytest.mark.parametrize("stem", [(), (8, 8, 16)])
def test_sizes_of_the_maps(strides, dilations, shares, stem):
    """Rounded up at every step, for sides that no power of two divides."""
    model = ResNet("resnet18", stem, strides, dilations).eval()
    maps = model(torch.randn(1, 3, 43, 60))
    assert [tuple(x.shape[-2:]) for x in maps] == [(-(-43 // s), -(-60 // s)) for s in shares]
    assert [x.shape[1] for x in maps] == model.channels == [64, 128, 256, 512]


def convolve(x, conv, bn, stride, dilation):
    pad = dilation * (conv.weight.shape[-1] // 2)
    x = F.conv2d(x, conv.weight, None, stride, pad, dilation)
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)


@pytest.mark.parametrize("stride,dilation", [(1, 1), (2, 1), (1, 2)])
def test_blocks_by_hand(stride, dilation):
    """ReLU between the layers and after the sum, not before it; stride and dilation on the 3x3."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 9, 11)
    basic = random_norms(resnet.BasicBlock(8, 12, stride, dilation))
    y = convolve(x, basic.conv1, basic.bn1, stride, dilation).relu()
    y = convolve(y, basic.conv2, basic.bn2, 1, dilation)
    y = y + convolve(x, *basic.downsample, stride, 1)
    assert close(basic(x), y.relu())
    deep = random_norms(resnet.Bottleneck(8, 4, stride, dilation))
    y = convolve(x, deep.conv1, deep.bn1, 1, 1).relu()
    y = convolve(y, deep.conv2, deep.bn2, stride, dilation).relu()
    y = convolve(y, deep.conv3, deep.bn3, 1, 1)
    y = y + convolve(x, *deep.downsample, stride, 1)
    assert close(deep(x), y.relu()) and (y < 0).any()
    same = random_norms(resnet.BasicBlock(8, 8, 1, 1))
    assert same.downsample is None
    y = convolve(convolve(x, same.conv1, same.bn1, 1, 1).relu(), same.conv2, same.bn2, 1, 1)
    assert close(same(x), (x + y).relu())


@pytest.mark.parametrize("stem", [(), (4, 6, 8)])
def test_stems_by_hand(stem):
    """7x7 or three 3x3, the first of stride 2, then 3x3 max pooling of stride 2."""
    torch.manual_seed(0)
    model = random_norms(ResNet("resnet18", stem, strides=(1,)))
    x = images = torch.randn(1, 3, 33, 46)
    x = convolve(x, model.conv1, model.bn1, 2, 1).relu()
    assert model.conv1.kernel_size == ((3, 3) if stem else (7, 7))
    if stem:
        x = convolve(x, model.conv2, model.bn2, 1, 1).relu()
        x = convolve(x, model.conv3, model.bn3, 1, 1).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    assert close(model(images)[0], model.layer1(x))


def dilations(**options):
    """Of the 3x3 convolutions of each stage, in order, of a ResNet-50."""
    with torch.device("meta"):
        model = ResNet("resnet50", **options)
    return [[block.conv2.dilation[0] for block in getattr(model, f"layer{stage}")]
            for stage in (1, 2, 3, 4)]


def test_both_rules_of_dilation():
    eighth = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    assert dilations(**eighth) == [[1] * 3, [1] * 4, [2] * 6, [4] * 3]
    assert dilations(**eighth, contract=True) == [[1] * 3, [1] * 4, [1] + [2] * 5, [2, 4, 4]]
    growing = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, (4, 8, 16)), contract=True)
    assert dilations(**growing)[3] == [2, 8, 16]
    falling = dict(strides=(1, 2, 1, 1), dilations=(1, 1, (2, 2, 2, 2, 2, 3), 4), contract=True)
    assert dilations(**falling)[3] == [3, 4, 4]


def test_fresh_convolutions_keep_the_gradient():
    """He initialisation by what leaves a layer: variance 2 / (outputs * kernel area)."""
    torch.manual_seed(0)
    model = ResNet("resnet18")
    for conv in (model.layer2[0].conv1, model.layer4[0].conv1):
        wanted = 2 / (conv.out_channels * 9)
        assert conv.weight.var().item() == pytest.approx(wanted, rel=0.02)


def test_files_of_torchvision_load():
    torch.manual_seed(0)
    model, other = (random_norms(ResNet("resnet18", strides=(1, 2))) for _ in range(2))
    file = {f"module.{name}": value for name, value in other.state_dict().items()}
    file |= {"module.fc.weight": torch.ones(2, 2), "module.fc.bias": torch.ones(2)}
    assert f"loaded {len(file) - 2} tensors" in resnet.load_imagenet(model, {"state_dict": file})
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(images)[1], other(images)[1])


# --------------------------------------------------------------------------------------------- DeiT


@pytest.mark.parametrize("heads", [1, 4])
def test_a_block_is_pytorchs_encoder_layer(heads):
    """Pre-norm, exact GELU, eps 1e-6: tiny inputs make the eps count, large ones the GELU."""
    torch.manual_seed(0)
    block = Block(16, heads).double().eval()
    layer = nn.TransformerEncoderLayer(
        16, heads, 64, dropout=0.0, activation=F.gelu, layer_norm_eps=1e-6, batch_first=True,
        norm_first=True, dtype=torch.float64).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    layer.load_state_dict({
        "self_attn.in_proj_weight": block.attn.qkv.weight,
        "self_attn.in_proj_bias": block.attn.qkv.bias,
        "self_attn.out_proj.weight": block.attn.proj.weight,
        "self_attn.out_proj.bias": block.attn.proj.bias,
        **{f"linear{n}.{kind}": getattr(getattr(block.mlp, f"fc{n}"), kind)
           for n in (1, 2) for kind in ("weight", "bias")},
        **{f"norm{n}.{kind}": getattr(getattr(block, f"norm{n}"), kind)
           for n in (1, 2) for kind in ("weight", "bias")},
    })
    for scale in (1e-3, 1.0, 10.0):
        x = scale * torch.randn(2, 9, 16, dtype=torch.float64)
        assert torch.allclose(block(x), layer(x), rtol=0, atol=1e-10)
    assert block.norm1.eps == block.norm2.eps == 1e-6
    assert block.mlp.fc1.weight.shape == (64, 16)


def test_gelu_by_hand():
    """x * Phi(x): the normal distribution itself, not its approximation by tanh."""
    mlp, x = MLP(1, 1).double(), torch.tensor([[-2.0], [0.5], [3.0]], dtype=torch.float64)
    for layer in (mlp.fc1, mlp.fc2):
        nn.init.ones_(layer.weight), nn.init.zeros_(layer.bias)
    assert torch.allclose(mlp(x), x * (1 + torch.erf(x / 2**0.5)) / 2, atol=1e-12)


def cubic(distance, a=-0.75):
    """Keys' kernel, as PyTorch and OpenCV have it."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def test_positions_are_resized_bicubically_by_hand():
    """Four neighbours on either side weighed by Keys' kernel, centres on centres, borders repeated;
    the two special tokens stay."""
    torch.manual_seed(0)
    position = torch.randn(1, 2 + 16, 1, dtype=torch.float64)
    picture = position[0, 2:, 0].view(4, 4)

    def matrix(n):
        found = torch.zeros(n, 4, dtype=torch.float64)
        for i in range(n):
            centre = (i + 0.5) * 4 / n - 0.5
            first = int(centre // 1) - 1
            for j in range(first, first + 4):
                found[i, min(max(j, 0), 3)] += cubic(centre - j)
        return found

    for rows, columns in ((8, 8), (3, 6), (4, 7), (1, 4)):
        resized = resize_position(position, (rows, columns))
        wanted = matrix(rows) @ picture @ matrix(columns).T
        assert torch.equal(resized[:, :2], position[:, :2])
        assert torch.allclose(resized[0, 2:, 0].view(rows, columns), wanted, atol=1e-12)
    assert resize_position(position, (4, 4)) is position


def test_a_transformer_by_hand():
    """Patches row by row, class before distillation token, their own positions, maps of the blocks
    that are tapped, counted from 1, without the two tokens."""
    torch.manual_seed(0)
    model = VisionTransformer(32, patch=8, width=16, heads=2, taps=(1, 3)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    images = torch.randn(2, 3, 16, 40)
    tokens = []
    for y in range(0, 16, 8):
        for x in range(0, 40, 8):
            patch = images[:, :, y : y + 8, x : x + 8].flatten(1)
            tokens.append(F.linear(patch, model.patch_embed.proj.weight.flatten(1),
                                   model.patch_embed.proj.bias))
    special = [model.cls_token[:, 0].expand(2, -1), model.dist_token[:, 0].expand(2, -1)]
    x = torch.stack([*special, *tokens], 1) + resize_position(model.pos_embed, (2, 5))
    maps = model(images)
    assert len(maps) == 2 and len(model.blocks) == 3 and model.channels == [16, 16]
    for number, block in enumerate(model.blocks, 1):
        x = block(x)
        if number in (1, 3):
            found = maps[number // 2]
            assert found.shape == (2, 16, 2, 5)
            assert close(found.flatten(2).transpose(1, 2), x[:, 2:], atol=1e-4)
    with torch.device("meta"):
        assert VisionTransformer(480).taps == (4, 8, 12)
        # DeiT-base, distilled, at 384: less its last norm and the two heads
        assert count(VisionTransformer(384)) == 87_630_032 - 1_536 - 1_538_000


def test_files_of_deit_load_at_another_size():
    torch.manual_seed(0)
    small, large = (VisionTransformer(size, 8, 16, 2, (1,)) for size in (32, 64))
    for parameter in large.parameters():
        nn.init.normal_(parameter)
    file = {**large.state_dict(), "norm.weight": torch.ones(16), "head.weight": torch.ones(2, 16)}
    assert "loaded" in load_imagenet(small, {"model": file})
    assert torch.equal(small.pos_embed, resize_position(large.pos_embed, (4, 4)))
    assert torch.equal(small.blocks[0].mlp.fc1.weight, large.blocks[0].mlp.fc1.weight)
