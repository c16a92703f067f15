"""The published systems' weight files as ours: `python -m cssr.convert FILE.pth --recipe R.yaml --out DIR`."""

from cssr.utils import interrupts

if __name__ == "__main__":  # before imports that take seconds
    interrupts.handle_signals()

import argparse
import sys
from pathlib import Path

from cssr.utils.cli import ExitingParser, exit_on_error, program


def parser() -> argparse.ArgumentParser:
    """The options; settings may be among them: `parse_intermixed_args`."""
    parser = ExitingParser(prog=program("python -m cssr.convert"), description=__doc__)
    parser.add_argument("file", type=Path, help="checkpoint of the authors (.pth)")
    parser.add_argument("--recipe", required=True, help="recipe with the model settings of the file")
    parser.add_argument("--out", type=Path, required=True, help="export directory to write")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that differ from the recipe's")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Command line: a published checkpoint to an export."""
    options = parser().parse_intermixed_args(arguments)
    # imported once the command line is read, as torch takes seconds
    from cssr.config.loading import load_config
    from cssr.degradations import DEGRADATIONS
    from cssr.models.export import assign_state
    from cssr.models.joint import build_model
    from cssr.models.published import convert_joint, read_published

    with exit_on_error():
        config = load_config(options.recipe, options.overrides)
        model = build_model(config.model)
        state = read_published(options.file)
        assign_state(model, convert_joint(state, model.config), str(options.file))
        degrade = DEGRADATIONS.build(config.degradation, scale=config.model.scale)
        facts = {"source": options.file.name, "imports": config.imports}
        model.save_pretrained(options.out, degradation=config.degradation, resampler=degrade.resampler, **facts)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(interrupts.run(main))
