"""UN-EPT: A Unified Efficient Pyramid Transformer for Semantic Segmentation (Zhu et al., ICCV 2021 workshop).

Read from top to bottom beside paper.md: the attention in four equal forms, its module, the boundary terms, the
network. naive.py says the same with loops.

Shapes: B images, Q queries, S source pixels (all levels one behind the other, each row-major), C channels, M heads
of D = C / M channels, L levels, N points per level and head. Sizes are (H, W), points are (x, y).
"""

import inspect
import itertools
import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from .resnet import ResNet
from .vit import VisionTransformer

VOID = 255  # label of pixels that count nowhere


# ------------------------------------------------------------------------------------------ the attention


def full_attention(q, k, v):
    """Eq. (1) and (2): every query looks at every source: what this paper avoids.

    q: [B, M, Q, d], k: [B, M, S, d], v: [B, M, S, D] -> [B, M, Q, D]."""
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)  # Eq. (1)  [B, M, Q, S]
    return weights @ v  # Eq. (2)  [B, M, Q, D]


def predict(query, offset_map, weight_map, heads, levels, points):
    """Eq. (3): where to look and how much to weigh it, two linear functions of the query alone.

    query: [B, Q, C]; offset_map, weight_map: pairs (matrix, bias) with M*L*N*2 and M*L*N rows.
    Returns offsets (x, y) in pixels of the level they look at, [B, Q, M, L, N, 2], and weights [B, Q, M, L, N]
    that sum to 1 over the L * N points of a head.
    """
    offsets = F.linear(query, *offset_map).unflatten(2, (heads, levels, points, 2))  # [B, Q, M, L, N, 2]
    logits = F.linear(query, *weight_map).unflatten(2, (heads, levels * points))  # [B, Q, M, L*N]
    # One softmax over all levels: they compete, so a query may leave a level out.
    weights = logits.softmax(-1).unflatten(3, (levels, points))  # Eq. (3)  [B, Q, M, L, N]
    return offsets, weights


def sampling_locations(reference, offsets, shapes):
    """Eq. (4): the points, normalised so that a map spans 0 .. 1 along both axes whatever its resolution.

    reference: [B, Q, 2] (x, y); offsets: [B, Q, M, L, N, 2]; shapes: L pairs (H, W) -> [B, Q, M, L, N, 2]."""
    sizes = offsets.new_tensor([(width, height) for height, width in shapes])  # [L, 2], x first
    return reference[:, :, None, None, None] + offsets / sizes[:, None]  # Eq. (4)


def grid_sample_attention(value, shapes, locations, weights):
    """Eq. (6), the form to read: `grid_sample` does the interpolation, and what it returns is weighed and added.
    Stores C * Q * N numbers per level. Same arguments and result as `deformable_attention`."""
    batch, queries, heads = locations.shape[:3]
    out = 0
    for level, part in enumerate(value.split([height * width for height, width in shapes], dim=1)):
        pixels = part.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, shapes[level])  # [B*M, D, H, W]
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1  # [B*M, Q, N, 2]
        samples = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        share = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)  # [B*M, Q, N]
        out = out + (samples * share[:, None]).sum(-1)  # [B*M, D, Q]
    return out.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).reshape(batch, queries, -1)  # [B, Q, M*D]


def corners(locations, shape):
    """Where points lie in a map of shape (H, W) that wears a ring of zeros, one pixel wide.

    locations: [..., 2] -> the row of the upper left of the four pixels around each point, int32 [...], as an
    index into the (H+2) * (W+2) ringed pixels, and the fractions towards the right and lower pixels [...].
    The ring makes zeros outside the map exact without any mask: whatever lies further out falls on it.
    """
    height, width = shape
    x = (locations[..., 0] * width - 0.5).clamp(-1, width)
    y = (locations[..., 1] * height - 0.5).clamp(-1, height)
    left, top = x.floor().clamp(max=width - 1), y.floor().clamp(max=height - 1)
    # The second clamp, of integers, only matters for NaN, which must stay a NaN and not become a bad index.
    row = (top.int().clamp_(-1, height - 1) + 1) * (width + 2) + left.int().clamp_(-1, width - 1) + 1
    return row, x - left, y - top


def corner_weights(share, right, lower):
    """Eq. (5): what the pixels upper left, upper right, lower left and lower right of a point count, times the
    point's own share. All [...] -> [..., 4]."""
    lower_share = share * lower
    upper_share = share - lower_share
    lower_right, upper_right = lower_share * right, upper_share * right
    return torch.stack(  # Eq. (5)
        [upper_share - upper_right, upper_right, lower_share - lower_right, lower_right], dim=-1
    )


def ringed_table(part, shape):
    """Values of one level [B, H*W, M, D] -> one row of D numbers per image, head and ringed pixel,
    [B*M * (H+2)*(W+2), D]. Heads come before pixels, so that the rows of a query's neighbours lie close."""
    pixels = part.permute(0, 2, 1, 3).unflatten(2, shape)  # [B, M, H, W, D]
    return F.pad(pixels, (0, 0, 1, 1, 1, 1)).flatten(0, 3)


def corner_rows(row, shape):
    """The four rows of `corners` around each point. int32 [...] -> [..., 4]."""
    width = shape[1] + 2
    return row[..., None] + row.new_tensor([0, 1, width, width + 1])


def table_rows(row, shape):
    """From rows of one map to rows of the table of all images and heads. [B, Q, M, N] -> [B, Q, M, N]."""
    batch, _, heads, _ = row.shape
    maps = torch.arange(batch * heads, dtype=row.dtype, device=row.device).view(batch, 1, heads, 1)
    return row + maps * ((shape[0] + 2) * (shape[1] + 2))


def level_attention(table, locations, share, shape):
    """One level of Eq. (6) as bags of table rows: a bag belongs to one query and head and holds the 4 * N corners
    of its points. table: of `ringed_table`, locations: [B, Q, M, N, 2], share: [B, Q, M, N] -> [B*Q*M, D].

    `embedding_bag` adds the rows up as it reads them, so the samples are never stored."""
    row, right, lower = corners(locations, shape)
    rows = corner_rows(table_rows(row, shape), shape).flatten(0, 2).flatten(1)  # [B*Q*M, N*4]
    factors = corner_weights(share, right, lower).flatten(0, 2).flatten(1)  # [B*Q*M, N*4]
    return F.embedding_bag(rows, table, per_sample_weights=factors, mode="sum")


class LevelAttention(torch.autograd.Function):
    """`level_attention` with a backward pass for the CPU, where autograd's own scatters row by row.

    Both gradients are products with the sparse matrix A of Eq. (7), written once by rows and once by columns:
    the table's is A^T G, a bag per *source* pixel once the points are sorted by pixel; that of the corner weights
    is G V^T at the places where A is not zero. Nothing but the inputs is kept from the forward pass.
    """

    @staticmethod
    def forward(ctx, table, locations, share, shape):
        ctx.save_for_backward(table, locations, share)
        ctx.shape = shape
        return level_attention(table, locations, share, shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        """gradient: of the result, [B*Q*M, D] -> those of table, locations and share, of their shapes. See above."""
        table, locations, share = ctx.saved_tensors
        (height, width), points = ctx.shape, share.shape[-1]
        row, right, lower = corners(locations, ctx.shape)  # each [B, Q, M, N]
        row = table_rows(row, ctx.shape)
        gradient = gradient.contiguous()
        table_gradient = locations_gradient = share_gradient = None

        if ctx.needs_input_grad[0]:
            sorting = row.flatten().argsort(stable=True)
            counts = torch.bincount(row.flatten(), minlength=len(table))
            starts = (counts.cumsum(0) - counts).int()  # where the bag of each row begins
            bags = sorting.div(points, rounding_mode="floor").int()  # the query and head of each point
            factors = corner_weights(share, right, lower).view(-1, 4)[sorting]  # [B*Q*M*N, 4]
            table_gradient = torch.zeros_like(table)
            for corner, shift in enumerate((0, 1, width + 2, width + 3)):
                part = F.embedding_bag(
                    bags, gradient, starts, per_sample_weights=factors[:, corner].contiguous(), mode="sum"
                )
                # Bags are filed under the upper left corner; the three others lie `shift` rows behind it.
                table_gradient[shift:] += part[: len(part) - shift]

        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            rows = corner_rows(row, ctx.shape)  # [B, Q, M, N, 4]
            dots = products_at(gradient, table, rows.flatten(0, 2).flatten(1)).view(rows.shape)  # [B, Q, M, N, 4]
            upper_left, upper_right, lower_left, lower_right = dots.unbind(-1)
            across_upper, across_lower = upper_right - upper_left, lower_right - lower_left
            upper = upper_left + right * across_upper
            down = lower_left + right * across_lower - upper
            share_gradient = upper + lower * down
            x, y = locations[..., 0] * width - 0.5, locations[..., 1] * height - 0.5
            # A point beyond the ring has been clamped: moving it changes nothing.
            across = share * (across_upper + lower * (across_lower - across_upper))
            across = across * ((x >= -1) & (x <= width)) * width
            down = share * down * ((y >= -1) & (y <= height)) * height
            locations_gradient = torch.stack([across, down], dim=-1)  # [B, Q, M, N, 2]
        return table_gradient, locations_gradient, share_gradient, None


def products_at(left, right, columns):
    """Of all products of a row of `left` [n, D] with a row of `right` [m, D] those that are wanted:
    columns int32 [n, k] -> [n, k], out[i, j] = left[i] . right[columns[i, j]]."""
    parts = []
    for part in columns.split(len(right), dim=1):  # the sparse format holds no more places than a full matrix has
        count, width = part.shape
        starts = torch.arange(0, count * width + 1, width, dtype=torch.int32, device=part.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch says once per process that the format is in beta
            places = torch.sparse_csr_tensor(
                starts, part.flatten(), left.new_zeros(count * width), (count, len(right)), check_invariants=False
            )
        torch.sparse.sampled_addmm(places, left, right.T, beta=0, out=places)  # in place: indices are not copied
        parts.append(places.values().view(count, width))
    return torch.cat(parts, dim=1)


def deformable_attention(value, shapes, locations, weights):
    """Eq. (6), the form to run: each head of each query adds up N points on each of L levels.

    value: [B, S, M, D], the levels one behind the other, row-major; shapes: L pairs (H, W), S = sum of H * W;
    locations: [B, Q, M, L, N, 2], (x, y), 0 .. 1; weights: [B, Q, M, L, N]. Returns [B, Q, M * D].
    Exact up to rounding; has no second derivative. Memory: O(Q M N) for one level at a time, no O(Q M N D).
    """
    batch, queries, _ = locations.shape[:3]
    full = torch.promote_types(weights.dtype, torch.float32)  # half precision cannot tell pixels of big maps apart
    value, locations, weights = value.to(full), locations.to(full), weights.to(full)
    attention = LevelAttention.apply if value.device.type == "cpu" else level_attention
    parts = value.split([height * width for height, width in shapes], dim=1)
    out = 0
    for part, shape, points, share in zip(parts, shapes, locations.unbind(3), weights.unbind(3)):
        out = out + attention(ringed_table(part, shape), points, share, tuple(shape))  # Eq. (6)  [B*Q*M, D]
    return out.view(batch, queries, -1)  # [B, Q, M*D]


def attention_matrix(shapes, locations, weights):
    """Eq. (7): the same attention as a matrix, to stand beside the one of Eq. (1): [B, M, Q, S], at most 4 L N
    entries of a row are not zero, and no row sums to more than 1."""
    levels = []
    for shape, points, share in zip(shapes, locations.unbind(3), weights.unbind(3)):
        row, right, lower = corners(points, shape)
        rows, factors = corner_rows(row, shape), corner_weights(share, right, lower)  # each [B, Q, M, N, 4]
        matrix = factors.new_zeros(*row.shape[:3], (shape[0] + 2) * (shape[1] + 2))  # [B, Q, M, ringed pixels]
        matrix = matrix.scatter_add(3, rows.flatten(3).long(), factors.flatten(3))  # Eq. (7)
        levels.append(matrix.unflatten(3, (shape[0] + 2, shape[1] + 2))[..., 1:-1, 1:-1].flatten(3))
    return torch.cat(levels, dim=3).transpose(1, 2)  # [B, M, Q, S]


class DeformableAttention(nn.Module):
    """Multi-head attention whose weights are predicted, not compared: no key is ever computed.

    forward: query [B, Q, C], reference [B, Q, 2] (x, y, 0 .. 1), source [B, S, C], shapes L pairs (H, W)
    -> [B, Q, C].
    """

    def __init__(self, channels, heads, levels, points):
        super().__init__()
        if channels % heads:
            raise ValueError(f"heads={heads} must divide channels={channels}")
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.initialise()

    def initialise(self):
        """All points count the same; head m looks into compass direction m, point n lies n + 1 pixels away."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        compass = torch.stack([angle.cos(), angle.sin()], dim=-1)  # [M, 2]
        compass = compass / compass.abs().amax(-1, keepdim=True)  # on a square, not on a circle
        distance = torch.arange(1, self.points + 1)
        bias = compass[:, None, None] * distance[:, None]  # [M, 1, N, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())
        for zero in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(zero)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query, reference, source, shapes):
        return attend(query, reference, source, shapes, self)


def attend(query, reference, source, shapes, module):
    """Eq. (8): the whole operator, with the weights of a DeformableAttention."""
    value = module.value_proj(source).unflatten(2, (module.heads, -1))  # [B, S, M, D]
    offset_map = module.sampling_offsets.weight, module.sampling_offsets.bias
    weight_map = module.attention_weights.weight, module.attention_weights.bias
    offsets, weights = predict(query, offset_map, weight_map, module.heads, module.levels, module.points)
    locations = sampling_locations(reference, offsets, shapes)
    out = deformable_attention(value, shapes, locations, weights)
    return module.output_proj(out)  # Eq. (8)  [B, Q, C]


# ------------------------------------------------------------------------------------------ boundaries


# (dy, dx) of direction 0 .. 7: the compass in steps of 45 degrees, direction 4 points to the right.
STEPS = ((0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1))
LOSS_WEIGHTS = {"segmentation": 0.8, "mask": 5.0, "direction": 0.6, "refined": 1.0}


def boundary_depth(label, reach):
    """Distance in pixels from each pixel to the nearest one of another label, exact up to `reach`, larger beyond.
    The border of the image is no boundary. label: uint8 [B, H, W] -> float64 [B, H, W].

    Two passes, as for every squared Euclidean distance: along columns, then the minimum over a row of the sum.
    """
    column = torch.full_like(label, reach + 1, dtype=torch.int16)
    for d in range(min(reach, label.shape[1] - 1), 0, -1):  # the nearest one writes last
        other = label[:, d:] != label[:, :-d]
        column[:, d:].masked_fill_(other, d)
        column[:, :-d].masked_fill_(other, d)
    column = column * column
    squared = column.clone()
    for d in range(1, min(reach, label.shape[2] - 1) + 1):
        other = label[..., d:] != label[..., :-d]
        for here, there in ((slice(d, None), slice(None, -d)), (slice(None, -d), slice(d, None))):
            found = column[..., there].masked_fill(other, 0) + d * d
            squared[..., here] = torch.minimum(squared[..., here], found)
    # Angles are rounded down to bytes later, so whole degrees must come out whole.
    return squared.to(torch.float32 if label.device.type == "mps" else torch.float64).sqrt()


def boundary_targets(label, reach=9):
    """Eq. (9): which pixels lie near a boundary, and in which of eight directions their interior lies.

    label: int [B, H, W], 255 = void. Returns mask [B, H, W] (1 = boundary, 0 = not, 255 = void) and direction
    [B, H, W] (0 .. 7, or 255 where void or so deep inside that distances up to `reach` do not decide it), int64.
    Made from the label as the network sees it, so flips and scales need no care. `reach` 9 is what the mask needs.
    """
    label = label.to(torch.uint8)
    void = label == VOID
    counts = torch.stack([torch.bincount(image.flatten(), minlength=256) for image in label])  # [B, 256]
    small = (counts < 100).gather(1, label.flatten(1).long()).view_as(label)
    hollow = small | void  # such regions have no inside
    depth = boundary_depth(label, reach).masked_fill(hollow, 0)

    # The slope of the depth, by a 5x5 filter that sees the own class only.
    height, width = label.shape[1:]
    labels, depths = F.pad(label.short(), (2, 2, 2, 2), value=-1), F.pad(depth, (2, 2, 2, 2))
    down, across = torch.zeros_like(depth), torch.zeros_like(depth)
    for dy, dx in itertools.product(range(-2, 3), repeat=2):
        if dy or dx:
            there = (..., slice(dy + 2, dy + 2 + height), slice(dx + 2, dx + 2 + width))
            inside = depths[there].masked_fill(labels[there] != label, 0)
            down.add_(inside, alpha=dy / (dy * dy + dx * dx))
            across.add_(inside, alpha=dx / (dy * dy + dx * dx))
    # The published targets store angles as bytes, in steps of two degrees, rounded down.
    angle = 2 * ((torch.rad2deg(torch.atan2(down, across)) + 180) / 2).floor() - 180
    direction = ((angle + 180 - 22.5) / 45).ceil().long() % 8
    direction = direction.masked_fill(hollow, 4)  # no inside: angle 0 there
    direction = direction.masked_fill(void | (depth.floor() > reach - 4), VOID)
    mask = (depth.floor() <= 5).long().masked_fill(void, VOID)  # Eq. (9)
    return mask, direction


def refine(logits, mask_logits, direction_logits):
    """Eq. (10): a boundary pixel takes over the scores of its neighbour one step further inside.

    logits: [B, K, H, W]; mask_logits: [B, 2, H, W]; direction_logits: [B, 8, H, W] -> [B, K, H, W]. No gradient
    reaches the mask and the direction: steps are whole pixels."""
    height, width = logits.shape[2:]
    steps = torch.tensor(STEPS, device=logits.device)
    # The released code compares the logit, not the probability, with one half.
    step = steps[direction_logits.argmax(1)] * (mask_logits[:, 1] > 0.5)[..., None]  # [B, H, W, 2]
    y = torch.arange(height, device=logits.device)[:, None] + step[..., 0]
    x = torch.arange(width, device=logits.device) + step[..., 1]
    source = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(1)  # [B, H*W]
    index = source[:, None].expand(-1, logits.shape[1], -1)  # [B, K, H*W]
    return logits.flatten(2).gather(2, index).view_as(logits)  # Eq. (10)


def boundary_loss(logits, mask_logits, direction_logits, label, cross_entropy, targets=None):
    """Eq. (11): the four terms as a dictionary, before their weights; all logits at the size of the label.

    cross_entropy(scores, label) -> scalar: the mean over pixels for the two segmentation terms.
    targets: (mask, direction) as of `boundary_targets`, made from the label if None.
    """
    mask, direction = boundary_targets(label) if targets is None else targets
    # Directions count where a boundary is *predicted*: by probability this time, again as released.
    direction = direction.where(mask_logits[:, 1] > mask_logits[:, 0], VOID)
    return {  # Eq. (11)
        "segmentation": cross_entropy(logits, label),
        "mask": balanced_cross_entropy(mask_logits, mask),
        "direction": balanced_cross_entropy(direction_logits, direction),
        "refined": cross_entropy(refine(logits, mask_logits, direction_logits), label),
    }


def balanced_cross_entropy(scores, target):
    """Weighted mean in which a class weighs 1 minus its share of the valid pixels. 0 where the weights sum to 0:
    no valid pixel, or a single class. scores: [B, K, H, W], target: int64 [B, H, W], 255 = void -> scalar."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))  # losses are never taken in half precision
    counts = torch.bincount(target[target != VOID], minlength=scores.shape[1]).to(scores)
    weights = 1 - counts / counts.sum().clamp(min=1)
    total = F.cross_entropy(scores, target, weights, ignore_index=VOID, reduction="sum")
    return total / (weights * counts).sum().clamp(min=1e-6)


# ------------------------------------------------------------------------------------------ encoder and decoder


def pixel_centres(height, width, like):
    """Centres (x, y) of the pixels of a map that spans 0 .. 1 along both axes. [H*W, 2], row-major."""
    y = (torch.arange(height, dtype=torch.float64) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float64) + 0.5) / width
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1).to(like)


def sine_position(height, width, channels, like):
    """Fixed position embedding [H*W, C]: the first half of the channels from y, the second from x."""
    halves = []
    frequency = 10000 ** -(torch.arange(0, channels // 2, 2, dtype=torch.float64) / (channels // 2))  # [C/4]
    for size in (height, width):
        u = 2 * math.pi * torch.arange(1, size + 1, dtype=torch.float64) / (size + 1e-6)
        phase = u[:, None] * frequency  # [size, C/4]
        halves.append(torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(1))  # [size, C/2]
    y, x = halves[0][:, None].expand(-1, width, -1), halves[1].expand(height, -1, -1)
    return torch.cat([y, x], dim=-1).flatten(0, 1).to(like)


class SelfAttention(nn.Module):
    """The decoder's attention among queries, under the three readings of paper.md. [B, Q, C] -> [B, Q, C].

    mixing "none": every query attends to itself alone, which leaves the value and output projections.
    "batch": to the queries at its position in the other images of the batch, as the released code does.
    "pixels": to all queries of its image, as was probably meant. All three have the same parameters.
    """

    def __init__(self, channels, heads, mixing, dropout):
        super().__init__()
        self.heads, self.mixing, self.dropout = heads, mixing, dropout
        self.projection = nn.Linear(channels, 3 * channels)  # rows: queries, keys, values
        self.output = nn.Linear(channels, channels)

    def forward(self, x):
        dropout = self.dropout if self.training else 0.0
        if self.mixing == "none":
            weight, bias = (tensor.chunk(3)[2] for tensor in (self.projection.weight, self.projection.bias))
            v = F.linear(x, weight, bias).unflatten(2, (self.heads, -1))  # [B, Q, M, D]
            ones = v.new_ones(*v.shape[:3], 1)  # a softmax over one score
            return self.output((v * F.dropout(ones, dropout, self.training)).flatten(2))
        q, k, v = self.projection(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, M, Q, D]
        if self.mixing == "batch":
            q, k, v = (t.transpose(0, 2) for t in (q, k, v))  # each [Q, M, B, D]: the batch is the sequence
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # Eq. (1) and (2), fused
        if self.mixing == "batch":
            x = x.transpose(0, 2)  # [B, M, Q, D]
        return self.output(x.transpose(1, 2).flatten(2))


def feed_forward(channels, hidden, dropout):
    """Linear, ReLU, linear, with dropout behind each."""
    return nn.Sequential(
        nn.Linear(channels, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, channels), nn.Dropout(dropout)
    )


class EncoderLayer(nn.Module):
    """Every pixel of the pyramid looks at the pyramid. Post-norm. [B, S, C] -> [B, S, C]."""

    def __init__(self, channels, heads, levels, points, hidden, dropout):
        super().__init__()
        self.attention = DeformableAttention(channels, heads, levels, points)
        self.norm_attention = nn.LayerNorm(channels)
        self.ffn = feed_forward(channels, hidden, dropout)
        self.norm_ffn = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, position, reference, shapes):
        # Values carry no position: what is read does not depend on where it lies, only who reads it does.
        x = self.norm_attention(x + self.dropout(self.attention(x + position, reference, x, shapes)))
        return self.norm_ffn(x + self.ffn(x))


class DecoderLayer(nn.Module):
    """Every output pixel mixes with other queries, then looks at the pyramid. Post-norm. [B, Q, C] -> [B, Q, C]."""

    def __init__(self, channels, heads, levels, points, hidden, dropout, mixing):
        super().__init__()
        self.self_attention = SelfAttention(channels, heads, mixing, dropout)
        self.norm_self = nn.LayerNorm(channels)
        self.cross_attention = DeformableAttention(channels, heads, levels, points)
        self.norm_cross = nn.LayerNorm(channels)
        self.ffn = feed_forward(channels, hidden, dropout)
        self.norm_ffn = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, reference, memory, shapes):
        x = self.norm_self(x + self.dropout(self.self_attention(x)))
        x = self.norm_cross(x + self.dropout(self.cross_attention(x, reference, memory, shapes)))
        return self.norm_ffn(x + self.ffn(x))


# ------------------------------------------------------------------------------------------ the network


def spatial_branch(channels):
    """Three strided convolutions from the image to queries. [B, 3, H, W] -> [B, C, H/8, W/8], rounded up.
    There is no ReLU behind the third: queries have both signs."""
    layers, inputs = [], 3
    for outputs in (channels // 4, channels // 2, channels):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers[:-1])


def boundary_head(channels, outputs):
    """[B, C, H/8, W/8] -> [B, outputs, H/8, W/8]."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.Conv2d(channels, outputs, 1, bias=False),
    )


class UNEPT(nn.Module):
    """A segmentation network: backbone, context branch (encoder and decoder), spatial branch, boundary heads.

    backbone: "resnet50" (deep stem, dilated; three maps at 1/8), "deit" (three maps at 1/16) or "tiny" (maps at
        1/8, 1/16 and 1/32: a pyramid of three resolutions).
    img_size: side in pixels that the query embedding (img_size / 8 squared) and the position embedding of "deit"
        are made for; a multiple of 8, for "deit" of 16. Other inputs get them resized.
    channels: C. heads: M. levels: L, the last L of the three maps. points: N. depth: layers of the encoder and of
        the decoder. hidden: width of the feed-forward layers. dropout: in encoder and decoder.
    decoder_mixing: "none", "batch" or "pixels", see SelfAttention.
    spatial: whether decoder queries see the image; without, they are the learned embedding only, and there are no
        boundary heads. boundary: whether there are boundary heads and their losses.
    refine: whether the boundary heads also correct the output in evaluation mode.
    context: without, the deepest map of the finest resolution is classified, and nothing else exists.

    forward: images [B, 3, H, W] -> {"out": [B, num_classes, H, W]}, with boundary heads also "mask" [B, 2, h, w]
    and "direction" [B, 8, h, w], h = ceil(H / 8), w = ceil(W / 8). All are scores before the softmax.
    """

    def __init__(
        self, num_classes, backbone="resnet50", img_size=480, channels=256, heads=8, levels=3, points=16, depth=2,
        hidden=2048, dropout=0.1, decoder_mixing="none", spatial=True, boundary=True, refine=False, context=True,
    ):
        super().__init__()
        check("backbone", backbone, ("resnet50", "deit", "tiny"))
        check("decoder_mixing", decoder_mixing, ("none", "batch", "pixels"))
        check("levels", levels, (1, 2, 3))
        self.multiple = 16 if backbone == "deit" else 1  # sides that the backbone takes
        if img_size < 32 or img_size % max(8, self.multiple):
            raise ValueError(f"img_size must be a multiple of {max(8, self.multiple)}, at least 32, not {img_size}")
        if points < 1 or depth < 1 or channels % 4 or channels % heads:
            raise ValueError(
                f"points and depth must be positive, channels a multiple of 4 and of heads, not points={points}, "
                f"depth={depth}, channels={channels}, heads={heads}"
            )
        boundary = boundary and spatial and context
        if refine and not boundary:
            raise ValueError("refine needs the boundary heads, so context, spatial and boundary must be on")
        self.refine, self.context, self.side = refine, context, img_size // 8

        if backbone == "tiny":
            # Without context only the finest map is read, and the coarser stages would be idle.
            self.backbone = ResNet("tiny", strides=(2, 2, 2, 2) if context else (2, 2))
        elif backbone == "resnet50":
            self.backbone = ResNet("resnet50", (32, 32, 64), (1, 2, 1, 1), (1, 1, 2, 4), contract=True)
        else:
            self.backbone = VisionTransformer(img_size)
        inputs = self.backbone.channels[-(levels if context else 1) :]
        self.pyramid = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in inputs)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        if not context:
            return
        sizes = (channels, heads, levels, points, hidden, dropout)
        self.level_embed = nn.Parameter(torch.randn(levels, channels))
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(depth))
        self.decoder = nn.ModuleList(DecoderLayer(*sizes, decoder_mixing) for _ in range(depth))
        self.query_embed = nn.Parameter(torch.randn(self.side**2, channels))
        self.spatial_branch = spatial_branch(channels) if spatial else None
        self.mask_head = boundary_head(channels, 2) if boundary else None
        self.direction_head = boundary_head(channels, len(STEPS)) if boundary else None
        initialise(self.encoder)
        initialise(self.decoder)

    def forward(self, images):
        height, width = size = images.shape[-2:]
        images = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        maps = self.backbone(images)[-len(self.pyramid) :]
        maps = [project(x) for project, x in zip(self.pyramid, maps)]  # L times [B, C, H_l, W_l]
        grid = [-(-side // 8) for side in images.shape[-2:]]
        outputs = {}
        if self.context:
            memory, shapes = self.encode(maps)  # [B, S, C]
            queries = self.queries(grid).expand(len(images), -1, -1)  # [B, Q, C]
            if self.spatial_branch is not None:
                detail = self.spatial_branch(images)  # [B, C, h, w]
                if detail.requires_grad:
                    # For one image the gradient comes back transposed, with strides that PyTorch's BatchNorm
                    # takes for contiguous on the CPU: it would silently return a wrong gradient.
                    detail.register_hook(torch.Tensor.contiguous)
                queries = queries + detail.flatten(2).transpose(1, 2)
            if self.mask_head is not None:
                outputs = {"mask": self.mask_head(detail), "direction": self.direction_head(detail)}
            x = self.decode(queries, grid, memory, shapes)  # [B, C, h, w]
        else:
            x = F.interpolate(maps[0], grid, mode="bilinear", align_corners=False)
        out = F.interpolate(self.classifier(x), images.shape[-2:], mode="bilinear", align_corners=False)
        outputs = {name: x[..., : -(-height // 8), : -(-width // 8)] for name, x in outputs.items()}
        out = out[..., :height, :width]  # what was padded is cut off again
        if self.refine and not self.training:
            out = refine(out, enlarge(outputs["mask"], size), enlarge(outputs["direction"], size))
        return {"out": out, **outputs}

    def encode(self, maps):
        """The pyramid as one sequence, after it has looked at itself. L maps [B, C, H_l, W_l] -> [B, S, C], shapes."""
        shapes = [tuple(x.shape[-2:]) for x in maps]
        x = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)  # [B, S, C]
        position = torch.cat(
            [sine_position(*shape, x.shape[2], x) + embed for shape, embed in zip(shapes, self.level_embed)]
        )  # [S, C]
        reference = torch.cat([pixel_centres(*shape, self.level_embed) for shape in shapes])  # [S, 2]
        reference = reference.expand(len(x), -1, -1)
        for layer in self.encoder:
            x = layer(x, position, reference, shapes)
        return x, shapes

    def queries(self, grid):
        """One learned vector per output pixel, resized where the output has another size than img_size / 8.
        [1, Q, C], Q = rows * columns of the grid."""
        if list(grid) == [self.side, self.side]:
            return self.query_embed[None]
        picture = self.query_embed.T.unflatten(1, (self.side, self.side))[None]  # [1, C, side, side]
        picture = F.interpolate(picture, grid, mode="bilinear", align_corners=False)
        return picture.flatten(2).transpose(1, 2)

    def decode(self, queries, grid, memory, shapes):
        """Queries [B, Q, C] look at the memory [B, S, C] -> a map [B, C, rows, columns]."""
        reference = pixel_centres(*grid, self.query_embed).expand(len(queries), -1, -1)  # [B, Q, 2]
        for layer in self.decoder:
            queries = layer(queries, reference, memory, shapes)
        return queries.transpose(1, 2).unflatten(2, grid)

    def loss(self, outputs, label, cross_entropy):
        """The training loss, Eq. (11) with its weights. outputs: of `forward` in training mode; label: int64
        [B, H, W], 255 = void; cross_entropy(scores, label) -> scalar: the caller's mean over pixels."""
        if "mask" not in outputs:
            return cross_entropy(outputs["out"], label)
        mask, direction = (enlarge(outputs[name], label.shape[1:]) for name in ("mask", "direction"))
        terms = boundary_loss(outputs["out"], mask, direction, label, cross_entropy)
        return sum(LOSS_WEIGHTS[name] * term for name, term in terms.items())


def enlarge(logits, size):
    """Boundary scores at full size. The released code aligns corners here, unlike everywhere else."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)


def initialise(layers):
    """Xavier for all matrices of encoder or decoder; the deformable modules then start with their compass."""
    for module in layers.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        if isinstance(module, SelfAttention):
            nn.init.zeros_(module.projection.bias)
            nn.init.zeros_(module.output.bias)
    for module in layers.modules():
        if isinstance(module, DeformableAttention):
            module.initialise()


def check(option, value, valid):
    """Raise a ValueError that names the valid choices."""
    if value not in valid:
        raise ValueError(f"unknown {option} {value!r}; valid: {', '.join(map(str, valid))}")


PRESETS = {
    # Without boundary heads, whose loss outweighs all else in the few steps of a laptop; see paper.md.
    "tiny": dict(
        backbone="tiny", img_size=128, channels=64, heads=8, points=4, depth=1, hidden=128, dropout=0.0, boundary=False
    ),
    "resnet50": dict(backbone="resnet50"),
    "deit": dict(backbone="deit"),
    "deit_cityscapes": dict(backbone="deit", img_size=768),
}


def build(num_classes, preset="tiny", **options):
    """The network of a preset, with any option of `UNEPT` overridden.

    Raises ValueError for an unknown preset or option, naming the valid ones.
    """
    check("preset", preset, tuple(PRESETS))
    valid = tuple(inspect.signature(UNEPT).parameters)[1:]
    for name in options:
        check("option", name, valid)
    return UNEPT(num_classes, **{**PRESETS[preset], **options})
