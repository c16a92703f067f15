"""Sizes of recipes: `python benchmarks/model_sizes.py [--markdown] [configs/X.yaml ...]`, all recipes by default.

Millions of parameters, by the group that phases weigh, and billions of multiply-accumulates (GMAC) of one forward pass
for an HR image of 224 x 224 pixels. They are counted, not timed: tensors have shapes only, nothing is computed.
Convolutions and products of matrices count, as `torch.utils.flop_counter` knows them; nothing else does.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from cssr.config.loading import load_config
from cssr.config.schema import ModelConfig
from cssr.models.joint import build_model
from cssr.utils.text import markdown_table

HR_SIDE = 224  # pixels
GROUPS = ("sr", "kernel", "seg", "encoder", "blur_skip")
HEADINGS = ("recipe", *GROUPS, "all, M", "GMAC")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", type=Path, help="YAML files; default: all of configs/")
    parser.add_argument("--markdown", action="store_true", help="print the table without blanks that align it")
    options = parser.parse_args(arguments)
    recipes = options.recipes or sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
    rows = [row(path.stem, *sizes(load_config(path).model)) for path in recipes]
    print(markdown_table(HEADINGS, rows, right=range(1, len(HEADINGS)), aligned=not options.markdown))


def sizes(config: ModelConfig, hr_side: int = HR_SIDE) -> tuple[dict[str, int], int]:
    """Parameters by group, and multiply-accumulates of a forward pass in evaluation mode for one image."""
    side = hr_side // config.scale
    with torch.device("meta"), torch.no_grad():
        model, counter = build_model(config).eval(), FlopCounterMode(display=False)
        with counter:  # not around the building, in which some encoders run
            model(torch.empty(1, 3, side, side))
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    groups = {group: sum(counts[name] for name in names) for group, names in model.groups().items()}
    return groups, counter.get_total_flops() // 2


def row(name: str, groups: dict[str, int], macs: int) -> tuple[str, ...]:
    """A line of the table; a group without parameters is left empty."""
    millions = [groups.get(group, 0) / 1e6 for group in GROUPS]
    return name, *(f"{m:.2f}" if m else "" for m in millions), f"{sum(millions):.2f}", f"{macs / 1e9:.1f}"


if __name__ == "__main__":
    main()
