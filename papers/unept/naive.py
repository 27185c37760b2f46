"""UN-EPT's attention, its queries, its boundary targets and its losses exactly as their equations
read: Python loops, no tricks.

Made to be read beside paper.md and to be wrong nowhere; hopelessly slow on purpose. Functions take
the tensors of their equation; `predict` takes pairs (matrix, bias), `attend` takes the
model.DeformableAttention whose weights it reads. deformable_attention, attention_matrix,
sampling_locations and full_attention are in model.py under the same names with the same arguments,
boundary_targets, boundary_loss and refine in boundary.py.

Order of coordinates: sizes are (rows, columns) = (H, W); points are (x, y), so x goes with W.
"""

import math

import torch

# (dy, dx) of direction 0 .. 7
STEPS = ((0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1))


def full_attention(q, k, v):
    """(A) and (B): what UN-EPT avoids. Every query looks at every source.

    q: [B, M, Q, d], k: [B, M, S, d], v: [B, M, S, D] -> [B, M, Q, D]."""
    batch, heads, queries, width = q.shape
    rows = []
    for b in range(batch):
        for m in range(heads):
            for i in range(queries):
                scores = [(q[b, m, i] * key).sum() / math.sqrt(width) for key in k[b, m]]
                largest = max(score.item() for score in scores)     # so that exp cannot overflow
                weights = [torch.exp(score - largest) for score in scores]
                weights = [weight / sum(weights) for weight in weights]  # (A)
                rows.append(sum(weight * v[b, m, j] for j, weight in enumerate(weights)))  # (B)
    return torch.stack(rows).reshape(batch, heads, queries, -1)


def predict(query, offset_map, weight_map, heads, levels, points):
    """(D) and (E): where to look and how much to weigh it, two linear functions of the query alone.

    query: [B, Q, C]; offset_map, weight_map: pairs (matrix, bias) with M*L*N*2 and M*L*N rows.
    Returns offsets (x, y) in pixels of the level they look at, [B, Q, M, L, N, 2], and weights [B,
    Q, M, L, N] that sum to 1 over the L * N points of a head.
    """
    batch, queries, _ = query.shape
    offsets = query.new_zeros(batch, queries, heads, levels, points, 2)
    weights = query.new_zeros(batch, queries, heads, levels, points)
    for b in range(batch):
        for q in range(queries):
            z = query[b, q]
            for m in range(heads):
                exponentials = {}
                for level in range(levels):
                    for n in range(points):
                        row = (m * levels + level) * points + n
                        for axis in range(2):
                            weight, bias = (part[2 * row + axis] for part in offset_map)
                            offsets[b, q, m, level, n, axis] = (weight * z).sum() + bias    # (D)
                        weight, bias = (part[row] for part in weight_map)
                        exponentials[level, n] = torch.exp((weight * z).sum() + bias)
                total = sum(exponentials.values())  # over all levels together
                for (level, n), value in exponentials.items():
                    weights[b, q, m, level, n] = value / total  # (E)
    return offsets, weights


def sampling_locations(reference, offsets, shapes):
    """(F): the points, normalised so that a map spans 0 .. 1 along both axes whatever its
    resolution.

    reference: [B, Q, 2] (x, y); offsets: [B, Q, M, L, N, 2]; shapes: L pairs (H, W) -> [B, Q, M, L,
        N, 2]."""
    locations = torch.zeros_like(offsets)
    for level, (height, width) in enumerate(shapes):
        for axis, size in enumerate((width, height)):  # x is divided by the width
            start = reference[:, :, None, None, axis]
            moved = offsets[:, :, :, level, :, axis] / size
            locations[:, :, :, level, :, axis] = start + moved     # (F)
    return locations


def bilinear(level, x, y):
    """(G): the value of a map between its pixels; outside there are zeros, corner by corner.

    level: [H, W, D]; x, y: tensors of one number, in pixels, 0 = centre of the first one -> [D]."""
    height, width, _ = level.shape
    left, top = math.floor(x.detach()), math.floor(y.detach())
    value = 0 * level[0, 0]
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < height and 0 <= j < width:
                value = value + (1 - abs(y - i)) * (1 - abs(x - j)) * level[i, j]  # (G)
    return value


def deformable_attention(value, shapes, locations, weights):
    """(H): each head of each query adds up N points on each of L levels, each read at
    (x, y) = p (W_l, H_l) - 1/2.

    value: [B, S, M, D], the levels one behind the other, row-major; shapes: L pairs (H, W), S = sum
        of H * W;
    locations: [B, Q, M, L, N, 2], (x, y), 0 .. 1; weights: [B, Q, M, L, N]. Returns [B, Q, M *
        D]."""
    batch, queries, heads, _, points, _ = locations.shape
    rows = []
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                total, start = 0, 0
                for level, (height, width) in enumerate(shapes):
                    pixels = value[b, start : start + height * width, m]
                    pixels = pixels.unflatten(0, (height, width))           # [H, W, D]
                    for n in range(points):
                        x = locations[b, q, m, level, n, 0] * width - 0.5
                        y = locations[b, q, m, level, n, 1] * height - 0.5
                        total = total + weights[b, q, m, level, n] * bilinear(pixels, x, y)  # (H)
                    start += height * width
                rows.append(total)
    return torch.stack(rows).reshape(batch, queries, -1)


def attention_matrix(shapes, locations, weights):
    """(I): the same attention as a matrix, to stand beside the one of (A): [B, M, Q, S], at most 4
    L N entries of a row are not zero, and no row sums to more than 1. Again (x, y) = p (W_l, H_l)
    - 1/2."""
    batch, queries, heads, _, points, _ = locations.shape
    sources = sum(height * width for height, width in shapes)
    matrix = [[[[0] * sources for _ in range(queries)] for _ in range(heads)] for _ in range(batch)]
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                start = 0
                for level, (height, width) in enumerate(shapes):
                    for n in range(points):
                        x = locations[b, q, m, level, n, 0] * width - 0.5
                        y = locations[b, q, m, level, n, 1] * height - 0.5
                        left, top = math.floor(x.detach()), math.floor(y.detach())
                        for i in (top, top + 1):
                            for j in (left, left + 1):
                                if 0 <= i < height and 0 <= j < width:
                                    share = (1 - abs(y - i)) * (1 - abs(x - j))
                                    share = weights[b, q, m, level, n] * share
                                    matrix[b][m][q][start + i * width + j] += share  # (I)
                    start += height * width
    zero = weights.new_zeros(())
    flat = [zero + entry for image in matrix for head in image for row in head for entry in row]
    return torch.stack(flat).reshape(batch, heads, queries, sources)


def attend(query, reference, source, shapes, module):
    """(C) to (J): the whole operator. `module` is a model.DeformableAttention; its weights are
    used, its code is not.

    query: [B, Q, C], reference: [B, Q, 2], source: [B, S, C] -> [B, Q, C]."""
    heads = module.heads
    value = source @ module.value_proj.weight.T + module.value_proj.bias    # (C)
    value = value.unflatten(2, (heads, -1))     # [B, S, M, D]: a head owns D channels side by side
    offset_map = module.sampling_offsets.weight, module.sampling_offsets.bias
    weight_map = module.attention_weights.weight, module.attention_weights.bias
    offsets, weights = predict(query, offset_map, weight_map, heads, module.levels, module.points)
    locations = sampling_locations(reference, offsets, shapes)
    out = deformable_attention(value, shapes, locations, weights)
    return out @ module.output_proj.weight.T + module.output_proj.bias      # (J)


def queries(detail, embed):
    """(K): what the decoder asks with: the spatial branch at a position plus what was learned
    there.

    detail: [B, C, h, w], embed: [h * w, C] -> [B, h * w, C]."""
    batch, _, height, width = detail.shape
    rows = []
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                rows.append(detail[b, :, i, j] + embed[i * width + j])      # (K)
    return torch.stack(rows).reshape(batch, height * width, -1)


def boundary_targets(label, reach=9):
    """(L): which pixels lie near a boundary, and in which of eight directions their interior lies.

    label: int [B, H, W], 255 = void. Returns mask [B, H, W] (1 = boundary, 0 = not, 255 = void) and
        direction [B, H, W] (0 .. 7, or 255 where void or where floor(T) > reach - 4: the 5x5 filter
        sees up to 2 sqrt 2 further, and distances beyond `reach` are not known). Void counts as
        another class; what lies outside the image counts for nothing. T is 0 in void and in classes
        of fewer than 100 pixels in this image, and there the angle is 0, direction 4. Angles from
        -180 degrees are rounded down to even ones; sector 0 is the last 22.5 degrees and the first
        22.5."""
    masks, directions = torch.zeros_like(label), torch.zeros_like(label)
    for b, image in enumerate(label.tolist()):
        height, width = len(image), len(image[0])
        pixels = [(y, x) for y in range(height) for x in range(width)]
        count = {}
        for y, x in pixels:
            count[image[y][x]] = count.get(image[y][x], 0) + 1
        depth = {}
        for y, x in pixels:
            here = image[y][x]
            others = [(y - i) ** 2 + (x - j) ** 2 for i, j in pixels if image[i][j] != here]
            # void and small classes have no inside; a class that fills the image has no boundary
            hollow = here == 255 or count[here] < 100
            depth[y, x] = 0.0 if hollow else math.sqrt(min(others, default=250**2))
        for y, x in pixels:
            here, gy, gx = image[y][x], 0.0, 0.0
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    if (dy or dx) and image_at(image, y + dy, x + dx) == here:
                        gy += dy / (dy * dy + dx * dx) * depth[y + dy, x + dx]
                        gx += dx / (dy * dy + dx * dx) * depth[y + dy, x + dx]
            angle = math.degrees(math.atan2(gy, gx)) if depth[y, x] else 0
            angle = 2 * int((angle + 180) / 2) - 180            # steps of two degrees, so
            # that no angle lies on the edge of two sectors, at 22.5 + 45 k
            sector = math.ceil((angle + 180 - 22.5) / 45) % 8   # (L)
            deep = int(depth[y, x]) > reach - 4  # the 5x5 filter sees up to 2 sqrt 2 further
            masks[b, y, x] = 255 if here == 255 else int(int(depth[y, x]) <= 5)  # (L)
            directions[b, y, x] = 255 if here == 255 or deep else sector
    return masks, directions


def image_at(image, y, x):
    """Label at (y, x), None outside."""
    return image[y][x] if 0 <= y < len(image) and 0 <= x < len(image[0]) else None


def refine(logits, mask_logits, direction_logits):
    """(M): a boundary pixel takes over the scores of its neighbour one step further inside.

    logits: [B, K, H, W]; mask_logits: [B, 2, H, W]; direction_logits: [B, 8, H, W] -> [B, K, H, W].
        Boundary means a *logit* above 0.5, as in the released code. A step that leaves the map
        stays at its edge; STEPS are the (dy, dx) of the directions."""
    batch, _, height, width = logits.shape
    refined = []
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                dy, dx = STEPS[int(direction_logits[b, :, y, x].argmax())]
                if mask_logits[b, 1, y, x] <= 0.5:
                    dy, dx = 0, 0
                i, j = min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)
                refined.append(logits[b, :, i, j])  # (M)
    return torch.stack(refined).reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def boundary_loss(logits, mask_logits, direction_logits, label, targets=None):
    """(N): the four terms as a dictionary, before their weights: segmentation, mask, direction,
    refined. All logits have the size of the label.

    targets: (mask, direction) as of `boundary_targets`, made from the label if None. Void pixels
        cost the two segmentation terms nothing, but are counted where they divide. The mask term
        leaves them out, the direction term all but those with a direction where u says boundary: u,
        the probability of boundary by `mask_logits`, is above 1/2. In these two a class weighs 1
        minus its share among the counted pixels, and the sum is divided by the sum of the weights.
        They are 0 where no pixels are left, or one class."""
    mask, direction = boundary_targets(label) if targets is None else targets
    batch, height, width = label.shape
    pixels = [(b, y, x) for b in range(batch) for y in range(height) for x in range(width)]
    valid = [p for p in pixels if label[p] != 255]
    refined = refine(logits, mask_logits, direction_logits)

    def surprise(scores, p, target):
        """Minus the log-probability of the class `target` at the pixel p = (b, y, x): a scalar."""
        scores = scores[p[0], :, p[1], p[2]]
        return torch.log(torch.exp(scores - scores.max()).sum()) + scores.max() - scores[target]

    def mean(scores):
        """The surprise at the valid pixels of the batch, divided by the number of all pixels."""
        return sum((surprise(scores, p, label[p]) for p in valid), 0 * scores.sum()) / len(pixels)

    def balanced(scores, target, pixels):
        """Weighted cross-entropy: each class weighs 1 minus its share among the counted pixels,
        and the sum is divided by the sum of the weights."""
        targets = [int(target[p]) for p in pixels]
        weights = [1 - targets.count(t) / len(targets) for t in targets]
        if sum(weights) == 0:  # no pixels, or a single class
            return 0 * scores.sum()
        items = zip(weights, pixels, targets, strict=True)
        return sum(w * surprise(scores, p, t) for w, p, t in items) / sum(weights)

    decided = [p for p in pixels if direction[p] != 255]
    near = [(b, y, x) for b, y, x in decided if mask_logits[b, 1, y, x] > mask_logits[b, 0, y, x]]
    return {  # (N)
        "segmentation": mean(logits),
        "mask": balanced(mask_logits, mask, [p for p in pixels if mask[p] != 255]),
        "direction": balanced(direction_logits, direction, near),
        "refined": mean(refined),
    }
