"""python -m papers.unept.evidence.cost: multiply-adds of the networks, by part; no timing.

Time and memory beside the official form: python -m tests.bench unept.
"""

import torch

from papers.describe import multiply_adds_in

from .. import model


def main():
    for preset, size in (("resnet50", 480), ("deit", 480), ("deit_cityscapes", 768), ("tiny", 128)):
        with torch.device("meta"):
            network, image = model.build(150, preset).eval(), torch.zeros(1, 3, size, size)
        with torch.no_grad():
            total, modules = multiply_adds_in(lambda network=network, image=image: network(image))
        parts = []
        for child, module in network.named_children():
            lists = isinstance(module, torch.nn.ModuleList)
            inside = [f"{child}.{i}" for i in range(len(module))] if lists else [child]
            part = sum(modules.get(f"UNEPT.{name}", 0) for name in inside)
            parts.append(f"{child} {part / 1e9:.2f}")
        print(f"{preset} {size}x{size}: {total / 1e9:.1f} G  ({', '.join(parts)})")


if __name__ == "__main__":
    main()
