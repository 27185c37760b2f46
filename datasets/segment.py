"""Segmented copies of pictures that have no labels."""

import sys

import numpy as np
from tqdm import tqdm

from common.errors import UserError
from common.inference import predict

from . import pictures, predictions
from .files import IMAGE_SUFFIXES, list_folder, make_folder, read_image
from .memory import check_memory


def pictures_in(path):
    """{name: file} of the pictures in a folder, or of the one at `path`. A picture's name is that
    of the file without its ending, where another one has the same name with it. Raises
    UserError."""
    if not path.exists():
        raise UserError(f"--image: no such file: {path}")
    folder = path if path.is_dir() else path.parent
    files = sorted(folder / name for name in list_folder(folder))
    files = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    stems = [file.stem for file in files]
    if path.is_dir() and not files:
        raise UserError(f"--image {path}: no pictures in it ({', '.join(IMAGE_SUFFIXES)})")
    return {file.stem if stems.count(file.stem) < 2 else file.name: file
            for file in (files if path.is_dir() else [path])}


def segment(model, config, arguments, protocol, out, device):
    """Write a segmented copy of the picture --image, or of every picture in that folder. With
    --save-predictions also each one's class ids, as a PNG in the colours of the classes. A file of
    a folder that cannot be read is named at the end. Raises UserError if none can."""
    found, broken = pictures_in(arguments.image), []
    masks = arguments.save_predictions
    masks = out / "predictions" if masks is True else masks
    make_folder(out)
    for name in found:
        predictions.check_free(out / f"{name}-segmented.png")
    if masks:
        make_folder(masks, "--save-predictions")
        for name in found:
            predictions.check_free(masks / f"{name}.png", "--save-predictions")
    for name, path in tqdm(found.items(), unit="picture", disable=len(found) < 2):
        try:
            image = read_image(path, upright=True)
        except UserError as error:
            if not arguments.image.is_dir():
                raise
            broken.append(str(error))
            continue
        check_memory(image.shape[:2], len(config["classes"]), protocol, device, path)
        prediction = predict(model, image, protocol, device)
        target = out / f"{name}-segmented.png"
        pictures.save_png(target, pictures.segmented(
            image, prediction, config["classes"], config["palette"]))
        if masks:
            ids = np.array(config.get("stored_ids") or range(len(config["classes"])), np.uint8)
            predictions.write(masks / f"{name}.png", ids[prediction],
                              dict(zip(ids.tolist(), config["palette"], strict=False)))
        if len(found) == 1:
            print(pictures.shares(prediction, config["classes"]))
            print(f"picture: {target}")
    if len(broken) == len(found):
        raise UserError(f"--image {arguments.image}: no picture can be read: {broken[0]}")
    if len(found) > 1:
        print(f"{len(found) - len(broken)} pictures: {out}")
    if masks:
        print(f"class numbers of every pixel: {masks}")
    for line in broken:
        print(f"left out: {line}", file=sys.stderr)
