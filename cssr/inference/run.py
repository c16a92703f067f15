"""Predict all photographs that the command line of `cssr.predict` names, and survey their cracks."""

import argparse
import sys
from functools import partial
from pathlib import Path
from statistics import median

from cssr import __version__
from cssr.config.schema import segments
from cssr.inference.options import check, choose_model, measure_options
from cssr.inference.pipeline import Pipeline
from cssr.inference.predictor import device_named
from cssr.inference.result_rows import ResultOptions
from cssr.inference.sources import Source, count_photographs, iterate_sources, photographs, unread_files_note
from cssr.inference.writers import Files
from cssr.models.joint import JointModel
from cssr.models.load import load_model
from cssr.models.tta import ORIENTATIONS
from cssr.survey.collect import collect
from cssr.survey.severity import DEFAULT as DEFAULT_LIMITS
from cssr.survey.severity import Limits, load_limits
from cssr.survey.write import FOLDER, write_survey
from cssr.utils.cli import exit_on_error
from cssr.utils.machine import keep_freed_memory
from cssr.utils.photographs import Photograph, open_photograph
from cssr.utils.text import one_line

_NO_ROOM = "not measured: no photograph has a part of 64 x 64 pixels that a crack can be drawn on"


def run(options: argparse.Namespace) -> None:
    """Run `cssr.predict`."""
    try:
        with exit_on_error():
            choose_model(options)
            check(options)
            measure = measure_options(options) if options.measure else None
            limits = load_limits(options.limits or DEFAULT_LIMITS) if options.measure else None
            sources = photographs(options.source, apart=options.out)
            unread = unread_files_note(options.source)
            keep_freed_memory()  # while there are no threads that have a heap of their own
            model = load_model(options.model, options.checkpoint).to(device_named(options.device))
            _make_directory(options.out)
            for name in ("measure", "tta"):
                if getattr(options, name) and not segments(model.config):
                    raise ValueError(f"--{name}: the model finds no cracks (model.seg=none)")
            model.orientations = ORIENTATIONS if options.tta else 1
            work = Pipeline(model, options, measure)
            work.work(iterate_sources(sources, options.every), count_photographs(sources, options.every))
            if limits:
                _survey(work, options, limits)
    except KeyboardInterrupt:
        sys.exit("stopped: give the same command again to continue")
    if unread:
        print(unread, file=sys.stderr)
    if status := _summary(work, options):
        sys.exit(status)


def _summary(work: Pipeline, options: argparse.Namespace) -> int | str:
    """Print what was done. Returns the exit status, or an error message in its place."""
    count, skipped = len(work.outcomes), sum(outcome.skipped for outcome in work.outcomes)
    failed = [outcome.source.path.name for outcome in work.outcomes if outcome.failed]
    done = [outcome for outcome in work.outcomes if options.measure and not outcome.failed]
    unmeasured = [outcome.source.path.name for outcome in done if outcome.cracks is None]
    skipped_text = f" ({skipped} of them were there already)" if skipped else ""
    print(f"{count - len(failed)} photographs: {_written(work.model, work.wanted)} in {options.out}{skipped_text}")
    if unmeasured:
        failure = f"error: {len(unmeasured)} of {count} photographs were not measured: {', '.join(unmeasured[:5])}"
        print(one_line(failure), file=sys.stderr)
    if failed:
        return f"error: {len(failed)} of {count} photographs could not be read or written: {', '.join(failed[:5])}"
    return int(bool(unmeasured))


def _survey(work: Pipeline, options: argparse.Namespace, limits: Limits) -> None:
    """Write all photographs' cracks as one survey."""
    from cssr.inference.detectable import detectable  # slow to import

    measured = [outcome.source for outcome in work.outcomes if outcome.cracks is not None]
    prefixes = [options.out / source.stem for source in measured]
    survey = collect(prefixes, limits, options.width_uncertainty)
    facts = {"model": str(options.model), "threshold": options.threshold, "tta": options.tta, "cssr": __version__}
    facts |= {"width_uncertainty_px": options.width_uncertainty, "least_length_px": options.least_length}
    openings = [partial(_open_predicted, source, options) for source in measured if source.frame is None]
    if options.detectable and openings:
        with work.precise():
            least = detectable(work.model, openings, options.threshold, options.detectable)
        sizes = [photograph["mm_per_pixel"] for photograph in survey.photographs if "mm_per_pixel" in photograph]
        facts["detectable"] = least.facts() if least else None
        facts["detectable_says"] = least.sentence(median(sizes) if sizes else None) if least else _NO_ROOM
        print(f"detectable: {facts['detectable_says']}")
    notes = write_survey(survey, options.out / FOLDER, facts)
    for sentence in notes:
        print(one_line(f"survey: {sentence}"), file=sys.stderr)
    classes = ", ".join(f"{count} {name}" for name, count in survey.severities().items() if count)
    summary = ": ".join(filter(None, (f"{len(survey.rows)} cracks", classes)))
    print(f"survey of {len(prefixes)} photographs in {options.out / FOLDER}: {summary}")


def _open_predicted(source: Source, options: argparse.Namespace) -> Photograph:
    """Open the picture that the model was run on: the photograph, rectified where that was asked for."""
    rectified = options.out / f"{source.stem}_rectified.png"
    return open_photograph(rectified) if options.rectify and rectified.exists() else source.open(options.bits)


def _make_directory(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with Files(out / "try"):
            pass
    except OSError as error:
        raise ValueError(f"--out: cannot write to {out}: {error.strerror}") from None


def _written(model: JointModel, wanted: ResultOptions) -> str:
    """Names of the results that are written, in words."""
    named = {"sr": "SR image", "prob": "probability", "kernel": "blur kernel"}
    is_written = {"sr": True, "kernel": getattr(model.sr, "predicts_kernel", False)}
    names = [named.get(name, name) for name in wanted.results if is_written.get(name, segments(model.config))]
    *others, last = names or ["nothing"]
    only = "" if segments(model.config) else " only, as the model finds no cracks (model.seg=none),"
    return (f"{', '.join(others)} and {last}" if others else last) + only
