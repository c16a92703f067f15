"""The model card of an export: what it was trained on and how, its figures with their definitions, its limits.

All of it is read from the files of the run: `export/config.json`, `config.yaml`, `evaluations/*/results.json`. Of paths
only the last part is shown. huggingface_hub writes the metadata; its ModelCard is a template with fields that no run
has (developers, hardware, emissions), and would leave them as "[More Information Needed]".
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cssr import __version__
from cssr.utils.json_files import read_json
from cssr.utils.text import markdown_table

MEASURES = ("iou_max", "aiu", "f1", "ap", "ece", "cldice", "hd95_min", "psnr", "ssim", "kernel_psnr")
_RECIPE = ("model", "degradation", "loss", "phases", "optim", "imports")  # of config.yaml, shown as they are
_CITATION = """\
@inproceedings{kondo2021cssr,
  title     = {Crack Segmentation for Low-Resolution Images using Joint Learning with Super-Resolution},
  author    = {Kondo, Yuki and Ukita, Norimichi},
  booktitle = {International Conference on Machine Vision and Applications (MVA)},
  year      = {2021}
}

@article{kondo2024csbsr,
  title   = {Joint Learning of Blind Super-Resolution and Crack Segmentation for Realistic Degraded Images},
  author  = {Kondo, Yuki and Ukita, Norimichi},
  journal = {IEEE Transactions on Instrumentation and Measurement},
  year    = {2024}
}"""


def write_card(
    name: str, licence: str, export: Mapping[str, Any], run: Path | None = None, results: Iterable[Path] = ()
) -> str:
    """Text of a `README.md` for the Hugging Face Hub, metadata first.

    Args:
        name: `owner/name` under which the model will be there, or that of a model of the package.
        licence: of the weights, as the Hub names it (apache-2.0, cc-by-4.0, other, ...).
        export: the `config.json` of the export.
        run: run directory, for the recipe and the evaluations of these weights.
        results: further `results.json` files, or directories that hold some.
    """
    measured = evaluations(export, run, results)
    settings = run / "config.yaml" if run else None
    training = (yaml.safe_load(settings.read_text(encoding="utf-8")) if settings and settings.is_file() else None) or {}
    sections = {
        "Use": _use(name, export),
        "Training": _training(export, training),
        "Figures": _figures(measured),
        "Limits": _limits(export, training, measured),
        "Licence": _licence(licence, export),
        "Citation": f"```bibtex\n{_CITATION}\n```",
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{_metadata(name, licence, export, measured)}\n---\n\n# {name}\n\n{_summary(export)}\n\n{body}\n"


def evaluations(export: Mapping[str, Any], run: Path | None, results: Iterable[Path]) -> list[dict[str, Any]]:
    """Evaluations of the exported weights (by sha256), each set once.

    Raises: ValueError, one line, for a file of `results` that cannot be read or is of other weights.
    """
    extra = [file for path in results for file in _files(path)]
    own = sorted(run.glob("evaluations/*/results.json")) if run else []
    measured = {}
    for path in (*own, *extra):
        data = read_json(path, {"format": str, "metrics": {"image": dict}, "images": Any}, "evaluate again")
        if not data["format"].startswith("cssr-results-") or not data["metrics"]["image"]:
            raise ValueError(f"{path} is no results file of cssr, or damaged: evaluate again")
        same = (data.get("checkpoint_sha256") or {}).get("model.safetensors") in (None, export.get("sha256"))
        if same:
            measured[data["data"], data["images"], bool(data.get("tta"))] = data
        elif path in extra:
            raise ValueError(f"{path} is of other weights than this export: evaluate it again")
    return list(measured.values())


def _files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(path.rglob("results.json"))
    if not files:
        raise ValueError(f"--results: no results.json at {path}")
    return files


def segments(export: Mapping[str, Any]) -> bool:
    """True if the model segments cracks."""
    model = export["model"]
    return _name(model.get("seg")) != "none" or _name(model.get("form")) == "dsrl"


def _name(component: Any) -> str:
    return component if isinstance(component, str) else str((component or {}).get("name", "?"))


def _metadata(name: str, licence: str, export: Mapping[str, Any], measured: list[dict[str, Any]]) -> str:
    from huggingface_hub import ModelCardData

    tags = ["super-resolution", *(["crack-segmentation", "structural-inspection"] if segments(export) else [])]
    task = "image-segmentation" if segments(export) else "image-to-image"
    other = {"license_name": "see-card"} if licence == "other" else {}
    figures = [result for data in measured for result in _eval_results(data, task)]
    more = {"model_name": name.split("/")[-1], "eval_results": figures} if figures else {}
    data = ModelCardData(license=licence, library_name="cssr", pipeline_tag=task, tags=tags, **other, **more)
    return data.to_yaml().strip()


def _eval_results(data: Mapping[str, Any], task: str) -> list[Any]:
    from huggingface_hub import EvalResult

    values, label = data["metrics"]["image"], _set_name(data)
    return [
        EvalResult(
            task_type=task,
            dataset_type=label,
            dataset_name=f"{label} ({data['images']} images)",
            metric_type=measure,
            metric_name=f"{measure} (mean over images)",
            metric_value=round(values[measure], 4),
        )
        for measure in MEASURES
        if values.get(measure) is not None
    ]


def _set_name(data: Mapping[str, Any]) -> str:
    name = Path(str(data.get("data", "?"))).name or "?"
    return f"{name}, with test-time augmentation" if data.get("tta") else name


def _summary(export: Mapping[str, Any]) -> str:
    model = export["model"]
    parts = f"SR network `{_name(model.get('sr'))}`, segmentation network `{_name(model.get('seg'))}`"
    what = "`dsrl`, one network with two heads" if _name(model.get("form")) == "dsrl" else parts
    task = "enlarges a photograph and finds the cracks in it" if segments(export) else "enlarges photographs of cracks"
    if model.get("scale") == 1:
        return f"A model of cssr that finds the cracks in a photograph as it is, {parts}."
    blind = " It estimates the blur of the photograph as it goes." if _name(model.get("sr")) == "kbpn" else ""
    return f"A joint model of cssr that {task}: x{model.get('scale')} along each side, {what}.{blind}"


def _use(name: str, export: Mapping[str, Any]) -> str:
    mask = "result.sr, result.prob, result.mask(0.5)" if segments(export) else "result.sr"
    download = ", download=True" if "/" in name else ""  # a model of the package is there
    trust = ", trust=True" if export.get("imports") else ""
    lines = [
        "from cssr import JointModel",
        "from cssr.predict import predict",
        "",
        f'model = JointModel.from_pretrained("{name}"{download}{trust})',
        f'result = predict(model, "photograph.jpg")  # {mask}',
    ]
    imports = export.get("imports")
    note = f"\n\nIt needs these modules on the Python path, and imports them: {', '.join(imports)}." if imports else ""
    return "```python\n" + "\n".join(lines) + "\n```" + note


def _training(export: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    data, train = recipe.get("data") or {}, recipe.get("train") or {}
    facts = {
        "data": _set_names(data.get("train")),
        "validation": _set_names(data.get("val")),
        "crops": f"{data['crop']} x {data['crop']} HR pixels" if "crop" in data else None,
        "steps": export.get("step"),
        "samples": export.get("samples"),
        "batch": train.get("batch_size"),
        "seed": train.get("seed"),
        "started from": Path(train["init_from"]).name if train.get("init_from") else None,
        "converted from": export.get("source"),
        "weights": "averaged (EMA)" if export.get("averaged_weights") else None,
        "resampler": export.get("resampler"),
        "temperature": export["model"].get("temperature"),
        "cssr": f"{export.get('cssr_version', 'unknown')} wrote the weights, {__version__} this card",
    }
    table = markdown_table(["", ""], [[key, str(value)] for key, value in facts.items() if value is not None])
    shown = {key: recipe.get(key, export.get(key)) for key in _RECIPE}
    settings = yaml.safe_dump(without_paths({k: v for k, v in shown.items() if v}), sort_keys=False, width=100)
    return f"{table}\n\n```yaml\n{settings.strip()}\n```"


def _set_names(sets: Any) -> str | None:
    """Last parts of the paths of the shard sets."""
    if isinstance(sets, Mapping):
        return ", ".join(f"{Path(str(path)).name} (weight {weight})" for path, weight in sets.items())
    paths = sets if isinstance(sets, list) else [sets] if sets else []
    return ", ".join(Path(str(path)).name for path in paths) or None


def without_paths(value: Any) -> Any:
    """Settings without the folders of the machine that trained: of an absolute path only the last part stays."""
    if isinstance(value, Mapping):
        return {key: without_paths(v) for key, v in value.items()}
    if isinstance(value, list):
        return [without_paths(v) for v in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _figures(measured: list[dict[str, Any]]) -> str:
    if not measured:
        return "None yet: these weights have not been evaluated."
    measures = [m for m in MEASURES if any(data["metrics"]["image"].get(m) is not None for data in measured)]
    rows = [
        [_set_name(data), str(data["images"]), _name(data.get("degradation")), *_cells(data, measures)]
        for data in measured
    ]
    definitions = {key: text for data in measured for key, text in (data.get("definitions") or {}).items()}
    explained = "\n".join(f"- **{key}**: {definitions[key]}" for key in ("image", *measures) if key in definitions)
    table = markdown_table(["set", "images", "degradation", *measures], rows)
    return f"Mean over images; in brackets the 95 % interval.\n\n{table}\n\n{explained}"


def _cells(data: Mapping[str, Any], measures: Iterable[str]) -> list[str]:
    values, intervals = data["metrics"]["image"], (data.get("intervals") or {}).get("image") or {}
    return [_cell(values.get(measure), intervals.get(measure)) for measure in measures]


def _cell(value: float | None, interval: list[float | None] | None) -> str:
    if value is None:
        return ""
    known = interval and None not in interval
    return f"{value:.4g}" + (f" ({interval[0]:.4g} to {interval[1]:.4g})" if known else "")


def _limits(export: Mapping[str, Any], recipe: Mapping[str, Any], measured: list[dict[str, Any]]) -> str:
    degradation = _name(export.get("degradation") or {"name": "unknown"})
    trained = _set_names((recipe.get("data") or {}).get("train")) or "data that this export does not name"
    lines = [
        f"It has seen {trained}, degraded by `{degradation}`. On other surfaces, cameras, distances, blur, noise or "
        "compression it can miss cracks and find some that are none (joints, shadows, roots, wires).",
        "The super-resolved image is an estimate: details in it were not photographed. Look at the photograph itself "
        "before you judge a structure by it.",
        "The threshold of a mask (0.5 by default) is a choice; IoU_max above is at the set's own best threshold.",
    ]
    if not measured:
        lines.append("Its quality is unknown: evaluate it on your own data before use (`cssr/evaluate.py`).")
    if not segments(export):
        lines = [*lines[1:2], *lines[3:]]
    return "\n".join(f"- {line}" for line in lines)


def _licence(licence: str, export: Mapping[str, Any]) -> str:
    text = f"Weights: `{licence}`, as their publisher says. The code, cssr: Apache-2.0. "
    pretrained = (export["model"].get("seg") or {}).get("pretrained")
    if pretrained:
        text += "The encoder started from pretrained weights; their terms may apply. "
    return text + "So may those of the data that it was trained on."
