"""Write a survey as tables: CSV, and a workbook (XLSX) for spreadsheets (extra `survey`)."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cssr.survey.collect import COLUMNS, COVERAGE, Row, Survey

_EXCEL_ROWS = 1_048_575  # of a sheet, but for the header
_PHOTOGRAPH = ("name", "width", "height", "cracks", "mm_per_pixel", "mm_per_pixel_uncertainty", "mm_per_pixel_by")


def write_csv(survey: Survey, path: Path) -> None:
    """One row for each crack under a row of names; units are in the names."""
    write_rows(COLUMNS, survey.rows, path)


def write_rows(columns: Iterable[str], rows: Iterable[Row], path: Path) -> None:
    """Rows as CSV under a row of names."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_xlsx(survey: Survey, path: Path, about: Sequence[tuple[str, str]]) -> None:
    """Sheets: cracks, photographs with their classes, severity, columns with units, and `about` the survey.

    Raises: ValueError for more cracks than a sheet has rows.
    """
    classes = [*survey.severities(())]
    rows_of = survey.by_photograph()
    rows = [[*map(p.get, _PHOTOGRAPH), *survey.severities(rows_of[p["name"]]).values()] for p in survey.photographs]
    limit_facts = [("limits", survey.limits.name), ("source of the limits", survey.limits.source)]
    sheets = {
        "cracks": (list(COLUMNS), (row.values() for row in survey.rows)),
        "photographs": ([*_PHOTOGRAPH, *classes], rows),
        "severity": (["class", "cracks"], survey.severities().items()),
    }
    write_book(path, sheets, len(survey.rows), COLUMNS, [*about, *limit_facts])


def write_book(
    path: Path,
    sheets: Mapping[str, tuple[Sequence[str], Iterable[Iterable]]],
    count: int,
    columns: Mapping[str, tuple[str, str]],
    about: Sequence[tuple[str, str]],
) -> None:
    """A workbook of sheets (header, rows), of `columns` with units and meanings, and `about` it.

    Raises: ValueError where `count`, the rows of the largest sheet, is more than a sheet has.
    """
    import xlsxwriter

    if count > _EXCEL_ROWS:
        raise ValueError(f"{count} cracks are more than a sheet's {_EXCEL_ROWS} rows: take the CSV")
    # Texts of photographs' names are no formulas and no links; a number that is not finite is left empty.
    options = {"strings_to_formulas": False, "strings_to_urls": False, "nan_inf_to_errors": True}
    with xlsxwriter.Workbook(str(path), options | {"constant_memory": True}) as book:
        bold = book.add_format({"bold": True})
        for name, (header, rows) in sheets.items():
            _sheet(book, bold, name, header, rows)
        meanings = [(name, unit, meaning) for name, (unit, meaning) in columns.items()]
        _sheet(book, bold, "columns", ["column", "unit", "meaning"], meanings)
        coverage = [("expanded uncertainty", f"{COVERAGE:g} standard uncertainties, about 95 %")]
        _sheet(book, bold, "about", ["what", "value"], [*about, *coverage])


def _sheet(book: Any, bold: Any, name: str, header: Sequence[str], rows: Iterable[Iterable]) -> None:
    sheet = book.add_worksheet(name)
    sheet.freeze_panes(1, 0)
    for column, text in enumerate(header):
        sheet.set_column(column, column, min(40, max(12, len(text) + 2)))
    sheet.write_row(0, 0, header, bold)
    count = 0
    for count, row in enumerate(rows, 1):
        for column, value in enumerate(row):
            if value is not None:
                sheet.write(count, column, value)
    sheet.autofilter(0, 0, count, len(header) - 1)
