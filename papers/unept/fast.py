"""The quick form of UN-EPT's sparse attention: the lines (G) and (H) of
`model.deformable_attention`. The whiteboard stores every sample before it adds; this form adds as
it reads. At the end of the first part `kept`, for tables that need not be made in every pass.

One query and head is a *bag* that names 4 N rows of a table, the four pixels around each of
its N points, and `embedding_bag` adds the rows up as it reads them. The result is the same up to
rounding: the four corner weights of (G) times a are the weights of the rows. It saves the C * Q * N
samples of a level and, where queries and points are many, most of the time. It has no second
derivative. (G) and (H) have no parameters: every layer of the network is called in either form.
Shapes as in model.py.
"""

import functools
import warnings

import torch
import torch.nn.functional as F


def deformable_attention(value, shapes, locations, weights):
    """`model.deformable_attention`, same arguments, same result. Stores O(Q M N) numbers for one
    level at a time."""
    batch, queries, _ = locations.shape[:3]
    kind, full = value.dtype, torch.promote_types(locations.dtype, torch.float32)
    value, locations, weights = value.to(full), locations.to(full), weights.to(full)
    # torch.compile makes gradients of its own, and cannot see through those below.
    own = value.device.type == "cpu" and not torch.compiler.is_compiling()
    attend = LevelAttention.apply if own else level_attention
    parts = value.split([height * width for height, width in shapes], dim=1)
    out = 0
    levels = zip(parts, shapes, locations.unbind(3), weights.unbind(3), strict=True)
    for part, shape, p, a in levels:
        out = out + attend(ringed_table(part, shape), p, a, tuple(shape))   # (H)  [B*Q*M, D]
    return out.view(batch, queries, -1).to(kind)                            # [B, Q, M*D]


def level_attention(table, locations, share, shape):
    """(G) and (H) on one level. table: of `ringed_table`, locations [B, Q, M, N, 2], share: the
    weights a, [B, Q, M, N] -> [B*Q*M, D]."""
    row, right, lower = corners(locations, shape)
    rows = corner_rows(table_rows(row, shape), shape).flatten(0, 2).flatten(1)      # [B*Q*M, N*4]
    factors = corner_weights(share, right, lower).flatten(0, 2).flatten(1)          # [B*Q*M, N*4]
    return F.embedding_bag(rows, table, per_sample_weights=factors, mode="sum")


def kept(make):
    """Decorator of a function (*sizes, like) -> a table that depends on the sizes, and on type and
    device of the tensor `like`: it is made once and not in every pass. What is traced is not kept.
    """
    @functools.lru_cache(256)
    @torch.inference_mode(False)  # what is kept must serve training, too
    def keep(*sizes, device, dtype):
        return make(*sizes, torch.empty(0, device=device, dtype=dtype))

    @functools.wraps(make)
    def _kept(*arguments):
        *sizes, like = arguments
        if torch.compiler.is_compiling() or type(like) is not torch.Tensor:
            return make(*sizes, like)
        return keep(*sizes, device=like.device, dtype=like.dtype)

    return _kept


# -------------------------------------------------------------------------- the table and its rows


def ringed_table(part, shape):
    """Values of one level -> one row of D numbers per image, head and pixel of a map that wears a
    ring of zeros, one pixel wide. [B, H*W, M, D] -> [B*M * (H+2)*(W+2), D].

    The ring is the zeros outside the map of (G), exactly and without a mask: whatever lies further
    out is moved onto it. Heads come before pixels, so that a query's neighbours lie close.
    """
    pixels = part.permute(0, 2, 1, 3).unflatten(2, shape)                   # [B, M, H, W, D]
    return F.pad(pixels, (0, 0, 1, 1, 1, 1)).flatten(0, 3)


def corners(locations, shape):
    """Where points lie in a ringed map of shape (H, W). [..., 2] -> three tensors [...].

    The row of the upper left of the four pixels around each point, int32, as an index into the
    (H+2) * (W+2) ringed pixels, and the fractions towards the right and lower pixels.
    """
    height, width = shape
    x = (locations[..., 0] * width - 0.5).clamp(-1, width)
    y = (locations[..., 1] * height - 0.5).clamp(-1, height)
    left, top = x.floor().clamp(max=width - 1), y.floor().clamp(max=height - 1)
    # The second clamp, of integers, is for NaN alone: a location that is NaN gives NaN and must not
    # become a bad index.
    column, line = left.int().clamp_(-1, width - 1), top.int().clamp_(-1, height - 1)
    return (line + 1) * (width + 2) + column + 1, x - left, y - top


def corner_weights(share, right, lower):
    """(1 - |y - i|) (1 - |x - j|) of (G) for the pixels upper left, upper right, lower left and
    lower right of a point, times the point's own share. All [...] -> [..., 4]."""
    lower_share = share * lower
    upper_share = share - lower_share
    lower_right, upper_right = lower_share * right, upper_share * right
    return torch.stack(                                                     # (G)
        [upper_share - upper_right, upper_right, lower_share - lower_right, lower_right], dim=-1
    )


def corner_rows(row, shape):
    """The rows of the four pixels around each point. int32 [...] -> [..., 4]."""
    return row[..., None] + corner_steps(shape[1] + 2, row)


@kept
def corner_steps(width, like):
    """How many rows behind the upper left corner of a point the four corners lie. [4]."""
    return like.new_tensor([0, 1, width, width + 1])


def table_rows(row, shape):
    """From rows of one map to rows of the table of all images and heads. [B, Q, M, N] -> same."""
    batch, _, heads, _ = row.shape
    maps = torch.arange(batch * heads, dtype=row.dtype, device=row.device)
    return row + maps.view(batch, 1, heads, 1) * ((shape[0] + 2) * (shape[1] + 2))


# ------------------------------------------------------------------------ its gradients on the CPU


class LevelAttention(torch.autograd.Function):
    """`level_attention` with a backward pass for the CPU, where PyTorch's own adds row after row.

    With the sparse matrix A of (I), and G, the gradient of the result: that of the table is A^T G;
    those of points and weights come from the entries of G V^T where A is not 0. Nothing but the
    inputs is kept from the forward pass.
    """

    @staticmethod
    def forward(ctx, table, locations, share, shape):
        ctx.save_for_backward(table, locations, share)
        ctx.shape = shape
        return level_attention(table, locations, share, shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        """gradient G: of the result, [B*Q*M, D] -> those of table, locations and share."""
        table, locations, share = ctx.saved_tensors
        row, right, lower = corners(locations, ctx.shape)                   # each [B, Q, M, N]
        row, gradient = table_rows(row, ctx.shape), gradient.contiguous()
        of_table = of_locations = of_share = None
        if ctx.needs_input_grad[0]:
            factors = corner_weights(share, right, lower)                   # [B, Q, M, N, 4]
            of_table = table_gradient(gradient, row, factors, len(table), ctx.shape)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            rows = corner_rows(row, ctx.shape)                              # [B, Q, M, N, 4]
            dots = products_at(gradient, table, rows.flatten(0, 2).flatten(1)).view(rows.shape)
            fractions = right, lower
            of_locations, of_share = point_gradients(dots, locations, share, fractions, ctx.shape)
        return of_table, of_locations, of_share, None


def table_gradient(gradient, row, factors, length, shape):
    """A^T G: one bag per *source* pixel, once the points are sorted by pixel. -> [length, D].

    gradient G [B*Q*M, D], row [B, Q, M, N], factors [B, Q, M, N, 4].
    """
    sorting = row.flatten().argsort(stable=True)
    counts = torch.bincount(row.flatten(), minlength=length)
    starts = (counts.cumsum(0) - counts).int()      # where the bag of each row begins
    readers = sorting.div(row.shape[-1], rounding_mode="floor").int()   # query and head of a point
    factors = factors.view(-1, 4)[sorting]                                  # [B*Q*M*N, 4]
    total = gradient.new_zeros(length, gradient.shape[1])
    for corner, shift in enumerate((0, 1, shape[1] + 2, shape[1] + 3)):
        weights = factors[:, corner].contiguous()
        part = F.embedding_bag(readers, gradient, starts, per_sample_weights=weights, mode="sum")
        # Bags are filed under the upper left corner; the other three lie `shift` rows further on.
        total[shift:] += part[: len(part) - shift]
    return total


def point_gradients(dots, locations, share, fractions, shape):
    """Those of the locations [B, Q, M, N, 2] and of the weights [B, Q, M, N].

    dots: G V^T at the four corners of every point, [B, Q, M, N, 4]: what would change if a corner
    counted more. fractions: right and lower, of `corners`.
    """
    (height, width), (right, lower) = shape, fractions
    upper_left, upper_right, lower_left, lower_right = dots.unbind(-1)
    across_upper, across_lower = upper_right - upper_left, lower_right - lower_left
    upper = upper_left + right * across_upper
    down = lower_left + right * across_lower - upper
    of_share = upper + lower * down
    x, y = locations[..., 0] * width - 0.5, locations[..., 1] * height - 0.5
    # A point beyond the ring has been clamped: moving it changes nothing.
    across = share * (across_upper + lower * (across_lower - across_upper))
    across = across * ((x >= -1) & (x <= width)) * width
    down = share * down * ((y >= -1) & (y <= height)) * height
    return torch.stack([across, down], dim=-1), of_share


def products_at(left, right, columns):
    """Of all products of a row of `left` [n, D] with a row of `right` [m, D] those that are wanted:
    columns int32 [n, k] -> [n, k], out[i, j] = left[i] . right[columns[i, j]]."""
    parts = []
    for part in columns.split(len(right), dim=1):   # a row of the format has at most m entries
        count, width = part.shape
        starts = torch.arange(0, count * width + 1, width, dtype=torch.int32, device=part.device)
        # Columns may repeat and are not sorted, against the format's rules. The product below reads
        # each entry by itself, so the check is left out.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")         # PyTorch says once that the format is in beta
            places = torch.sparse_csr_tensor(
                starts, part.flatten(), left.new_zeros(count * width), (count, len(right)),
                check_invariants=False,
            )
        # In place, so that indices are not copied.
        torch.sparse.sampled_addmm(places, left, right.T, beta=0, out=places)
        parts.append(places.values().view(count, width))
    return torch.cat(parts, dim=1)
