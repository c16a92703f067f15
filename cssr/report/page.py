"""The report as one self-contained page of HTML, with curves, sample images and a list of all images."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup

from cssr import __version__
from cssr.evaluation import metrics
from cssr.evaluation.aggregate import in_order
from cssr.evaluation.definitions import CRACK_KEYS, LINE_KEYS
from cssr.evaluation.results import Result
from cssr.evaluation.visualization import FILES, Sample, read_samples
from cssr.report.columns import NOTE, PER_IMAGE, Column, image_measures, pooled_measures
from cssr.report.facts import HTML, caveats, definitions, fact, split_facts
from cssr.report.plots import curves_of, iou_plot, precision_recall_plot, reliability_plot, tenths
from cssr.report.published_results import FIGURES, SEPARATE, SETTING, SOURCE, same_protocol

_SCRIPTS = ("base.js", "curves.js", "samples.js", "list.js")  # one script, in this order
_GROUPS = {"source": "By source", "blur": "By width of the blur kernel", "crack_width": "By width of the cracks"}
_IMAGE_COLUMNS = (
    Column("IoU", "iou"),
    Column("ECE", "ece", 4),
    *(column for column in PER_IMAGE if column.key in (*LINE_KEYS, *CRACK_KEYS)),
    Column("width bias [px]", "width_bias", 2),
    Column("length bias [px]", "length_bias", 1),
    *(column for column in PER_IMAGE if column.key in ("psnr", "ssim", "kernel_psnr", "lq_psnr")),
    Column("blur sigma [px]", "blur_sigma", 2),
    Column("crack width [px]", "crack_width", 1),
)
_DIGITS = 6  # significant ones, of numbers that are read to four decimals at most
BUDGET = 24_000_000  # bytes of all data URIs; samples beyond it are left out, and counted
_TYPES = {".png": "image/png", ".webp": "image/webp"}
_KINDS = ("worst", "best", "median")  # which come first where not all have room
Kinds = Mapping[str, Sequence[str]]


def compose_page(results: Sequence[Result], base: Result | None, title: str) -> str:
    """The whole page. Raises: ValueError, one line, where the samples beside a result are damaged."""
    shown = gallery(results)
    context = {
        **{"title": title, "version": __version__, "results": results, "left_out": shown.left_out, "note": NOTE},
        **_tables(results, base),
        **_curves([result for result in results if result.segmented]),
        "notes": [Markup(line) for line in caveats(results, HTML)],
        "definitions": definitions(results, base, _page_definitions(results)),
        "sampled": any(shown.samples),
        "listed": any(result.data.get("per_image") for result in results),
        "data": {  # of the page's script
            "results": [_result_data(result, own) for result, own in zip(results, shown.samples)],
            **{"uris": shown.uris, "images": images_of(results)},
        },
    }
    style, script = _asset("report.css"), "".join(map(_asset, _SCRIPTS))
    # Content-Security-Policy: nothing is fetched, and no script runs but ours, by its sha256
    own = f"img-src data:; style-src 'sha256-{_sha256(style)}'; script-src 'sha256-{_sha256(script)}'"
    policy = f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'"
    return _template().render(**context, style=Markup(style), script=Markup(script), policy=policy)


def _page_definitions(results: Sequence[Result]) -> dict[str, str]:
    """Keys of the definitions of what the page shows beyond the tables, and what it calls them."""
    segmented = any(result.segmented for result in results)
    groups = {kind.kind: kind.title for kind in parts_of(results)}
    columns = {column["key"]: column["label"].split(" [")[0] for column in images_of(results)["columns"]}
    labels = {"precision": "precision", "recall": "recall"} if segmented else {}
    if any(result.data.get("calibration") for result in results):
        labels |= {"calibration.reliability": "reliability", "calibration.temperature": "temperature"}
    labels |= {f"groups.{kind}": title for kind, title in groups.items()}
    labels |= {key: columns[key] for key in ("width_bias", "length_bias") if key in columns}
    return labels | {f"per_image.{key}": columns[key] for key in ("blur_sigma", "crack_width") if key in columns}


def _tables(results: Sequence[Result], base: Result | None) -> dict[str, Any]:
    shared, differing = split_facts(results)
    comparable = same_protocol(results)
    return {
        "tables": [
            ("per-image", "Per image", image_measures(results, base)),
            ("pooled", "Pooled over all pixels", pooled_measures(results)),
        ],
        "published": {"figures": FIGURES, "source": SOURCE, "setting": SETTING, "apart": SEPARATE, "alike": comparable},
        "shared": [(key, Markup(fact(results[0], key, HTML))) for key in shared],
        "own": differing,
        "facts": [[Markup(fact(result, key, HTML)) for key in differing] for result in results],
        "parts": parts_of(results),
    }


def _curves(segmented: Sequence[Result]) -> dict[str, Any]:
    """The plots, and tables of what they show."""
    if not segmented:
        return {"plots": [], "numbers": [], "reliability": None}
    curves = [curves_of(result) for result in segmented]
    plots = [iou_plot(segmented, curves), precision_recall_plot(segmented, curves), reliability_plot(segmented)]
    named = (("image", "per image"), ("pooled", "pooled"))
    numbers = [
        (result.name, words, score, tenths(c[kind][score]))
        for result, c in zip(segmented, curves)
        for kind, words in named
        for score in c[kind]
    ]
    return {"plots": [plot for plot in plots if plot], "numbers": numbers, "reliability": _reliability(segmented)}


def _reliability(segmented: Sequence[Result]) -> dict[str, Any] | None:
    """The reliability curves as numbers; None where no file has them."""
    measured = [(result.name, calibration) for result in segmented if (calibration := result.data.get("calibration"))]
    if not measured:
        return None
    forms = (
        ("prob", "mean probability", "{:.3f}"),
        ("crack", "share of crack", "{:.3f}"),
        ("pixels", "pixels", "{:,}"),
    )
    rows = [
        (name, f"{calibration['temperature']:.2f}", words, ["-" if v is None else form.format(v) for v in values])
        for name, calibration in measured
        for key, words, form in forms
        for values in [calibration["reliability"][key]]
    ]
    count = len(measured[0][1]["reliability"]["prob"])
    return {"rows": rows, "bins": [f"{n / count:.2f} to {(n + 1) / count:.2f}" for n in range(count)]}


def _result_data(result: Result, samples: Any) -> dict[str, Any]:
    curves = curves_of(result) if result.segmented else {}
    rounded = {
        kind: {k: [None if x is None else round(x, 5) for x in v] for k, v in curves[kind].items()}
        for kind in ("image", "pooled")
        if kind in curves
    }
    threshold = result.data["metrics"]["image"]["iou_max_threshold"]
    level = None if threshold is None else min(len(metrics.THRESHOLDS), max(1, round(threshold * 100)))
    return {"name": result.name, "curves": rounded, "level": level, "samples": samples}


@cache
def _asset(name: str) -> str:
    return (files("cssr.report") / "pages" / name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    options = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=BaseLoader(), autoescape=True, **options).from_string(_asset("report.html"))


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class Part(NamedTuple):
    """A group of images: its name, how many images, and for each result its measure (None: not measured)."""

    name: str
    images: int
    values: list[float | None]


class Parts(NamedTuple):
    """All groups of a kind; the measure is "IoU" (at the whole set's best threshold) or "PSNR [dB]"."""

    kind: str
    title: str
    measure: str
    names: list[str]  # of the results
    limit: float  # value of a full bar
    parts: list[Part]


def parts_of(results: Sequence[Result]) -> list[Parts]:
    """The groups by source, blur and crack width of those results that have them in their files."""
    all_parts = []
    for kind, title in _GROUPS.items():
        with_groups = [result for result in results if (result.data.get("groups") or {}).get(kind)]
        for segmented in (True, False):
            alike = [result for result in with_groups if result.segmented == segmented]
            if alike:
                all_parts.append(_parts(alike, kind, title, segmented))
    return all_parts


def _parts(results: Sequence[Result], kind: str, title: str, segmented: bool) -> Parts:
    groups = [result.data["groups"][kind] for result in results]
    parts = []
    for name in in_order(set().union(*groups)):
        images = next(group[name]["images"] for group in groups if name in group)
        parts.append(Part(name, images, [_measure_of(group.get(name), segmented) for group in groups]))
    values = [value for part in parts for value in part.values if value is not None]
    limit = 1.0 if segmented else max(values, default=1.0)
    return Parts(kind, title, "IoU" if segmented else "PSNR [dB]", [r.name for r in results], limit, parts)


def _measure_of(part: dict[str, Any] | None, segmented: bool) -> float | None:
    return None if part is None else part["iou"] if segmented else part["image"]["psnr"]


def images_of(results: Sequence[Result]) -> dict[str, Any]:
    """Every image's numbers, for a script: the columns that any result has, and of each result its keys and values."""
    rows = [result.data.get("per_image") or [] for result in results]
    columns = [c for c in _IMAGE_COLUMNS if any(row.get(c.key) is not None for rows_of in rows for row in rows_of)]
    return {
        "columns": [{"key": c.key, "label": c.label, "decimals": c.decimals} for c in columns],
        "results": [
            {
                "keys": [row["key"] for row in rows_of],
                "values": {c.key: [_rounded(row.get(c.key)) for row in rows_of] for c in columns},
            }
            for rows_of in rows
        ],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


class Gallery(NamedTuple):
    """`uris` by identity of the content; `samples` of each result, as the page reads them; how many had no room."""

    uris: dict[str, str]
    samples: list[list[dict[str, Any]]]
    left_out: int


def gallery(results: Sequence[Result], budget: int = BUDGET) -> Gallery:
    """The samples beside the results; ValueError, one line, where some are damaged."""
    sampled = [read_samples(result.path.parent / "pictures" / "samples") for result in results]
    uris: dict[str, str] = {}
    shown: list[set[str]] = [set() for _ in results]
    order = _interleaved([kinds for kinds, _ in sampled])
    for number, key in order:
        new_uris = {name: uri for name, uri in _uris(sampled[number][1][key]).items() if name not in uris}
        if sum(map(len, [*uris.values(), *new_uris.values()])) <= budget:
            uris |= new_uris
            shown[number].add(key)
    samples = [
        [
            _sample_data(result, kinds, own[key])
            for key in dict.fromkeys(key for keys_of_kind in kinds.values() for key in keys_of_kind)
            if key in keys
        ]
        for result, (kinds, own), keys in zip(results, sampled, shown)
    ]
    return Gallery(uris, samples, len(order) - sum(map(len, shown)))


def _interleaved(kinds: Sequence[Kinds]) -> list[tuple[int, str]]:
    """(result, key) of all samples: the first of each kind of every result, then the second of each, and so on."""
    groups = [
        [(number, key) for key in kinds_of.get(kind, [])] for kind in _KINDS for number, kinds_of in enumerate(kinds)
    ]
    return list(dict.fromkeys(entry for rank in zip_longest(*groups) for entry in rank if entry))


def _uris(sample: Sample) -> dict[str, str]:
    """The data URIs of a sample's files by the sha256 of their content."""
    return {
        _content_id(content): f"data:{_TYPES[Path(FILES[name]).suffix]};base64,{base64.b64encode(content).decode()}"
        for name, content in sample.files.items()
    }


def _content_id(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _sample_data(result: Result, kinds: Kinds, sample: Sample) -> dict[str, Any]:
    """Facts of a sample for the page, and the names of its files."""
    about, (_, _, height, width) = sample.about, sample.about["window"]
    names = [f"{kind} {list(keys).index(about['key']) + 1}" for kind, keys in kinds.items() if about["key"] in keys]
    return {
        **{"key": about["key"], "kinds": names, "quality": _quality(result, about["key"])},
        **{"height": height, "width": width, "whole": about["size"], "scale": about["scale"]},
        **{"kernel": about["kernel"], "predicted": about["predicted_kernel"]},
        "files": {name: _content_id(content) for name, content in sample.files.items()},
    }


def _quality(result: Result, key: str) -> str:
    row = next((row for row in result.data.get("per_image") or [] if row["key"] == key), {})
    if row.get("iou") is not None:
        return f"IoU {row['iou']:.3f}"
    return f"PSNR {row['psnr']:.2f} dB" if row.get("psnr") is not None else ""
