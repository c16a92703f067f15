"""Write the files of a survey: `cracks.csv`, and with the extra `survey` `.xlsx`, `.gpkg` and `.dxf`; `survey.json`."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cssr.survey import maps, tables
from cssr.survey.collect import COVERAGE, Survey
from cssr.utils.files import naming_path
from cssr.utils.text import message_of

FOLDER = "survey"  # in the directory of results
_LIBRARIES = {"cracks.xlsx": "xlsxwriter", "cracks.gpkg": "geopandas", "cracks.dxf": "ezdxf"}


def write_survey(survey: Survey, out: Path, facts: dict[str, Any]) -> list[str]:
    """Write all files into `out`, under temporary names until all are whole.

    `facts`: of the model and the settings, kept in `survey.json` and on the workbook's last sheet.
    Returns: sentences on what was left out, or changed.
    """
    notes: list[str] = []
    about = [(name, str(value)) for name, value in facts.items()]
    writers: dict[str, Callable[[Path], Any]] = {
        "cracks.csv": lambda path: tables.write_csv(survey, path),
        "cracks.xlsx": lambda path: tables.write_xlsx(survey, path, about),
        "cracks.gpkg": lambda path: notes.extend(maps.write_geopackage(survey, path)),
        "cracks.dxf": lambda path: notes.extend(maps.write_dxf(survey, path)),
        "survey.json": lambda path: path.write_text(
            json.dumps(summary(survey, facts, out), indent=1), encoding="utf-8"
        ),
    }
    missing = [name for name, library in _LIBRARIES.items() if find_spec(library) is None]
    if missing:
        notes.append(f"{', '.join(missing)} not written: pip install 'cssr[survey]'")
    write_files(out, {name: None if name in missing else writer for name, writer in writers.items()})
    return notes


def write_files(out: Path, writers: Mapping[str, Callable[[Path], Any] | None]) -> None:
    """Have each writer write the file of its name into `out`, under temporary names until all are whole.

    A file of a name without a writer, of an earlier time, is removed.
    Raises: ValueError, one line, naming the file that could not be written.
    """
    temporary = out / f".partial-{os.getpid()}"
    with naming_path(out):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            for name, writer in writers.items():
                if writer:
                    _write(writer, temporary / name, out / name)
            for name, writer in writers.items():
                if writer:
                    os.replace(temporary / name, out / name)
                else:
                    (out / name).unlink(missing_ok=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _write(writer: Callable[[Path], Any], path: Path, final: Path) -> None:
    try:
        writer(path)
    except ValueError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(final)) from error
    except Exception as error:  # of the libraries, where the disk is full among others
        cause = next((e for e in (error.__context__, *error.args) if isinstance(e, OSError)), None)
        number, message = (cause.errno, cause.strerror) if cause else (errno.EIO, message_of(error))
        raise OSError(number, message, str(final)) from error


def summary(survey: Survey, facts: dict[str, Any], out: Path) -> dict[str, Any]:
    """A survey in numbers, and where the results of each photograph are, from `out`."""
    return {
        **facts,
        "photographs": [
            {**photograph, "results": os.path.relpath(prefix, out)}
            for photograph, prefix in zip(survey.photographs, survey.prefixes)
        ],
        "cracks": len(survey.rows),
        "severity": survey.severities(),
        "severity_spans_a_limit": sum(bool(row["severity_range"]) for row in survey.rows),
        "limits": asdict(survey.limits),
        "coverage": COVERAGE,
    }
