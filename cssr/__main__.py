"""`cssr COMMAND ...`: the toolkit's scripts under one name, wherever the package is installed.

`cssr train` and `cssr evaluate` are one process; on several: `accelerate launch ... -m cssr.train`.
"""

from cssr.utils import interrupts

if __name__ == "__main__":  # before imports that take seconds
    interrupts.handle_signals()

import importlib
import sys

COMMANDS = {  # name: module, its function, one line
    "train": ("cssr.train", "main", "train by a recipe: cssr train configs/tiny.yaml data.train=DIR ..."),
    "evaluate": ("cssr.evaluate", "main", "measure a model on a shard set"),
    "predict": ("cssr.predict", "main", "find cracks in photographs"),
    "measure": ("cssr.measure", "main", "measure the cracks of masks"),
    "annotate": ("cssr.annotate", "main", "predicted cracks as annotations to correct; what to label first"),
    "compare": ("cssr.compare", "main", "what has become of each crack between two surveys"),
    "report": ("cssr.report.__main__", "main", "results side by side: HTML, Markdown, LaTeX, CSV"),
    "demo": ("cssr.demo.__main__", "main", "a page to try a model"),
    "shard": ("cssr.dataset_preparation.make", "main", "datasets on disk to shards (shards/make_shards.py)"),
    "benchmark": ("cssr.dataset_preparation.make_benchmark", "main", "freeze a benchmark (shards/make_benchmark.py)"),
    "doctor": ("cssr.dataset_preparation.audit.run", "main", "what is wrong with a dataset (shards/doctor.py)"),
    "show": ("cssr.dataset_preparation.show", "main", "what shards hold (shards/show.py)"),
    "extract": ("cssr.dataset_preparation.extract", "main", "photographs out of shards (shards/extract.py)"),
    "evaluations": ("cssr.launch.options", "evaluate", "many models on many benchmarks (launch/evaluate.py)"),
    "sweep": ("cssr.launch.options", "sweep", "train over a grid of settings (launch/sweep.py)"),
    "launch-doctor": ("cssr.launch.doctor", "main", "what a launch file would run here (launch/doctor.py)"),
    "convert": ("cssr.convert", "main", "the authors' weight files to exports"),
    "deploy": ("cssr.deploy", "main", "a model as ONNX or torch.export"),
    "hub": ("cssr.hub", "main", "models to and from the Hugging Face Hub"),
    "recipes": ("cssr.config.recipes", "main", "list the recipes and launch files, or copy them to a folder"),
}


def main() -> int | None:
    """Command line. Returns the exit status of the command."""
    name, arguments = next(iter(sys.argv[1:]), "--help"), sys.argv[2:]
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {command:{width}}  {text}" for command, (_, _, text) in COMMANDS.items()]
        print(__doc__, "\n".join(lines), "\n`cssr COMMAND --help` lists the options of each.", sep="\n")
        return 0
    if name not in COMMANDS:
        from cssr.config.registry import did_you_mean

        print(f"error: unknown command {name!r}{did_you_mean(name, COMMANDS)}; see `cssr --help`", file=sys.stderr)
        return 2
    module, function, _ = COMMANDS[name]
    sys.argv = [f"cssr {name}", *arguments]
    return getattr(importlib.import_module(module), function)()


def console() -> int:
    """The installed command."""
    interrupts.handle_signals()
    return interrupts.run(main)


if __name__ == "__main__":
    sys.exit(console())
