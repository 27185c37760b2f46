"""Score a trained network on a dataset, or segment one picture with it.

  python eval.py runs/pysa-tiny-shapes/best.pt                      mIoU table per class, pictures
  python eval.py runs/pysa-tiny-camvid --data PATH --split test     a run directory means its best.pt
  python eval.py CHECKPOINT --data PATH --protocol multiscale
  python eval.py CHECKPOINT --image photo.jpg                       a segmented copy of one picture
  python eval.py CHECKPOINT --attention 40,100                      what the network looks at from one pixel
  python eval.py --paper psanet --official FILE --dataset ade20k --data PATH

Protocols: `whole` runs the network on the whole image; `sliding` on overlapping windows of the training crop,
averaging scores; `multiscale` averages the probabilities of windows over six scales and their mirror images; `paper` is
what the paper itself did on this dataset, PROTOCOLS in its recipe.py (PSANet: --scales 0.5,0.75,1,1.25,1.5,1.75
for its multi-scale numbers). Pictures go to the checkpoint's folder unless --out says otherwise.
"""

import argparse
import dataclasses
from pathlib import Path

from train import (
    Parser, build_model, load_paper, load_recipe, load_weights, papers, parse_options, pick_device, positive,
)

import datasets
from common import attention, checkpoint, pictures
from common.errors import UserError, run
from common.inference import PROTOCOLS, evaluate, predict
from common.training import Recipe
from datasets.files import read_image
from datasets.folder import palette


def parse():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", type=Path, nargs="?", help="best.pt or last.pt of a run, or its directory")
    add("--official", type=Path, metavar="FILE", help="instead: a checkpoint of the official code; needs --paper")
    add("--paper", help=f"with --official, one of: {', '.join(papers())}")
    add("--preset", help="with --official: refuse the file if it is not of this size")
    add("--set", action="append", default=[], metavar="OPTION=VALUE",
        help="with --official: an option that the file does not tell, such as psa_type=distribute")
    add("--dataset", help=f"one of: {', '.join(datasets.NAMES)} (default: the one it was trained on)")
    add("--data", type=Path, metavar="PATH", help="folder of the dataset")
    add("--split", choices=datasets.SPLITS, default="val")
    add("--protocol", choices=(*PROTOCOLS, "paper"), default="whole")
    add("--crop-size", type=positive(int), help="window of sliding and multiscale (default: the training crop)")
    add("--scales", type=factors, metavar="A,B,...", help="sizes of the image to average over (default: the protocol's)")
    add("--save-predictions", type=Path, nargs="?", const=True, metavar="DIR",
        help="write every prediction as a PNG in the dataset's own ids (default: predictions/ beside the pictures)")
    add("--image", type=Path, metavar="FILE", help="segment this picture instead of scoring a dataset")
    add("--attention", metavar="ROW,COL", help="draw what decides about this pixel of the first image, or of --image")
    add("--device", help="cpu, cuda, mps (default: the best there is)")
    add("--out", type=Path, metavar="DIR", help="where pictures go")
    return parser.parse_args()


def factors(text):
    """An argparse type: "0.5,1" -> (0.5, 1.0)."""
    return tuple(positive(float)(part) for part in text.split(","))


factors.__name__ = "list of positive numbers"  # what argparse calls it when it complains


def choose_protocol(arguments, config, recipe):
    """The Protocol that the flags ask for. Raises UserError if the paper has none for the dataset.

    recipe: how the network was trained: the crop is the default window, and images are seen at the same scale.
    """
    name = arguments.dataset or config["dataset"]
    if arguments.protocol == "paper":
        known = getattr(load_paper(config["paper"], "recipe"), "PROTOCOLS", {})
        protocol = known.get(f"{name}_{config['preset']}") or known.get(name)
        if protocol is None:
            raise UserError(f"--protocol paper: none is known for {config['paper']} on {name or 'one picture'}; "
                            f"--dataset with one: {', '.join(known) or 'none'}")
        crop = arguments.crop_size or protocol.crop
    else:
        protocol = PROTOCOLS[arguments.protocol]
        crop = protocol.crop and (arguments.crop_size or recipe.crop_size)
        protocol = dataclasses.replace(protocol, scales=tuple(s * recipe.test_scale for s in protocol.scales))
    return dataclasses.replace(protocol, crop=crop, scales=arguments.scales or protocol.scales)


def load_network(arguments):
    """(model in evaluation mode, config, Protocol, folder for pictures) of a run or official file."""
    if (arguments.checkpoint is None) == (arguments.official is None):
        raise UserError("give either a CHECKPOINT of train.py or --official FILE with --paper NAME")
    if arguments.official:
        if arguments.paper is None:
            raise UserError(f"--official needs --paper, one of: {', '.join(papers())}")
        official = load_paper(arguments.paper, "official")
        state = load_weights(arguments.paper, arguments.official)
        try:
            options = parse_options(arguments.set)
            build = official.build_arguments(state, **options)
            state = official.convert(state, **options)
        except (ValueError, AttributeError) as error:
            raise UserError(f"--official {arguments.official}: {error}") from None
        if arguments.preset not in (None, build["preset"]):
            raise UserError(f"--preset {arguments.preset}: {arguments.official} holds {build['preset']}")
        config = {"paper": arguments.paper, "preset": build.pop("preset"), "num_classes": build.pop("num_classes"),
                  "options": build, "dataset": arguments.dataset}
        recipe = load_recipe(arguments.paper, arguments.dataset, config["preset"])
        out = Path("runs") / f"{arguments.paper}-official"
    else:
        run_state = checkpoint.load_run(arguments.checkpoint)
        config, state = run_state["config"], run_state["model"]
        known = {field.name for field in dataclasses.fields(Recipe)}
        recipe = Recipe(**{name: value for name, value in run_state["recipe"].items() if name in known})
        for flag in ("preset", "set"):
            if getattr(arguments, flag):
                raise UserError(f"--{flag} goes with --official; {arguments.checkpoint} says itself what it holds")
        if arguments.paper not in (None, config["paper"]):
            raise UserError(f"--paper {arguments.paper}: {arguments.checkpoint} holds {config['paper']}")
        out = arguments.checkpoint if arguments.checkpoint.is_dir() else arguments.checkpoint.parent
    model = build_model(config["paper"], config["preset"], config["num_classes"], config["options"])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"the weights do not fit {config['paper']}: {error}") from None
    return model.eval(), config, choose_protocol(arguments, config, recipe), arguments.out or out


def names_and_colours(config):
    """Of the classes of a network; made up where an official file does not tell them."""
    classes = config.get("classes") or [f"class {number}" for number in range(config["num_classes"])]
    return classes, [tuple(colour) for colour in config.get("palette") or palette(len(classes))]


def make_folder(path, flag):
    """The folder `path`, made if need be. Raises UserError that names the flag."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}") from None
    return path


def segment(model, config, arguments, protocol, out, device):
    """Write a segmented copy of one picture."""
    image = read_image(arguments.image)
    classes, colours = names_and_colours(config)
    prediction = predict(model, image, protocol, device)
    seen = sorted(set(prediction.flatten().tolist()))
    picture = pictures.grid(
        ["image", "segmentation", "both"],
        [[image, pictures.colourise(prediction, colours), pictures.overlay(image, prediction, colours)]],
        [classes[number] for number in seen], [colours[number] for number in seen],
        height=max(160, min(480, image.shape[0])),
    )
    target = make_folder(out, "--out") / f"{arguments.image.stem}-segmented.png"
    pictures.save_png(target, picture)
    shares = [(float((prediction == number).mean()), classes[number]) for number in seen]
    print(", ".join(f"{name} {share:.0%}" for share, name in sorted(shares, reverse=True)))
    print(f"picture: {target}")


def look(model, config, arguments, protocol, out, device):
    """Write a picture of what the network looks at when it decides about one pixel."""
    if arguments.protocol != "whole" or len(protocol.scales) > 1:
        raise UserError("--attention shows one pass over the whole image: --protocol whole, at most one of --scales")
    if arguments.image:
        image, name = read_image(arguments.image), arguments.image.stem
    else:
        if (arguments.dataset or config["dataset"]) is None:
            raise UserError("--attention: with --official say of which picture, --image FILE or --dataset NAME")
        dataset = datasets.load(arguments.dataset or config["dataset"], arguments.data, arguments.split)
        image, name = dataset[0][0], dataset.sample_name(0)
    row, column = pixel = attention.parse_pixel(arguments.attention, image.shape)
    try:
        explain = load_paper(config["paper"], "explain")
    except ModuleNotFoundError:
        raise UserError(f"--attention: papers/{config['paper']} has no explain.py") from None
    scale = protocol.scales[0]
    if not arguments.scales and max(image.shape) * scale > attention.LONGEST:
        scale = attention.LONGEST / max(image.shape)
        print(f"the network sees the image at {scale:.0%} of its size, {attention.LONGEST} pixels long (or: --scales)")
    prediction, panels = attention.look(model, explain, image, pixel, scale, device)
    heading = f"What {config['paper']} {config['preset']} looks at from row {row}, column {column} of {name}."
    target = make_folder(out, "--out") / f"{name}-attention-{row}-{column}.png"
    pictures.save_png(target, attention.picture(image, pixel, prediction, panels, *names_and_colours(config), heading))
    print(f"picture: {target}")


def score(model, config, arguments, protocol, out, device):
    """Print the scores on a dataset, and write pictures of four predictions."""
    name = arguments.dataset or config["dataset"]
    if name is None:
        raise UserError(f"--dataset: with --official say on which, one of: {', '.join(datasets.NAMES)}")
    dataset = datasets.load(name, arguments.data, arguments.split)
    if len(dataset.classes) != config["num_classes"]:
        raise UserError(
            f"--dataset {name} has {len(dataset.classes)} classes, the checkpoint was trained for {config['num_classes']}"
        )
    make_folder(out, "--out")
    save_to = out / "predictions" if arguments.save_predictions is True else arguments.save_predictions
    if save_to:
        make_folder(save_to, "--save-predictions")
    matrix, samples = evaluate(
        model, dataset, config["num_classes"], protocol, device, keep=4, description=arguments.split, save_to=save_to
    )
    print(matrix.table(dataset.classes))
    target = out / f"{name}-{arguments.split}.png"
    pictures.save_png(target, pictures.predictions(samples, dataset.classes, dataset.palette))
    print(f"{len(dataset)} images, split {arguments.split}, protocol {arguments.protocol}   pictures: {target}")


def main():
    arguments = parse()
    device = pick_device(arguments.device)
    model, config, protocol, out = load_network(arguments)
    model.to(device)
    action = look if arguments.attention else segment if arguments.image else score
    try:
        action(model, config, arguments, protocol, out, device)
    except ValueError as error:  # a network that knows one image size only says so
        raise UserError(str(error)) from None


if __name__ == "__main__":
    run(main)
