"""PSANet: Point-wise Spatial Attention Network for Scene Parsing (Zhao et al., ECCV 2018).

Read from top to bottom beside paper.md: the two attentions, the module, the network. The letters
are those of paper.md. naive.py says the same with loops. fast.py holds exact shortcuts, which run
unless fast=False: read it later or never.

Shapes: B images, C channels of the attention, H x W pixels of whichever map is meant, N = H * W.
Sizes in comments are those of an image of 465 x 465, the crop for ADE20K.
"""

import contextlib
import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from . import fast
from .checks import check, check_classes, check_images
from .resnet import ResNet

# ---------------------------------------------------------------------------------- the attention


def in_float32(attend):
    """Decorator: compute in float32 at least, whatever autocast and the three tensors say."""
    @functools.wraps(attend)
    def _wrapped(q, table, v, *more, **options):
        with without_autocast(q.device.type):
            return attend(*promoted(q, table, v), *more, **options)
    return _wrapped


@in_float32
def collect(q, table, v, mask_size, softmax=True, factor=1.0):
    """Every pixel decides how much it takes from each other pixel.

        h[o, d] = q_o . R_d                       pixel o, offset d: the over-complete map       (C)
        a[kl, st] = h[kl, (H-1-k+s, W-1-l+t)]     read at the receiver kl                        (D)
        A = softmax of a over the sources st                                                     (F)
        z_kl = 1/f sum over st of A[kl, st] v_st                                                 (G)

    where pixel kl receives from pixel st (row, column; counted from 0), q_o [C] is a column of q
    [B, C, H, W], R_d a row of `table` [mask_h * mask_w, C], v_st a column of v [B, D, H, W], and d
    counts from the offset (1-H, 1-W), so that (H-1, W-1) is the pixel itself.

    mask_size: (mask_h, mask_w), any size. softmax: whether there is (F). factor: the f of (G), None
    for mask_h * mask_w. Returns z [B, D, H, W]. The paper has (G) alone, with N = H W; every
    released model has (F) and f = 1.
    """
    height, width = v.shape[-2:]
    k, l, s, t = pairs(height, width, v.device)                 # each [H, W, H, W]
    h = overcomplete(q, table, mask_size)                       # (C)  [B, H, W, 2H-1, 2W-1]
    a = h[:, k, l, height - 1 - k + s, width - 1 - l + t]       # (D)  [B, H, W, H, W]
    return aggregate(a, v, softmax, factor or math.prod(mask_size))     # (F), (G)  [B, D, H, W]


@in_float32
def distribute(q, table, v, mask_size, softmax=True, factor=1.0):
    """Every pixel decides how much it gives to each other pixel.

        a[kl, st] = h[st, (H-1-s+k, W-1-t+l)]     read at the source st                          (E)

    in place of (D); the rest as in `collect`. The softmax is again over the sources of one
    receiver, so what a pixel hands out need not sum to 1.
    """
    height, width = v.shape[-2:]
    k, l, s, t = pairs(height, width, v.device)                 # each [H, W, H, W]
    h = overcomplete(q, table, mask_size)                       # (C)  [B, H, W, 2H-1, 2W-1]
    a = h[:, s, t, height - 1 - s + k, width - 1 - t + l]       # (E)  [B, H, W, H, W]
    return aggregate(a, v, softmax, factor or math.prod(mask_size))     # (F), (G)  [B, D, H, W]


@in_float32
def compact(q, table, v, direction, softmax=True, factor=1.0):
    """The variant without offsets: row p of the table belongs to pixel p of the one map it fits.

        a[i, j] = q_i . R_j   (collect)     or     q_j . R_i   (distribute)                      (J)

    in place of (C) to (E), where i receives from j, both counted row by row. Nothing looks up
    j - i: the same two objects at another place of the image read other rows.

    q: [B, C, H, W], table: [H * W, C], v: [B, D, H, W] -> [B, D, H, W]. factor: None for H * W.
    """
    check_compact(table, v.shape[-2:])
    h = q.flatten(2).mT @ table.mT                              # (J)  [B, N owners, N positions]
    a = h if direction == "collect" else h.mT                   # [B, N receivers, N sources]
    return aggregate(a, v, softmax, factor or len(table))       # (F), (G)  [B, D, H, W]


def overcomplete(q, table, mask_size):
    """h: every pixel's logit for every offset. [B, C, H, W] -> [B, H, W, 2H-1, 2W-1]."""
    r = fit_table(table, mask_size, q.shape[-2:])               # R  [2H-1, 2W-1, C]
    return torch.einsum("bckl,yxc->bklyx", q, r)                # (C)


def fit_table(table, mask_size, size):
    """Crop the table, or pad it with rows of zeros, around its centre, to one row per offset of the
    map. [mask_h * mask_w, C] -> [2H-1, 2W-1, C], where size = (H, W).

    A row of zeros gives the logit 0, which is the rule for offsets that the table lacks. A row cut
    off belongs to an offset that no two pixels of the map have.
    """
    (mask_h, mask_w), (height, width) = mask_size, size
    if len(table) != mask_h * mask_w:
        rows = f"a table of {mask_h * mask_w} rows, not {len(table)}"
        raise ValueError(f"a mask of {mask_h} x {mask_w} needs {rows}")
    table = table.unflatten(0, mask_size)                       # [mask_h, mask_w, C]
    top, left = height - 1 - (mask_h - 1) // 2, width - 1 - (mask_w - 1) // 2
    bottom, right = 2 * height - 1 - mask_h - top, 2 * width - 1 - mask_w - left
    if (top, bottom, left, right) == (0, 0, 0, 0):
        return table  # F.pad would copy
    return F.pad(table, (0, 0, left, right, top, bottom))       # [2H-1, 2W-1, C]


def pairs(height, width, device):
    """The indices k, l, s, t of all pairs of pixels, each [H, W, H, W]."""
    sides = (torch.arange(n, device=device) for n in (height, width, height, width))
    return torch.meshgrid(*sides, indexing="ij")


def aggregate(a, v, softmax, divisor):
    """a: logits of receivers for sources, [B, H, W, H, W] or [B, N, N]; v: [B, D, H, W] -> as v."""
    a = a.reshape(v.shape[0], *2 * [v[0, 0].numel()])           # [B, N receivers, N sources]
    if softmax:
        a = a.softmax(-1)                                       # (F)  [B, N, N]
    z = v.flatten(2) @ a.mT / divisor                           # (G)  [B, D, N]
    return z.view_as(v)


# ------------------------------------------------------------------------------------- the module


class PSABranch(nn.Module):
    """One direction: reduce the channels, shrink, predict from what is left, sum.

        V = shrink(reduce(X))         the features that are passed on                            (A)
        Q = query(V)                  the features that predict                                  (B)
        Z = collect(Q, R, V)          or distribute, or compact                           (C) to (G)

    where X is [B, inputs, H, W], V, Q and Z are [B, C, h, w] with h = (H-1)/s+1, w = (W-1)/s+1, and
    R is `table`, the weight of a 1x1 convolution with one output per offset. It has neither bias
    nor padding: a padded one would put a frame of zeros around the map.

    direction: "collect" or "distribute". channels: C. shrink_factor: s. The rest: see `collect` and
    `compact`; in compact mode mask_size is (h, w).
    """

    def __init__(self, inputs, channels, direction, mask_size, shrink_factor=2, softmax=True,
                 factor=1.0, compact=False, fast=True):
        super().__init__()
        self.direction, self.mask_size, self.shrink_factor = direction, mask_size, shrink_factor
        self.softmax, self.factor, self.compact, self.fast = softmax, factor, compact, fast
        self.reduce = conv_bn_relu(inputs, channels, 1)
        self.query = conv_bn_relu(channels, channels, 1)
        table = torch.empty(math.prod(mask_size), channels).uniform_(-1, 1)
        self.table = nn.Parameter(table / math.sqrt(channels))

    def forward(self, x):                                       # [B, 2048, 59, 59]
        if self.fast:
            return fast.branch(x, self)                         # the same up to rounding
        v = shrink(self.reduce(x), self.shrink_factor)          # (A)  [B, 512, 30, 30]
        q = self.query(v)                                       # (B)  [B, 512, 30, 30]
        if self.compact:
            z = compact(q, self.table, v, self.direction, self.softmax, self.factor)
        else:
            attend = collect if self.direction == "collect" else distribute
            z = attend(q, self.table, v, self.mask_size, self.softmax, self.factor)
        return z.to(v.dtype)                                    # [B, 512, 30, 30]


class PSA(nn.Module):
    """The point-wise spatial attention module: one or both directions, side by side.

        context = ReLU(BN(W_p [Z^c; Z^d]))                                                       (H)

    where Z^c, Z^d [B, C, h, w] come from the branches and the context is [B, inputs, h, w]. The
    paper adds the directions; the official code stacks them, in the order of `directions`.

    directions: of ("collect", "distribute"). The other arguments: see `PSABranch`.
    forward: [B, inputs, H, W], s dividing H-1 and W-1.
    """

    def __init__(self, inputs, channels, directions, mask_size, shrink_factor=2, softmax=True,
                 factor=1.0, compact=False, fast=True):
        super().__init__()
        self.directions, self.mask_size, self.shrink_factor = directions, mask_size, shrink_factor
        self.softmax, self.factor, self.compact = softmax, factor, compact
        options = mask_size, shrink_factor, softmax, factor, compact, fast
        self.branches = nn.ModuleList(
            PSABranch(inputs, channels, direction, *options) for direction in directions
        )
        self.project = conv_bn_relu(channels * len(directions), inputs, 1)

    def forward(self, x):                                       # [B, 2048, 59, 59]
        self.check_size(*x.shape[-2:])
        z = [branch(x) for branch in self.branches]             # (A) to (G)  [B, 512, 30, 30] each
        return self.project(torch.cat(z, dim=1))                # (H)  [B, 2048, 30, 30]

    def check_size(self, height, width):
        """Raise a ValueError for a map that the official code would compute wrongly or not take."""
        for name, side in (("height", height), ("width", width)):
            if (side - 1) % self.shrink_factor:
                multiple = f"1 + a multiple of {self.shrink_factor}"
                raise ValueError(f"the {name} of the map, {side}, is not {multiple}")
        wanted = tuple((side - 1) * self.shrink_factor + 1 for side in self.mask_size)
        if self.compact and (height, width) != wanted:
            raise ValueError(
                f"a compact PSA takes one size of map, {wanted[0]} x {wanted[1]}, not "
                f"{height} x {width}"
            )


# ------------------------------------------------------------------------------------ the network


class PSANet(nn.Module):
    """Dilated ResNet at 1/8, PSA on its last map, a classifier of both, bilinear enlargement.

        Y = [X; up(context)],  scores = up(classifier(Y))                                        (I)

    where X [B, 2048, H/8, W/8] is the last map of the backbone, and up is `enlarge`.

    The official network exists for sides 1 + 8 s k only. Other images are padded to the next such
    size with zeros, the mean colour, at the right and at the bottom, and the scores are cut back.
    mask_size: (mask_h, mask_w). The other arguments: see `build`.
    forward: images [B, 3, H, W] -> {"out": [B, num_classes, H, W]}, in training also "aux" of that
    shape. Raises ValueError for an image that compact=True cannot take.
    """

    def __init__(self, num_classes, backbone, channels, psa_type, compact, shrink_factor, mask_size,
                 normalization_factor, psa_softmax, zoom_factor, aux, context, fast):
        super().__init__()
        self.zoom_factor, self.fast = zoom_factor, fast
        self.step = 8 * shrink_factor if context else 8  # between sizes that need no padding
        self.backbone = dilated_resnet(backbone)
        *_, middle, last = self.backbone.channels
        self.psa = None
        if context:
            directions = DIRECTIONS if psa_type == "bidirection" else (psa_type,)
            options = shrink_factor, psa_softmax, normalization_factor, compact, fast
            self.psa = PSA(last, channels, directions, mask_size, *options)
        self.classifier = scores_head(2 * last if context else last, channels, num_classes)
        self.aux_head = scores_head(middle, middle // 4, num_classes) if aux else None

    def forward(self, images):                                  # [B, 3, 465, 465]
        check_images(images)
        height, width = images.shape[-2:]
        padded = self.pad(images)
        *_, middle, x = self.backbone(padded)                   # [B, 1024 and 2048, 59, 59]
        scores = {"out": self.scores(x)}                        # [B, classes, 59, 59]
        if self.training and self.aux_head is not None:
            scores["aux"] = self.aux_head(middle)               # [B, classes, 59, 59]
        rows, columns = ((side - 1) * self.zoom_factor // 8 + 1 for side in (height, width))
        return {                                                # [B, classes, 465, 465]
            name: enlarge(s, self.zoom_factor)[:, :, :rows, :columns] for name, s in scores.items()
        }

    def scores(self, x):
        """[B, 2048, 59, 59] -> [B, classes, 59, 59]."""
        if self.psa is None:
            return self.classifier(x)
        context = self.psa(x)                                   # (A) to (H)  [B, 2048, 30, 30]
        if self.fast:
            first, *rest = self.classifier
            y = fast.classify(x, context, first.weight, self.psa.shrink_factor)
            return nn.Sequential(*rest)(y)                      # the same up to rounding
        y = torch.cat([x, enlarge(context, self.psa.shrink_factor)], dim=1)     # (I)
        return self.classifier(y)                               # [B, classes, 59, 59]

    def pad(self, images):
        """To 1 + step * k pixels per side."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, (1 - width) % self.step, 0, (1 - height) % self.step))
        if self.psa is not None and self.psa.compact:
            wanted = [(side - 1) * self.step + 1 for side in self.psa.mask_size]
            if list(images.shape[-2:]) != wanted:
                raise ValueError(
                    f"compact=True takes images of its training crop alone, {wanted[0]} x "
                    f"{wanted[1]} or up to {self.step - 1} pixels less per side, not {height} x "
                    f"{width}: one row of the table belongs to each position"
                )
        return images

    def loss(self, outputs, label, cross_entropy):
        """Cross-entropy of "out" plus 0.4 times that of "aux". label: [B, H, W]. Where zoom_factor
        is less than 8, the pixels count at which the scores lie."""
        label = label[:, :: 8 // self.zoom_factor, :: 8 // self.zoom_factor]
        loss = cross_entropy(outputs["out"], label)
        return loss + 0.4 * cross_entropy(outputs["aux"], label) if "aux" in outputs else loss


def conv_bn_relu(inputs, outputs, kernel):
    """Convolution without bias, BatchNorm, ReLU; keeps the size of the map."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def scores_head(inputs, width, num_classes):
    """3x3 convolution, BatchNorm, ReLU, dropout of channels, 1x1. -> [B, num_classes, H, W]."""
    hidden = conv_bn_relu(inputs, width, 3)
    return nn.Sequential(*hidden, nn.Dropout2d(0.1), nn.Conv2d(width, num_classes, 1))


def dilated_resnet(name):
    """The backbone, deep stem, layers 3 and 4 dilated in every block; "tiny": two stages at 1/8."""
    if name == "tiny":
        return ResNet(name, strides=(2, 2))
    return ResNet(name, (64, 64, 128), strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))


def shrink(x, factor):
    """[B, C, H, W] -> [B, C, (H-1)/s+1, (W-1)/s+1]. Bilinear with corners on corners reads the
    pixels 0, s, 2s, ... where s divides H-1 and W-1: so it is no more than picking them."""
    return x[:, :, ::factor, ::factor]


def enlarge(x, factor):
    """up: bilinear, corners onto corners. [B, C, h, w] -> [B, C, (h-1)s+1, (w-1)s+1]."""
    size = [(side - 1) * factor + 1 for side in x.shape[-2:]]
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def without_autocast(device_type):
    """A context in which autocast is off; tensors on "meta" know no autocast."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def promoted(*tensors):
    """The tensors in the widest of their types, float32 at least."""
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return [t.to(dtype) for t in tensors]


def check_compact(table, size):
    """Raise a ValueError unless the table has a row for each pixel of the map."""
    if len(table) != math.prod(size):
        size = f"{size[0]} x {size[1]}"
        raise ValueError(f"a compact table of {len(table)} rows fits no map of {size}")


def full_mask(crop_size, shrink_factor, compact):
    """The mask_size of a training crop: its shrunk map, or all offsets that this has."""
    if shrink_factor > 1 and 8 * shrink_factor >= crop_size:
        raise ValueError(f"shrink_factor {shrink_factor} leaves one pixel of a crop of {crop_size}")
    side = math.ceil((crop_size - 1) / (8 * shrink_factor)) + 1  # of the shrunk map
    return (side, side) if compact else (2 * side - 1, 2 * side - 1)


DIRECTIONS = ("collect", "distribute")

DEFAULTS = dict(
    backbone="resnet50", channels=512, psa_type="bidirection", compact=False, shrink_factor=2,
    crop_size=465, mask_size=None, normalization_factor=1.0, psa_softmax=True, zoom_factor=8,
    aux=True, context=True, fast=True,
)

PRESETS = {
    "tiny": dict(backbone="tiny", channels=64, crop_size=128),
    "resnet50": dict(backbone="resnet50"),
    "resnet101": dict(backbone="resnet101"),
    "resnet152": dict(backbone="resnet152"),
}


def build(num_classes, preset="tiny", **options):
    """The network of a preset, with any of these options overridden.

    backbone: "resnet50", "resnet101", "resnet152" (deep stem) or "tiny". The presets.
    channels: C, also the width of the classifier; 512, "tiny" 64.
    psa_type: "collect", "distribute" or "bidirection". The paper's ablation has all three.
    compact: one logit per position instead of one per offset; then there is one image size. The
        paper's ablation and the official code have it.
    shrink_factor: the map of the attention is this much smaller per side. 2; the Caffe models for
        VOC have 1.
    crop_size: side of the training images, 465 (ADE20K, VOC) or 705 (Cityscapes).
    mask_size: (rows, columns) of offsets in the table; None for all that a map of the training crop
        has. In compact mode the size of that map. The official code has it.
    normalization_factor: N of the paper's sum, None for the entries of the mask. 1 when released.
    psa_softmax: the softmax over the sources, which is the official code's.
    zoom_factor: the scores have zoom_factor / 8 of the resolution and belong to the pixels 0, 8/z,
        2 * 8/z, ... 1, 2, 4 or 8. The paper was trained at 1/8, the official code at 8.
    aux: the auxiliary head on the last but one stage. The official files have it.
    context: False is the FCN baseline of the paper's tables, without PSA.
    fast: the shortcuts of fast.py; False runs this file as it stands.

    Returns a module: images [B, 3, H, W] -> {"out": [B, num_classes, H, W]}, see `PSANet`. Raises
    ValueError for an unknown preset or option, naming the valid ones.
    """
    check_classes(num_classes)
    check("preset", preset, tuple(PRESETS))
    for name in options:
        check("option", name, tuple(DEFAULTS))
    o = {**DEFAULTS, **PRESETS[preset], **options}
    check("psa_type", o["psa_type"], (*DIRECTIONS, "bidirection"))
    check("zoom_factor", o["zoom_factor"], (1, 2, 4, 8))
    factor, divisor, mask = o["shrink_factor"], o["normalization_factor"], o["mask_size"]
    if not isinstance(factor, int) or factor < 1:
        raise ValueError(f"shrink_factor must be a whole number >= 1, not {factor!r}")
    if divisor is not None and not divisor > 0:
        raise ValueError(f"normalization_factor must be positive or None, not {divisor!r}")
    full = full_mask(o.pop("crop_size"), factor, o["compact"])
    mask = full if mask is None else mask
    if not isinstance(mask, (tuple, list)) or len(mask) != 2 or min(mask) < 1:
        raise ValueError(f"mask_size must be two positive numbers (rows, columns), not {mask!r}")
    return PSANet(num_classes, **{**o, "mask_size": tuple(mask)})
