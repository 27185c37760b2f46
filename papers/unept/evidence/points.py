"""python -m papers.unept.evidence.points: where one query of UN-EPT looks, and what it reads.

Takes the network of `make shapes-table`, which is trained first where it is missing. Draws
docs/unept-points.png: the points of all heads of the decoder's attention on each level, and below
them the query's row of the dense matrix of (I), mean over heads, laid out as a map.
"""

import torch

from common.inference import normalise
from datasets import pictures
from datasets.shapes import Shapes
from papers import attention
from studies.trainings import ROOT, ROWS, load_best, parser, run_of, train_all

from .. import explain, model

PICTURE = ROOT / "docs" / "unept-points.png"
SCENE, PIXEL = 0, (22, 71)  # of the test scenes; (row, column) inside an object


@torch.inference_mode()
def points_and_row(network, image, pixel):
    """What the query nearest to a pixel reads on each level.

    Returns its points [L, M * N, 3], (x, y) as fractions of the image and the share of all that is
    read, and its rows of the matrix, mean over heads, [H_l, W_l] each.
    """
    with attention.record(network, explain.RECORD) as record:
        network(normalise(image)[None])
    name = [name for name in record if name.startswith("decoder")][-1]
    (query, reference, _, shapes), _ = record[name]
    number = explain.nearest_query(reference, pixel, image.shape[:2])
    module = network.get_submodule(name)
    # [M, L, N, 2], [M, L, N]
    locations, weights = explain.sampling_points(module, query, reference, shapes, number)
    points = torch.cat([locations, weights[..., None] / module.heads], dim=-1)  # [M, L, N, 3]
    points = points.transpose(0, 1).flatten(1, 2)  # [L, M*N, 3]
    # [1, M, 1, S]
    matrix = model.attention_matrix(shapes, locations[None, None], weights[None, None])
    rows = matrix[0, :, 0].mean(0).split([height * width for height, width in shapes])
    rows = zip(rows, shapes, strict=True)
    return points.numpy(), [row.view(shape).numpy() for row, shape in rows]


def main():
    parser(__doc__).parse_args()
    scenes = Shapes("test")
    image, label = scenes[SCENE]
    run = run_of("unept", ROWS["unept"][0], 0)
    train_all([run])
    levels, rows = points_and_row(load_best(run), image, PIXEL)
    truth = pictures.overlay(image, label, scenes.palette)
    names = [f"{row.shape[0]} x {row.shape[1]} pixels" for row in rows]
    looked = [(name, pictures.points_panel(image, {"points": points}, PIXEL))
              for name, points in zip(names, levels, strict=True)]
    read = [(f"{row.sum():.0%} of the weight", pictures.map_panel(image, row, PIXEL))
            for row in rows]
    page = pictures.sheet(
        "Where the query under the ring looks, on each of three levels (area of a circle = "
        "weight), and what it reads there: its row of the matrix A, mean over heads, laid out as "
        f"a map (grey = exactly zero). {1 - sum(row.sum() for row in rows):.0%} of the weight "
        "reads the zeros outside the image.",
        [
            [("the scene", pictures.plain_panel(image, PIXEL)), *looked],
            [(f"the truth: {scenes.classes[label[PIXEL]]}", pictures.plain_panel(truth, PIXEL)),
             *read],
        ],
    )
    pictures.save_png(PICTURE, page)
    print(f"picture: {PICTURE}")


if __name__ == "__main__":
    main()
