"""Facts of evaluations, caveats of comparing them, and definitions of the numbers, in any style."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import yaml
from markupsafe import escape

from cssr.evaluation.results import Result, component_name
from cssr.report.columns import DETECTION_COLUMNS, INTERVAL, PER_IMAGE, share_label, shown

KEYS = ("model", "networks", "checkpoint", "data", "images", "scale", "degradation", "resampler", "seed", "tile", "tta")
_CONDITIONS = ("scale", "degradation", "resampler")  # facts in which an HR upper bound differs from the rest
_QUOTED = ("model", "data", "degradation")  # facts shown as code: paths and YAML


class Style(NamedTuple):
    """Rendering of words: `text` shows them literally, `code` as paths are set, `strong` in bold."""

    text: Callable[[str], str]
    code: Callable[[str], str]
    strong: Callable[[str], str]


MARKDOWN = Style(  # in a table too
    lambda words: re.sub(r"([\\|*<`])", r"\\\1", " ".join(words.split())),
    lambda words: "`{}`".format(words.replace("|", r"\|")),
    "**{}**".format,
)
HTML = Style(  # in text and in quoted attributes
    lambda words: str(escape(words)), lambda words: f"<code>{escape(words)}</code>", "<strong>{}</strong>".format
)


class Definition(NamedTuple):
    """Definition of a number; `names`: of the results that define it so, where not all do."""

    label: str
    names: list[str]
    text: str


def fact(result: Result, key: str, style: Style = MARKDOWN) -> str:
    """One of `KEYS`; `-` where the file has none."""
    value = result.data.get(key)
    if key == "tta":
        value = "yes" if value else "no"  # older files do not say
    if key == "networks":
        value = " + ".join(component_name(result.data, part) for part in ("sr", "seg"))
    if key == "degradation" and value is not None:
        component = {"name": value} if isinstance(value, str) else value
        value = yaml.safe_dump(component, default_flow_style=True, sort_keys=False, width=10**6).strip()
    text = "-" if value is None else str(value)
    return style.code(text) if key in _QUOTED else style.text(text)


def split_facts(results: Sequence[Result]) -> tuple[list[str], list[str]]:
    """The keys that all results share, and those in which they differ."""
    shared = [key for key in KEYS if len({fact(result, key) for result in results}) == 1]
    return shared, [key for key in KEYS if key not in shared]


def caveats(results: Sequence[Result], style: Style = MARKDOWN) -> list[str]:
    """Lines that say why the results may not be compared, and what differs as it should."""
    systems = [result for result in results if not result.bound] or list(results)
    differences = [_difference(results, key, style) for key in ("data", "images")]
    differences += [_difference(systems, key, style) for key in (*_CONDITIONS, "seed", "tile", "tta")]
    if not any(differences) and _other_images(results):
        differences = ["the images themselves (names, sizes or masks)"]
    lines, warning = [], style.strong("WARNING:")
    if any(differences):
        lines.append(f"{warning} not comparable: the results differ in {'; '.join(filter(None, differences))}.")
    if keys := [label for label, texts in _defined(results).items() if len(texts) > 1]:
        lines.append(f"{warning} the results define these differently (see Definitions): {', '.join(keys)}.")
    return lines + _expected(results, systems, style)


def _expected(results: Sequence[Result], systems: Sequence[Result], style: Style) -> list[str]:
    """A line on the facts in which upper bounds alone differ."""
    expected = " and ".join(
        key for key in _CONDITIONS if _difference(results, key, style) != _difference(systems, key, style)
    )
    if not expected:
        return []
    bounds = ", ".join(style.text(result.name) for result in results if result.bound)
    return [f"HR upper bound: {bounds} segments the HR image itself; another {expected} is expected there."]


def _difference(results: Sequence[Result], key: str, style: Style) -> str:
    """The values of a fact and who has them; empty where all have the same."""
    owners = _group((fact(result, key, style), style.text(result.name)) for result in results)
    if len(owners) == 1:
        return ""
    values = "; ".join(f"{value}: {', '.join(names)}" for value, names in owners.items())
    if key == "data" and not _other_images(results):
        values += "; though names and crack areas of the images are the same"
    return f"{'number of images' if key == 'images' else key} ({values})"


def _other_images(results: Sequence[Result]) -> bool:
    """Return whether images differ: a path alone does not identify images."""
    return not all(result.of_same_images(results[0]) for result in results)


def _group(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def definitions(
    results: Sequence[Result], base: Result | None, extra_labels: Mapping[str, str] | None = None
) -> list[Definition]:
    """Definitions of the shown numbers; twice where results differ in one. `extra_labels`: labels of further keys."""
    entries = [
        Definition(label, names if len(texts) > 1 else [], text)
        for label, texts in _defined(results, extra_labels).items()
        for text, names in texts.items()
    ]
    share = [Definition(share_label(base), [], f"IoU_max in percent of that of {base.name}")] if base else []
    return entries + share


def _defined(
    results: Sequence[Result], extra_labels: Mapping[str, str] | None = None
) -> dict[str, dict[str, list[str]]]:
    """Definitions by what is shown, and the names of the results that have each."""
    labels = {key: key.replace("image", "per image") for key in ("image", "pooled", "thresholds")}
    labels |= {
        column.key: column.label.split(" (")[0].split(" [")[0]
        for column in shown(results, (*PER_IMAGE, *DETECTION_COLUMNS))
    }
    labels |= {"iou_max_threshold": "threshold", "per_image.iou": "IoU in the pictures", "segmentation": "segmentation"}
    labels |= {"intervals": INTERVAL, **(extra_labels or {})}
    texts_of = {label: _group(_texts(results, key)) for key, label in labels.items()}
    return {label: texts for label, texts in texts_of.items() if texts}


def _texts(results: Sequence[Result], key: str) -> Iterator[tuple[str, str]]:
    """A definition and the name of its result; a result without segmentation leaves out what it does not measure."""
    for result in results:
        text = result.data["definitions"].get(key)
        if text is not None or (result.segmented and key != "segmentation"):
            yield text or "not in the file", result.name
