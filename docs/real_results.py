"""Tables of docs/results.md, "Real photographs": from evaluations to numbers, and from numbers to Markdown.

    python docs/real_results.py collect runs/real/results --clean clean.txt   # writes docs/results/real.json
    python docs/real_results.py table                                         # prints every table
    python docs/real_results.py table --short                                 # the README's

`collect` takes the results.json files that `launch/evaluate.py ... --out runs/real/results` wrote, as
SYSTEM[_seedN]/SET_DEGRADATION/results.json. Runs of one system with several seeds count as one: the IoU of an image is
the mean over them. Intervals are of 2,000 draws of images, the same for all systems, so that differences are paired.
Another budget's systems have numbers of their own: `--numbers docs/results/real_256.json`.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cssr.evaluation.aggregate import crack_width_class, in_order
from cssr.evaluation.metrics import iou

NUMBERS = Path(__file__).parent / "results" / "real.json"
SETS = ("uav315_test", "uav75", "crackmap", "mixture_val")
HELD_OUT = SETS[:3]  # pooled; mixture/val chose the checkpoints
DEGRADATIONS = {
    "sigma_0.2_4.0": "blind x4",
    "bicubic": "bicubic x4",
    "motion": "motion x4",
    "noise_jpeg": "noise + JPEG x4",
}
SYSTEMS = {
    "hr": "HR upper bound",
    "bicubic": "bicubic, then segmentation",
    "independent": "KBPN, then segmentation, independently",
    "cssr": "CSSR (DBPN, not blind)",
    "csbsr": "CSBSR as published",
    "csbsr_task_driven": "CSBSR trained by the task",
    "small-x4": "small-x4 (in the package)",
    "small-x4_before": "small-x4 before (crops of 128)",
    "small-x4_before_tta": "the same, averaged over flips and quarter turns",
    "crackpot": "crackpot 2.0, on bicubic x4",
}
BEST, BOUND = "csbsr_task_driven", "hr"
DRAWS = 2000
Rows = list[dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    collecting = commands.add_parser("collect", help="evaluations to docs/results/real.json")
    collecting.add_argument("results", type=Path, help="folder of SYSTEM/SET_DEGRADATION/results.json")
    collecting.add_argument("--clean", type=Path, help="names of UAV-315's photographs without a relative in training")
    collecting.add_argument("--keep", action="store_true", help="keep the systems of the numbers that are not there")
    collecting.set_defaults(run=lambda given: collect(given.results, given.clean, given.keep, given.numbers))
    tables = commands.add_parser("table", help="docs/results/real.json to Markdown")
    tables.add_argument("--short", action="store_true", help="the main table only")
    tables.set_defaults(
        run=lambda given: print("\n".join(markdown(json.loads(given.numbers.read_text()), given.short)))
    )
    for command in (collecting, tables):
        command.add_argument("--numbers", type=Path, default=NUMBERS, help="the file (docs/results/real.json)")
    options = parser.parse_args(arguments)
    options.run(options)


# ---- evaluations to numbers ----


def collect(results: Path, clean: Path | None, keep: bool = False, path: Path = NUMBERS) -> None:
    """Write the numbers of all evaluations below `results` to `path`.

    With `keep`, beside those of other systems that are there. The difference of a kept system from a new one is left
    out: it would need the images of both.
    """
    runs_of: dict[str, dict[str, dict[str, list[Rows]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for result in sorted(results.glob("*/*/results.json")):
        place = _place(result)
        if place is None:
            print(f"passed over: {result}", file=sys.stderr)
            continue
        system, part, degradation = place
        runs_of[degradation][system][part].append(json.loads(result.read_text())["per_image"])
    if not runs_of:
        sys.exit(f"error: {results} holds no SYSTEM/SET_DEGRADATION/results.json: give the --out of launch/evaluate.py")
    names = set(clean.read_text().split()) if clean else set()
    numbers = {
        degradation: {system: _numbers(sets, systems, names) for system, sets in systems.items()}
        for degradation, systems in runs_of.items()
    }
    if keep:
        before = json.loads(path.read_text())
        numbers = {of: _beside(before.get(of, {}), numbers.get(of, {})) for of in before.keys() | numbers.keys()}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n")
    print(f"{path}: {sum(map(len, numbers.values()))} systems on degradations")


def _beside(before: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The systems of before and the new ones, under one degradation."""
    kept = {name: dict(numbers) for name, numbers in before.items() if name not in new}
    for numbers in kept.values():
        if "differences" in numbers:
            numbers["differences"] = {name: gap for name, gap in numbers["differences"].items() if name in kept}
    return {**kept, **new}


def _place(path: Path) -> tuple[str, str, str] | None:
    """System, set and degradation of a results.json."""
    system, benchmark = re.sub(r"_seed\d+$", "", path.parts[-3]), path.parts[-2]
    for part in SETS:
        for degradation in DEGRADATIONS:
            if re.fullmatch(rf"(heldout_)?{part}[_.-]{re.escape(degradation)}", benchmark):
                return system, part, degradation
    return None


def _numbers(sets: Mapping[str, list[Rows]], systems: Mapping[str, Mapping[str, list[Rows]]], clean: set[str]) -> dict:
    """Of one system under one degradation: measures by set, of the held-out ones together, by blur and crack width."""
    parts = dict(sets)
    if "uav315_test" in parts and clean:
        parts["uav315_clean"] = [
            [row for row in rows if Path(str(row["key"])).name.split(".")[0] in clean] for rows in parts["uav315_test"]
        ]
    whole = _together(sets)
    if whole:
        parts["held_out"] = whole
    numbers: dict[str, Any] = {part: measures(runs) for part, runs in parts.items() if runs and runs[0]}
    if whole:
        numbers["blur"] = _by_blur(whole)
        numbers["crack_width"] = _by_crack_width(whole)
        references = {name: _together(systems[name]) for name in systems if _together(systems[name])}
        numbers["differences"] = {name: difference(whole, other) for name, other in references.items()}
    return numbers


def _together(sets: Mapping[str, list[Rows]]) -> list[Rows]:
    """The held-out sets' rows as of one set, a list for each seed; [] where a set is missing."""
    if not all(part in sets for part in HELD_OUT):
        return []
    seeds = min(len(sets[part]) for part in HELD_OUT)
    return [
        [{**row, "key": f"{part}/{row['key']}"} for part in HELD_OUT for row in sets[part][seed]]
        for seed in range(seeds)
    ]


def curves(runs: list[Rows]) -> np.ndarray:
    """IoU of each image at 99 thresholds (N 99), images by key, the mean over runs."""
    per_run = []
    for rows in runs:
        rows = sorted(rows, key=lambda row: row["key"])
        counts = np.array([[row[name] for row in rows] for name in ("tp", "fp", "fn")], dtype=np.float64)
        per_run.append(iou(*counts))
    return np.mean(per_run, axis=0)


def draws(images: int) -> np.ndarray:
    """Number of times that each image is drawn, in each of DRAWS draws: the same for every system of so many images."""
    return np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), DRAWS).astype(np.float64)


def measures(runs: list[Rows]) -> dict[str, Any]:
    """IoU_max, AIU, clIoU and width error with 95 % intervals [low, high], of one set."""
    ious = curves(runs)
    drawn = draws(len(ious)) @ ious / len(ious)
    numbers = {
        "images": len(ious),
        "seeds": len(runs),
        "iou_max": _with_interval(ious.mean(0).max(), drawn.max(1)),
        "aiu": _with_interval(ious.mean(), drawn.mean(1)),
    }
    for name, of in (("cliou", np.nanmean), ("width_error", np.nanmedian), ("psnr", np.nanmean)):
        values = np.array([[_number(row.get(name)) for row in rows] for rows in runs])
        if np.isfinite(values).any():
            flat = np.nanmean(values, axis=0)
            chosen = np.random.default_rng(0).integers(0, len(flat), (DRAWS, len(flat)))
            numbers[name] = _with_interval(of(flat), of(flat[chosen], axis=1))
    return numbers


def _number(value: float | None) -> float:
    return np.nan if value is None or not np.isfinite(value) else value


def _with_interval(value: float, resampled: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in (value, *np.nanpercentile(resampled, (2.5, 97.5)))]


def difference(ours: list[Rows], others: list[Rows]) -> list[float]:
    """IoU_max of one system less that of another, with its paired 95 % interval."""
    first, second = curves(ours), curves(others)
    weights = draws(len(first)) / len(first)
    return _with_interval(
        first.mean(0).max() - second.mean(0).max(), (weights @ first).max(1) - (weights @ second).max(1)
    )


def _by_blur(runs: list[Rows]) -> dict[str, float]:
    """IoU at the best threshold by thirds of the blur's width, where kernels are known."""
    ious, rows = curves(runs), sorted(runs[0], key=lambda row: row["key"])
    best = ious[:, ious.mean(0).argmax()]
    sigma = np.array([_number(row.get("blur_sigma")) for row in rows])
    edges = ((0, 1.5), (1.5, 2.5), (2.5, 9))
    inside = {f"{low:g} to {high:g}": (sigma >= low) & (sigma < high) for low, high in edges}
    return {name: round(float(best[mask].mean()), 4) for name, mask in inside.items() if mask.any()}


def _by_crack_width(runs: list[Rows]) -> dict[str, list[float]]:
    """IoU at the best threshold, and number of images, by the mean width of their cracks, where it was measured."""
    ious, rows = curves(runs), sorted(runs[0], key=lambda row: row["key"])
    best = ious[:, ious.mean(0).argmax()]
    classes = np.array([crack_width_class(row) for row in rows])
    names = [name for name in in_order(set(classes)) if name != "unknown"]
    return {name: [round(float(best[classes == name].mean()), 4), int((classes == name).sum())] for name in names}


# ---- numbers to Markdown ----


def markdown(numbers: Mapping[str, Any], short: bool) -> Iterator[str]:
    """All tables, or the first one alone."""
    for degradation, title in DEGRADATIONS.items():
        systems = numbers.get(degradation, {})
        order = [name for name in SYSTEMS if name in systems]
        if not order:
            continue
        yield from _main_table(systems, order, title)
        if short:
            return
        yield from _set_tables(systems, order, title)


def _main_table(systems: Mapping[str, Any], order: Sequence[str], title: str) -> Iterator[str]:
    yield f"**{title}, held-out sets pooled** (mean over images; 95 % intervals)\n"
    yield "| system | seeds | IoU_max | of HR | AIU | clIoU | width error | less than the best by |"
    yield "|---|---|---|---|---|---|---|---|"
    bound = systems.get(BOUND, {}).get("held_out")
    for name in order:
        own = systems[name].get("held_out")
        if not own:
            continue
        share = f"{100 * own['iou_max'][0] / bound['iou_max'][0]:.1f} %" if bound else ""
        gap = systems.get(BEST, {}).get("differences", {}).get(name) if name != BEST else None
        iou_max, aiu, cliou, width = (_cell(own.get(key)) for key in ("iou_max", "aiu", "cliou", "width_error"))
        yield f"| {SYSTEMS[name]} | {own['seeds']} | {iou_max} | {share} | {aiu} | {cliou} | {width} | {_cell(gap)} |"
    yield ""


def _set_tables(systems: Mapping[str, Any], order: Sequence[str], title: str) -> Iterator[str]:
    parts = ("uav315_test", "uav315_clean", "uav75", "crackmap", "mixture_val")
    for key, label in (("iou_max", "IoU_max"), ("width_error", "median width error, HR pixels")):
        yield f"*{title}, {label} by set*\n"
        yield f"| system | {' | '.join(parts)} |\n|{'---|' * (len(parts) + 1)}"
        for name in order:
            yield f"| {SYSTEMS[name]} | {' | '.join(_cell(systems[name].get(p, {}).get(key)) for p in parts)} |"
        yield ""
    blurs = next((systems[name]["blur"] for name in order if systems[name].get("blur")), {})
    if blurs:
        yield f"*{title}, IoU by the blur's standard deviation (HR pixels), held-out sets pooled*\n"
        yield f"| system | {' | '.join(blurs)} |\n|{'---|' * (len(blurs) + 1)}"
        for name in order:
            of_system = systems[name].get("blur") or {}
            yield f"| {SYSTEMS[name]} | {' | '.join(f'{of_system[b]:.3f}' if b in of_system else '' for b in blurs)} |"
        yield ""
    yield from _crack_width_table(systems, order, title)


def _crack_width_table(systems: Mapping[str, Any], order: Sequence[str], title: str) -> Iterator[str]:
    """IoU by crack width, and in brackets its share of the HR bound's; nothing where that was not measured."""
    bound = systems.get(BOUND, {}).get("crack_width")
    if not bound:
        return
    measured = [name for name in order if systems[name].get("crack_width")]
    classes = {name: bound[name][1] for name in in_order(bound)}
    yield f"*{title}, IoU by the mean width of an image's cracks (HR pixels), held-out sets pooled; of HR*\n"
    yield f"| system | {' | '.join(f'{name} ({images} images)' for name, images in classes.items())} |"
    yield f"|{'---|' * (len(classes) + 1)}"
    for name in measured:
        ious = {width: values[0] for width, values in systems[name]["crack_width"].items()}
        shares = {width: f" ({100 * value / bound[width][0]:.0f} %)" for width, value in ious.items() if width in bound}
        cells = (f"{ious[width]:.3f}{shares.get(width, '')}" if width in ious else "" for width in classes)
        yield f"| {SYSTEMS[name]} | {' | '.join(cells)} |"
    yield ""


def _cell(values: Sequence[float] | None) -> str:
    return "" if values is None else f"{values[0]:.3f} ({values[1]:.3f} to {values[2]:.3f})"


if __name__ == "__main__":
    main()
