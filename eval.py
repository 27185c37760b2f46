"""Score a trained network on a dataset, or segment one picture with it.

  python eval.py runs/pysa-tiny-shapes/best.pt                      mIoU table per class, pictures
  python eval.py runs/pysa-tiny-camvid --data PATH --split test     a run directory means its best.pt
  python eval.py CHECKPOINT --data PATH --protocol multiscale
  python eval.py CHECKPOINT --image photo.jpg                       a segmented copy of one picture
  python eval.py --paper psanet --official FILE --dataset ade20k --data PATH

Protocols: `whole` runs the network on the whole image; `sliding` on overlapping windows of the training crop,
averaging scores; `multiscale` averages the probabilities of windows over six scales and their mirror images.
Pictures go to the checkpoint's folder unless --out says otherwise.
"""

import argparse
from pathlib import Path

from train import Parser, build_model, load_paper, load_weights, papers, pick_device, positive

import datasets
from common import checkpoint, pictures
from common.errors import UserError, run
from common.inference import PROTOCOLS, evaluate, predict
from datasets.files import read_image
from datasets.folder import palette


def parse():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", type=Path, nargs="?", help="best.pt or last.pt of a run, or its directory")
    add("--official", type=Path, metavar="FILE", help="instead: a checkpoint of the official code; needs --paper")
    add("--paper", help=f"with --official, one of: {', '.join(papers())}")
    add("--dataset", help=f"one of: {', '.join(datasets.NAMES)} (default: the one it was trained on)")
    add("--data", type=Path, metavar="PATH", help="folder of the dataset")
    add("--split", choices=datasets.SPLITS, default="val")
    add("--protocol", choices=PROTOCOLS, default="whole")
    add("--crop-size", type=positive(int), help="window of sliding and multiscale (default: the training crop)")
    add("--scale", type=positive(float), help="resize images by this first (default: as in training's evaluation)")
    add("--image", type=Path, metavar="FILE", help="segment this picture instead of scoring a dataset")
    add("--device", help="cpu, cuda, mps (default: the best there is)")
    add("--out", type=Path, metavar="DIR", help="where pictures go")
    return parser.parse_args()


def load_network(arguments):
    """(model in evaluation mode, config, training crop, scale, folder for pictures) of a run or official file."""
    if (arguments.checkpoint is None) == (arguments.official is None):
        raise UserError("give either a CHECKPOINT of train.py or --official FILE with --paper NAME")
    if arguments.official:
        if arguments.paper is None:
            raise UserError(f"--official needs --paper, one of: {', '.join(papers())}")
        official = load_paper(arguments.paper, "official")
        state = load_weights(arguments.paper, arguments.official)
        try:
            build = official.build_arguments(state)
            state = official.convert(state)
        except (ValueError, AttributeError) as error:
            raise UserError(f"--official {arguments.official}: {error}") from None
        config = {"paper": arguments.paper, "preset": build.pop("preset"), "num_classes": build.pop("num_classes"),
                  "options": build, "dataset": arguments.dataset}
        crop, scale, out = 512, 1.0, Path("runs") / f"{arguments.paper}-official"
    else:
        run_state = checkpoint.load_run(arguments.checkpoint)
        config, state = run_state["config"], run_state["model"]
        crop, scale = run_state["recipe"]["crop_size"], run_state["recipe"]["test_scale"]
        if arguments.paper not in (None, config["paper"]):
            raise UserError(f"--paper {arguments.paper}: {arguments.checkpoint} holds {config['paper']}")
        out = arguments.checkpoint if arguments.checkpoint.is_dir() else arguments.checkpoint.parent
    model = build_model(config["paper"], config["preset"], config["num_classes"], config["options"])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"the weights do not fit {config['paper']}: {error}") from None
    return model.eval(), config, arguments.crop_size or crop, arguments.scale or scale, arguments.out or out


def segment(model, config, arguments, crop, scale, out, device):
    """Write a segmented copy of one picture."""
    image = read_image(arguments.image)
    classes = config.get("classes") or [f"class {number}" for number in range(config["num_classes"])]
    colours = [tuple(colour) for colour in config.get("palette") or palette(len(classes))]
    prediction = predict(model, image, arguments.protocol, crop, scale, device)
    seen = sorted(set(prediction.flatten().tolist()))
    picture = pictures.grid(
        ["image", "segmentation", "both"],
        [[image, pictures.colourise(prediction, colours), pictures.overlay(image, prediction, colours)]],
        [classes[number] for number in seen], [colours[number] for number in seen],
        height=max(160, min(480, image.shape[0])),
    )
    target = out / f"{arguments.image.stem}-segmented.png"
    pictures.save_png(target, picture)
    shares = [(float((prediction == number).mean()), classes[number]) for number in seen]
    print(", ".join(f"{name} {share:.0%}" for share, name in sorted(shares, reverse=True)))
    print(f"picture: {target}")


def main():
    arguments = parse()
    device = pick_device(arguments.device)
    model, config, crop, scale, out = load_network(arguments)
    model.to(device)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from None
    if arguments.image:
        segment(model, config, arguments, crop, scale, out, device)
        return
    name = arguments.dataset or config["dataset"]
    if name is None:
        raise UserError(f"--dataset: with --official say on which, one of: {', '.join(datasets.NAMES)}")
    dataset = datasets.load(name, arguments.data, arguments.split)
    if len(dataset.classes) != config["num_classes"]:
        raise UserError(
            f"--dataset {name} has {len(dataset.classes)} classes, the checkpoint was trained for {config['num_classes']}"
        )
    matrix, samples = evaluate(
        model, dataset, config["num_classes"], arguments.protocol, crop, scale, device, keep=4,
        description=arguments.split,
    )
    print(matrix.table(dataset.classes))
    target = out / f"{name}-{arguments.split}.png"
    pictures.save_png(target, pictures.predictions(samples, dataset.classes, dataset.palette))
    print(f"{len(dataset)} images, split {arguments.split}, protocol {arguments.protocol}   pictures: {target}")


if __name__ == "__main__":
    run(main)
