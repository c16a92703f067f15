"""The report as one page of HTML that opens from the disk, asks for nothing, and shows what the tables cannot."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup

from cssr import __version__
from cssr.evaluation import metrics
from cssr.evaluation.results import Result
from cssr.report.columns import NOTE, image_measures, pooled_measures
from cssr.report.details import images_of, parts_of
from cssr.report.facts import caveats, definitions, fact, split_facts
from cssr.report.images import gallery
from cssr.report.literature import APART, FIGURES, SETTING, SOURCE, same_protocol
from cssr.report.plots import curves_of, iou_plot, precision_recall_plot, reliability_plot, tenths
from cssr.report.styles import HTML

_SCRIPTS = ("base.js", "curves.js", "samples.js", "list.js")  # one script, in this order


def compose_page(results: Sequence[Result], base: Result | None, title: str) -> str:
    """The whole page. Raises: ValueError, one line, where the samples beside a result are damaged."""
    shown = gallery(results)
    context = {
        **{"title": title, "version": __version__, "results": results, "left_out": shown.left_out, "note": NOTE},
        **_tables(results, base),
        **_curves([result for result in results if result.segmented]),
        "notes": [Markup(line) for line in caveats(results, HTML)],
        "definitions": definitions(results, base, _shown_here(results)),
        "sampled": any(shown.samples),
        "listed": any(result.data.get("per_image") for result in results),
        "data": _data(results, shown.samples, shown.uris),
    }
    style, script = _asset("report.css"), "".join(map(_asset, _SCRIPTS))
    return _template().render(**context, style=Markup(style), script=Markup(script), policy=_policy(style, script))


def _shown_here(results: Sequence[Result]) -> dict[str, str]:
    """Keys of the definitions of what the page shows beyond the tables, and what it calls them."""
    segmented = any(result.segmented for result in results)
    groups = {kind.kind: kind.title for kind in parts_of(results)}
    columns = {column["key"]: column["label"].split(" [")[0] for column in images_of(results)["columns"]}
    found = {"precision": "precision", "recall": "recall"} if segmented else {}
    if any(result.data.get("calibration") for result in results):
        found |= {"calibration.reliability": "reliability", "calibration.temperature": "temperature"}
    found |= {f"groups.{kind}": title for kind, title in groups.items()}
    found |= {key: columns[key] for key in ("width_bias", "length_bias") if key in columns}
    return found | ({"per_image.blur_sigma": columns["blur_sigma"]} if "blur_sigma" in columns else {})


def _tables(results: Sequence[Result], base: Result | None) -> dict[str, Any]:
    shared, own = split_facts(results)
    alike = same_protocol(results)
    return {
        "tables": [
            ("per-image", "Per image", image_measures(results, base)),
            ("pooled", "Pooled over all pixels", pooled_measures(results)),
        ],
        "published": {"figures": FIGURES, "source": SOURCE, "setting": SETTING, "apart": APART, "alike": alike},
        "shared": [(key, Markup(fact(results[0], key, HTML))) for key in shared],
        "own": own,
        "facts": [[Markup(fact(result, key, HTML)) for key in own] for result in results],
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
    measured = [(result.name, found) for result in segmented if (found := result.data.get("calibration"))]
    if not measured:
        return None
    forms = (
        ("prob", "mean probability", "{:.3f}"),
        ("crack", "share of crack", "{:.3f}"),
        ("pixels", "pixels", "{:,}"),
    )
    rows = [
        (name, f"{found['temperature']:.2f}", words, ["-" if v is None else form.format(v) for v in values])
        for name, found in measured
        for key, words, form in forms
        for values in [found["reliability"][key]]
    ]
    count = len(measured[0][1]["reliability"]["prob"])
    return {"rows": rows, "bins": [f"{n / count:.2f} to {(n + 1) / count:.2f}" for n in range(count)]}


def _data(results: Sequence[Result], samples: Sequence[Any], uris: dict[str, str]) -> dict[str, Any]:
    """What the script works with."""
    return {
        "results": [_described(result, own) for result, own in zip(results, samples)],
        "uris": uris,
        "images": images_of(results),
    }


def _described(result: Result, samples: Any) -> dict[str, Any]:
    curves = curves_of(result) if result.segmented else {}
    kept = {kind: {k: _rounded(v) for k, v in curves[kind].items()} for kind in ("image", "pooled") if kind in curves}
    threshold = result.data["metrics"]["image"]["iou_max_threshold"]
    level = None if threshold is None else min(len(metrics.THRESHOLDS), max(1, round(threshold * 100)))
    return {"name": result.name, "curves": kept, "level": level, "samples": samples}


def _rounded(curve: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 5) for value in curve]


@cache
def _asset(name: str) -> str:
    return (files("cssr.report") / "pages" / name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    options = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=BaseLoader(), autoescape=True, **options).from_string(_asset("report.html"))


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy: nothing is fetched, and no script runs but ours, which is known by its sha256."""
    style, script = (f"'sha256-{_sha256(text)}'" for text in (style, script))
    own = f"img-src data:; style-src {style}; script-src {script}"
    return f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'"


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
