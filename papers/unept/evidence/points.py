"""python -m papers.unept.evidence.points: where one query of UN-EPT looks, and the row of the matrix that this makes.

Takes the trained network from runs/unept-tiny-shapes; if it is not there it is trained first, in a few minutes on a
laptop. Draws docs/unept-points.png: the points of all heads of the decoder's attention on each level, and below them
the query's row of the dense matrix (I), summed over heads and laid out as a map.
"""

import argparse

import torch

from common import attention, pictures
from common.inference import normalise
from datasets.shapes import Shapes
from .. import explain, model

from studies.attention import train_missing, training
from studies.shapes_table import ROOT, load_best

PICTURE = ROOT / "docs" / "unept-points.png"
SCENE, PIXEL = 0, (22, 71)  # of the test scenes; (row, column) inside an object


@torch.inference_mode()
def points_and_row(network, image, pixel):
    """Of the query nearest to a pixel: per level its points, [M * N, 3], (x, y) as fractions of the image and the share
    of all that is read, and its row of the matrix, mean over heads, [H_l, W_l]."""
    with attention.recording(network, explain.RECORD) as record:
        network(normalise(image)[None])
    name = [name for name in record if name.startswith("decoder")][-1]
    (query, reference, _, shapes), _ = record[name]
    number = explain.nearest_query(reference, pixel, image.shape[:2])
    module = network.get_submodule(name)
    locations, weights = explain.sampling_points(module, query, reference, shapes, number)  # [M, L, N, 2], [M, L, N]
    points = torch.cat([locations, weights[..., None] / module.heads], dim=-1)  # [M, L, N, 3]
    points = points.transpose(0, 1).flatten(1, 2)  # [L, M*N, 3]
    matrix = model.attention_matrix(shapes, locations[None, None], weights[None, None])  # [1, M, 1, S]
    rows = matrix[0, :, 0].mean(0).split([height * width for height, width in shapes])
    return points.numpy(), [row.view(shape).numpy() for row, shape in zip(rows, shapes)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=int, default=SCENE, help="number of the test scene")
    parser.add_argument("--pixel", default="{},{}".format(*PIXEL), metavar="ROW,COL")
    arguments = parser.parse_args()
    scenes = Shapes("test")
    image, label = scenes[arguments.scene]
    pixel = attention.parse_pixel(arguments.pixel, image.shape)
    train_missing([("unept", True)])
    levels, rows = points_and_row(load_best(training("unept")[0]), image, pixel)
    truth = pictures.overlay(image, label, scenes.palette)
    names = [f"{row.shape[0]} x {row.shape[1]} pixels" for row in rows]
    page = pictures.sheet(
        "Where the query under the ring looks, on each of three levels (area of a circle = weight), and what it reads "
        "there: its row of the matrix A, mean over heads, laid out as a map (grey = exactly zero). "
        f"{1 - sum(row.sum() for row in rows):.0%} of the weight reads the zeros outside the image.",
        [
            [("the scene", pictures.plain_panel(image, pixel))]
            + [(name, pictures.points_panel(image, {"points": points}, pixel)) for name, points in zip(names, levels)],
            [(f"the truth: {scenes.classes[label[pixel]]}", pictures.plain_panel(truth, pixel))]
            + [(f"{row.sum():.0%} of the weight", pictures.map_panel(image, row, pixel)) for row in rows],
        ],
    )
    pictures.save_png(PICTURE, page)
    print(f"picture: {PICTURE}")


if __name__ == "__main__":
    main()
