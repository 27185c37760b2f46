"""Score a trained network on a dataset, or segment one picture with it.

  python eval.py runs/pysa-tiny-shapes/best.pt                    IoU per class, pictures, a CSV
  python eval.py runs/pysa-tiny-camvid --data PATH --split test   a folder means its best.pt
  python eval.py CHECKPOINT --data PATH --protocol multiscale
  python eval.py CHECKPOINT --image photo.jpg                     a segmented copy; FOLDER: of all
  python eval.py CHECKPOINT --attention 40,100                    what decides about one pixel
  python eval.py CHECKPOINT --explore                             the same for every pixel
  python eval.py --paper psanet --official FILE --dataset ade20k --data PATH

Protocols: `whole` runs the network on the whole image; `sliding` on overlapping windows of the
training crop, averaging scores; `multiscale` averages the probabilities of windows over six scales
and their mirror images; `paper` is what the paper itself did on this dataset, PROTOCOLS in its
recipe.py (PSANet: --scales 0.5,0.75,1,1.25,1.5,1.75 for several). Pictures lie beside the run.
"""

import dataclasses
import os
import signal
from pathlib import Path

if __name__ == "__main__" and callable(signal.getsignal(signal.SIGINT)):
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C during the imports

import torch

import datasets
from common import cli
from common.errors import UserError, run
from common.guard import name_the_image
from common.inference import PROTOCOLS, evaluate
from datasets import memory, pictures, predictions
from datasets.files import make_folder, read_image
from datasets.folder import palette
from datasets.segment import pictures_in, segment
from learn.page import explore
from papers import attention, describe, weights
from papers.options import factors, positive
from papers.settings import check_eval


def parse():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, nargs="?", help="best.pt or last.pt of a run, or its directory")
    add("--official", type=Path, metavar="FILE",
        help="instead: a checkpoint of the official code; needs --paper")
    add("--paper", help=f"with --official, one of: {', '.join(cli.papers())}")
    add("--preset", help="with --official: refuse the file if it is not of this size")
    add("--set", action="append", default=[], metavar="OPTION=VALUE", help="with --official: an "
        "option that the file does not tell, such as psa_type=distribute")
    add("--dataset", help=f"one of: {', '.join(datasets.NAMES)} (default: that of the training)")
    add("--data", type=Path, metavar="PATH", help="folder of the dataset")
    add("--split", choices=datasets.SPLITS, help="default: val")
    add("--protocol", choices=(*PROTOCOLS, "paper"), help="default: whole")
    add("--crop-size", type=positive(int),
        help="window of sliding and multiscale (default: the training crop)")
    add("--scales", type=factors, metavar="A,B,...", help="sizes of the image to average over")
    add("--save-predictions", type=Path, nargs="?", const=True, metavar="DIR", help="write every "
        "prediction as a PNG in the dataset's own ids (default: predictions/ beside the pictures)")
    add("--image", type=Path, metavar="FILE",
        help="segment this picture, or all in this folder, instead of a dataset")
    add("--summary", action="store_true", help="only list the layers, with shapes and costs")
    add("--attention", metavar="ROW,COL",
        help="draw what decides about this pixel of the first image, or of --image")
    add("--explore", action="store_true", help="the same for all its pixels, as a page")
    add("--device", help="cpu, cuda, mps (default: the best there is)")
    add("--out", type=Path, metavar="DIR", help="where pictures go")
    return check_eval(parser.parse_args())


def choose_protocol(arguments, config, recipe):
    """The Protocol that the flags ask for. Raises UserError if the paper has none for the dataset.

    recipe: of the training, whose crop is the default window, and whose scale that of images.
    """
    name = arguments.dataset or config["dataset"]
    if arguments.protocol == "paper":
        known = getattr(cli.load_paper(config["paper"], "recipe"), "PROTOCOLS", {})
        protocol = known.get(f"{name}_{config['preset']}") or known.get(name)
        if protocol is None:
            raise UserError(f"--protocol paper: none is known for {config['paper']} on "
                            f"{name or 'one picture'}; --dataset with one: "
                            + (", ".join(known) or "none"))
        if arguments.crop_size and not protocol.crop:
            raise UserError(f"--crop-size: {config['paper']} has no windows on {name}")
        crop, scales = arguments.crop_size or protocol.crop, protocol.scales
    else:
        protocol = PROTOCOLS[arguments.protocol]
        crop = protocol.crop and (arguments.crop_size or recipe.crop_size)
        scales = tuple(scale * recipe.test_scale for scale in protocol.scales)
    return dataclasses.replace(protocol, crop=crop, scales=arguments.scales or scales)


def attend(model, config, arguments, protocol, out, device):
    """Write a picture of what the network looks at when it decides about one pixel."""
    if arguments.protocol != "whole" or len(protocol.scales) > 1:
        raise UserError("--attention shows one pass over the whole image: --protocol whole, at "
                        "most one of --scales")
    if arguments.image:
        image, name = read_image(arguments.image, upright=True), [*pictures_in(arguments.image)][0]
    else:
        dataset = named_dataset(arguments, config, out)
        image, name = dataset[0][0], dataset.sample_name(0)
    row, column = pixel = attention.parse_pixel(arguments.attention, image.shape)
    explain, scale = attention.explanation(config["paper"]), protocol.scales[0]
    scale = scale if arguments.scales else attention.fitting_scale(image, scale)
    prediction, panels = attention.look(model, explain, image, pixel, scale, device)
    heading = f"What {config['paper']} looks at from row {row}, column {column} of {name}."
    target = predictions.check_free(make_folder(out) / f"{name}-attention-{row}-{column}.png")
    pictures.save_png(target, pictures.attention_page(
        image, pixel, prediction, panels, config["classes"], config["palette"], heading))
    print(f"picture: {target}")


def named_dataset(arguments, config, out):
    """The dataset that the flags name, or that the network was trained on, if `out` is no folder
    of it."""
    name = arguments.dataset or config["dataset"]
    if name is None:
        raise UserError("--dataset: with --official say of which picture, --image FILE, or on "
                        f"which dataset, one of: {', '.join(datasets.NAMES)}")
    datasets.refuse_folder(name, arguments.data)
    dataset = datasets.load(name, arguments.data, arguments.split)
    predictions.keep_out(dataset, arguments.data, out, "--out")
    return dataset


def score(model, config, arguments, protocol, out, device):
    """Print the scores on a dataset, and write pictures of four predictions."""
    name, dataset = arguments.dataset or config["dataset"], named_dataset(arguments, config, out)
    here, count = list(dataset.classes), config["num_classes"]
    known = config.get("classes", here) if arguments.checkpoint else here
    if len(here) != count:
        raise UserError(f"--dataset {name} has {len(here)} classes, the checkpoint was trained "
                        f"for {count}")
    if here != known:
        raise UserError(f"--dataset {name} has other classes, {', '.join(here)[:99]}; the "
                        f"checkpoint was trained for {', '.join(known)[:99]}")
    memory.check_memory(dataset[0][1].shape, count, protocol, device, dataset.sample_name(0))
    folder = arguments.save_predictions
    folder = out / "predictions" if folder is True else folder
    save = predictions.writer(dataset, folder, arguments.data) if folder else None
    target = predictions.check_free(make_folder(out) / f"{name}-{arguments.split}.png")
    table = predictions.check_free(target.with_suffix(".csv"))
    matrix, samples = evaluate(model, dataset, count, protocol, device, keep=4,
                               description=arguments.split, save=save)
    print(f"{matrix.table(dataset.classes)}\nmIoU {matrix.miou:.1%}")
    pictures.save_png(target, pictures.predictions(samples, dataset.classes, dataset.palette))
    predictions.write_scores(table, dataset.classes, matrix.iou)
    print(f"{len(dataset)} images, split {arguments.split}, protocol {arguments.protocol}   "
          f"pictures: {target}   table: {table}")


def main():
    arguments = parse()
    device = cli.pick_device(arguments.device)
    model, config, recipe, out = weights.load_network(
        arguments.checkpoint, arguments.official, arguments.paper, arguments.preset, arguments.set,
        arguments.dataset)
    model.to(device, memory_format=torch.channels_last)  # as in training: faster
    if arguments.summary:
        side = arguments.crop_size or recipe.crop_size
        return describe.print_summary(model.to("meta"), config, side)
    if not config.get("classes"):  # official files do not tell them
        config["classes"] = [f"class {number}" for number in range(config["num_classes"])]
        config["palette"] = palette(config["num_classes"])
    own = not (arguments.image or arguments.data) and weights.own_data(out)
    if own and arguments.dataset in (None, config["dataset"]):
        print(f"data: {own}, those of the training")
        arguments.data = own
    protocol, out = choose_protocol(arguments, config, recipe), arguments.out or out
    action = (explore if arguments.explore else attend if arguments.attention
              else segment if arguments.image else score)
    with name_the_image(place=""):  # a network that knows one image size only says so
        action(model, config, arguments, protocol, out, device)


if __name__ == "__main__":
    run(main)
