"""Compose `results.json` from the rows of an evaluation, and read it for reports."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cssr import __version__
from cssr.evaluation import metrics
from cssr.evaluation.aggregate import aggregate, breakdown, has_segmentation, intervals, iou_curve, set_histogram
from cssr.evaluation.calibration import fit_temperature, reliability
from cssr.evaluation.definitions import DEFINITIONS, SEGMENTATION_KEYS
from cssr.utils.files import free_name, safe_name
from cssr.utils.json_files import misfit, read_json

RESULTS_FORMAT = "cssr-results-1"
_MEASURES = dict[str, float | None]
_COMPONENT = str | dict[str, Any] | None
_SHAPE = {  # as far as reports read it
    **{"name": str | int | float, "data": str, "images": int, "definitions": dict[str, str]},
    "metrics": {"image": _MEASURES, "pooled": _MEASURES},
    "curves": dict[str, list[float | None]] | None,
    "?intervals": dict[str, dict[str, list[float] | None] | None] | None,
    "?groups": dict[str, dict[str, dict[str, Any]] | None] | None,
    "?calibration": dict[str, Any] | None,
    "?per_image": list[dict[str, Any]] | None,
    "?model_settings": dict[str, Any] | None,
    "?degradation": _COMPONENT,
}
_BOTH = {"iou_max": float | None, "iou_max_threshold": float | None}
_PART = {"images": int, "?iou": float | None, "image": _MEASURES, "pooled": _MEASURES}  # of groups
_ROW = {"key": str, "pixels": int}  # of per_image
_CURVES = ("thresholds", "image_iou", "pooled_iou")  # where segmentation is measured
_BINS = dict.fromkeys(("prob", "crack", "pixels"), list[float | None])
_NO_SEGMENTATION = "not measured (null): the model finds no cracks (model.seg=none), or the images have no masks"


def compose(rows: list[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """Content of `results.json`: facts, measures, their intervals, those of parts of the set, and the definitions of
    all, curves, and each image; infinite is null.

    Without segmentation (rows without counts), its measures and `curves` are null, and a definition says so.
    """
    aggregated, segmented = aggregate(rows), has_segmentation(rows)
    images = [{name: value for name, value in row.items() if name != "histogram"} for row in rows]
    return _finite(
        {
            "format": RESULTS_FORMAT,
            "cssr_version": __version__,
            **facts,
            "images": len(rows),
            "metrics": aggregated,
            "intervals": intervals(rows),
            "groups": breakdown(rows, aggregated["image"]["iou_max_threshold"]),
            "definitions": _definitions(segmented),
            "curves": iou_curve(rows) if segmented else None,
            "calibration": _calibration(rows, facts),
            "per_image": _with_iou(images, aggregated["image"]["iou_max_threshold"]) if segmented else images,
        }
    )


def _calibration(rows: list[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any] | None:
    """The temperature that fits, and the reliability curve; None where rows have no histograms of logits."""
    histogram = set_histogram(rows)
    if histogram is None:
        return None
    temperature = facts["model_settings"].get("temperature", 1.0) * fit_temperature(histogram)
    curve = {name: values.tolist() for name, values in reliability(histogram)._asdict().items()}
    return {"temperature": temperature, "reliability": {**curve, "pixels": [int(n) for n in curve["pixels"]]}}


def _definitions(segmented: bool) -> dict[str, str]:
    if segmented:
        definition = "IoU of the image at the threshold of metrics.image.iou_max_threshold"
        return DEFINITIONS | {"per_image.iou": definition}
    dropped = (*SEGMENTATION_KEYS, "thresholds", "calibration.temperature", "calibration.reliability")
    others = {key: text for key, text in DEFINITIONS.items() if key not in dropped}
    return others | {"segmentation": _NO_SEGMENTATION}


def _with_iou(rows: list[dict[str, Any]], threshold: float) -> list[dict[str, Any]]:
    """The rows with the IoU at a threshold behind the key."""
    best = int((metrics.THRESHOLDS - threshold).abs().argmin())
    ious = [float(metrics.iou(row["tp"], row["fp"], row["fn"])[best]) for row in rows]
    return [{"key": row["key"], "iou": iou, **{k: row[k] for k in row if k != "key"}} for row, iou in zip(rows, ious)]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Result:
    """A `results.json`: its path and content, and its name and directory in a report."""

    path: Path
    data: dict[str, Any]
    name: str = ""
    slug: str = ""

    @property
    def bound(self) -> bool:
        """Return whether it is an HR upper bound: segmentation of the HR image itself."""
        return component_name(self.data, "sr") == "none"

    @property
    def segmented(self) -> bool:
        """Return whether segmentation was measured."""
        return self.data["metrics"]["image"]["iou_max"] is not None

    def of_same_images(self, other: "Result") -> bool:
        """Return whether both are of one set: by the sets' hash, else by the images' names, sizes, crack pixels."""
        hashes = [result.data.get("data_sha256") for result in (self, other)]
        if all(hashes) and hashes[0] == hashes[1]:
            return True
        sets = [result.data.get("per_image") for result in (self, other)]
        counted = all("tp" in row for rows in sets for row in rows or ())
        first, second = (
            {(r["key"], r["pixels"], r["tp"][0] + r["fn"][0] if counted else None) for r in rows or ()} for rows in sets
        )
        return not all(sets) or first == second

    def interval(self, aggregation: str, measure: str) -> list[float] | None:
        """[low, high]; None where the file has none: of an older version, or of a single image."""
        return ((self.data.get("intervals") or {}).get(aggregation) or {}).get(measure)

    def numbers(self, aggregation: str, base: "Result | None" = None) -> dict[str, float | None]:
        """The measures of an aggregation ("image" or "pooled"), and the IoU_max as a share of base's, in percent.

        Of other images than base's there is no share.
        """
        values = self.data["metrics"][aggregation]
        reference = base.data["metrics"][aggregation]["iou_max"] if base and self.of_same_images(base) else None
        return {**values, "share": 100 * values["iou_max"] / reference if reference and self.segmented else None}


def component_name(data: dict[str, Any], part: str) -> str:
    component = (data.get("model_settings") or {}).get(part) or "-"
    return component if isinstance(component, str) else component.get("name", "-")


def load(paths: Iterable[str | Path]) -> list[Result]:
    """The results at `paths` (files, or directories that hold some), each file once, under names that differ.

    Raises: ValueError, one line, for what is missing, damaged or of another format.
    """
    files = {os.path.realpath(file): file for path in paths for file in _files(Path(path))}
    return _named([Result(file, _read(file)) for file in files.values()])


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    direct = path / "results.json"
    files = [direct] if direct.is_file() else sorted(path.glob("evaluations/*/results.json"))
    if not files:
        raise ValueError(f"no results in {path}: neither results.json nor evaluations/*/results.json; evaluate first")
    return files


def _read(path: Path) -> dict[str, Any]:
    data = read_json(path, remedy="evaluate again")
    version = data.get("format") if isinstance(data, dict) else None
    if version != RESULTS_FORMAT:
        raise ValueError(f"{path} is not a results file: its format is {version!r}, expected {RESULTS_FORMAT!r}")
    fault = next(filter(None, _faults(Result(path, data))), None)
    if fault:
        raise ValueError(f"{path} is damaged, evaluate again: {fault}")
    return data


def _faults(result: Result) -> Iterator[str | None]:
    """Faults of the content of a file, the first that is not None first: later checks rely on earlier ones."""
    data = result.data
    yield misfit(data, _SHAPE)
    yield misfit(data["metrics"], {"image": _BOTH, "pooled": _BOTH}, "metrics")
    yield misfit(data.get("model_settings") or {}, {"?sr": _COMPONENT, "?seg": _COMPONENT}, "model_settings")
    if result.segmented:
        yield misfit(data["curves"], dict.fromkeys(_CURVES, list[float]), "curves")
        lengths = {len(data["curves"][name]) for name in _CURVES}
        yield "curves have no points, or not all as many" if len(lengths) > 1 or 0 in lengths else None
    for kind, parts in (data.get("groups") or {}).items():
        yield from (misfit(part, _PART, f"groups.{kind}.{name}") for name, part in (parts or {}).items())
    yield from (misfit(row, _ROW, f"per_image[{number}]") for number, row in enumerate(data.get("per_image") or ()))
    if calibration := data.get("calibration"):
        yield misfit(calibration, {"temperature": float, "reliability": _BINS}, "calibration")


def _named(results: Sequence[Result]) -> list[Result]:
    """Results with names that differ: equal ones get their data, or else their path, added."""
    named: list[Result] = []
    for result in results:
        namesakes = [other for other in results if other.data["name"] == result.data["name"]]
        choices = zip(*map(_labels, namesakes))
        shortest = next(i for i, labels in enumerate(choices) if len(set(labels)) == len(namesakes))
        name = _labels(result)[shortest]
        slug = free_name(safe_name(name.lower(), empty="result")[:80], [other.slug for other in named])
        named.append(Result(result.path, result.data, name, slug))
    return named


def _labels(result: Result) -> list[str]:
    """Names that a result may have, shortest first; the last tells any two apart, as no file is read twice."""
    name, data = str(result.data["name"]), str(result.data["data"])
    details = (Path(data).name, data, result.path.parent, result.path.resolve())
    return [name, *(f"{name} ({detail})" for detail in details)]
