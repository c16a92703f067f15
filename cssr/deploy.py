"""The joint model for other systems: `python -m cssr.deploy RUN_OR_EXPORT --format onnx torch_export --out DIR`.

`model.onnx` (opset 18) and `model.pt2` (torch.export) hold the whole joint model in float32, normalisation, padding and
the sigmoid included, for any number of images of any size of 8 pixels or more a side. Each is read back and compared
with PyTorch at several sizes before it stays. `model.json` beside them says what goes in and what comes out, and shows
an example with numpy and onnxruntime alone.
"""

from cssr.utils import interrupts

if __name__ == "__main__":  # before imports that take seconds
    interrupts.handle_signals()

import argparse
import sys
from pathlib import Path

from cssr.utils.cli import ExitingParser, exit_on_error, program, quick_imports

FORMATS = ("onnx", "torch_export")  # for other systems


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = ExitingParser(prog=program("python -m cssr.deploy"), description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", type=Path, help="run, export, model of the package (small-x4), or owner/name in the Hub's cache")
    add("--format", nargs="+", choices=FORMATS, default=["onnx"], help="onnx (default), or both")
    add("--out", type=Path, required=True, help="directory to write to")
    add("--checkpoint", default="export", help="of a run: export (default), best, last, or a step")
    add("--tolerance", type=float, default=1e-3, help="largest difference from PyTorch with which a file stays "
        "(%(default)s, of values of 0..1: a quarter of a step of 8 bits)")  # fmt: skip
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = parser().parse_args(arguments)
    with quick_imports():  # once the command line is read, as torch takes seconds
        from cssr.models.deployment import check_onnx, deploy
        from cssr.models.load import load_model

    with exit_on_error():
        if "onnx" in options.format:
            check_onnx()
        if not options.tolerance > 0:
            raise ValueError(f"--tolerance must be above 0, got {options.tolerance}")
        model = load_model(options.model, options.checkpoint)
        facts = deploy(model, list(dict.fromkeys(options.format)), options.out, options.tolerance)
    for entry in facts["files"]:
        differences = ", ".join(f"{name} {value:.1e}" for name, value in entry["largest_difference"].items())
        print(f"{options.out / entry['file']}: largest difference from PyTorch {differences}")
    print(f"{options.out / 'model.json'}: what goes in and comes out, with an example")


if __name__ == "__main__":
    sys.exit(interrupts.run(main))
