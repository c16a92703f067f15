"""doctor.png: the worst offenders and some ordinary samples, the crack outlined in red."""

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFile, ImageFont, ImageOps

from cssr.dataset_preparation.audit.findings import NOTE, Case, Finding, Part
from cssr.dataset_preparation.images import open_picture, outlined
from cssr.utils.images import join_images, open_image

_SIDE, _GAP, _TEXT, _HEAD = 208, 6, 16, 24  # pixels
_LABEL = 38  # characters below a picture at most
_GROUPS, _MEMBERS, _COLUMNS = 6, 3, 8  # of a finding; of a group; pictures in a row

Picture = tuple[int, str]  # number of a case, what to write below


def draw(cases: Sequence[Case], findings: Sequence[Finding], rules: dict[str, Part]) -> Image.Image:
    """The sheet: a row for each finding about samples, then extremes of crack, then ordinary samples."""
    rows = [_row(title, groups, cases, rules) for title, groups in [*_offenders(findings), *_extremes(cases)] if groups]
    return join_images(rows, down=True) if rows else Image.new("RGB", (_SIDE, 1), "white")


def _offenders(findings: Sequence[Finding]) -> list[tuple[str, list[list[Picture]]]]:
    rows = []
    for finding in findings:
        if not finding.pictures or (finding.severity == NOTE and "images" not in finding.entries[0]):
            continue
        groups = [[(n, "") for n in group[:_MEMBERS]] for group in finding.pictures[:_GROUPS]]
        shown = f"{len(groups)} of {len(finding.pictures)}" if len(finding.pictures) > len(groups) else len(groups)
        rows.append((f"{finding.severity}: {finding.kind} ({shown})", groups))
    return rows


def _extremes(cases: Sequence[Case]) -> list[tuple[str, list[list[Picture]]]]:
    """The most and the least crack, and samples around the median."""
    shares = {n: case.crack.share for n, case in enumerate(cases) if case.crack and case.crack.share}
    if not shares:
        usual = [n for n, case in enumerate(cases) if case.state.size][:: max(1, len(cases) // _COLUMNS)]
        return [("samples", [[(n, "")] for n in usual[:_COLUMNS]])]
    order = sorted(shares, key=lambda n: (shares[n], n))
    middle = max(0, (len(order) - _COLUMNS) // 2)
    chosen = {
        "most crack": order[-_COLUMNS:][::-1],
        "least crack, but some": order[:_COLUMNS],
        "ordinary": order[middle : middle + _COLUMNS],
    }
    return [(title, [[(n, f"{100 * shares[n]:.2f} %")] for n in numbers]) for title, numbers in chosen.items()]


def _row(title: str, groups: list[list[Picture]], cases: Sequence[Case], rules: dict[str, Part]) -> Image.Image:
    """Pictures of a group touch, groups are set apart; what does not fit goes below."""
    cells = [[_cell(cases[n], text, rules) for n, text in group] for group in groups]
    lines, used = [[]], 0
    for group in cells:
        if used and used + len(group) > _COLUMNS:
            lines.append([])
            used = 0
        lines[-1].append(group)
        used += len(group)
    width = _GAP + _COLUMNS * (_SIDE + 1 + 2 * _GAP)
    row = Image.new("RGB", (width, _HEAD + len(lines) * (_SIDE + _TEXT + _GAP)), "white")
    ImageDraw.Draw(row).text((_GAP, 4), title, fill="black", font=ImageFont.load_default(14))
    for number, line in enumerate(lines):
        x, y = _GAP, _HEAD + number * (_SIDE + _TEXT + _GAP)
        for group in line:
            for cell in group:
                row.paste(cell, (x, y))
                x += _SIDE + 1
            x += 2 * _GAP
    return row


def _cell(case: Case, text: str, rules: dict[str, Part]) -> Image.Image:
    cell = Image.new("RGB", (_SIDE, _SIDE + _TEXT), "white")
    font = ImageFont.load_default(10)
    picture = _picture(case, rules)
    if picture is None:
        fault = "\n".join(textwrap.wrap(next(iter(case.state.faults.values()), "cannot be shown"), 34))
        ImageDraw.Draw(cell).text((6, 6), fault, fill="black", font=font)
    else:
        cell.paste(picture, (0, 0))
    label = f"{text}  {case.path}" if text else case.path
    label = label if len(label) <= _LABEL else f"{label[:8]}…{label[-(_LABEL - 9) :]}"
    ImageDraw.Draw(cell).text((2, _SIDE + 2), label, fill="black", font=font)
    return cell


def _picture(case: Case, rules: dict[str, Part]) -> Image.Image | None:
    """The image with its crack outlined, or beside its mask where they do not fit; None if it cannot be shown."""
    image = _image(case)
    if image is None:
        return None
    if "sizes that differ" in case.state.faults:
        return _beside(image, case)
    small = ImageOps.contain(image, (_SIDE, _SIDE), Image.Resampling.BICUBIC)
    part = rules.get(case.part)
    if case.crack is None or part is None or part.rule is None:
        return small
    try:
        mask = np.asarray(part.rule.apply(np.asarray(case.item.mask())), np.float32)
    except (ValueError, OSError):
        return small
    return outlined(small, mask)


def _image(case: Case) -> Image.Image | None:
    """The image; of a damaged one what there is."""
    try:
        data = case.item.image()
        if "damaged images" not in case.state.faults:
            return open_picture(data).image
    except (ValueError, OSError):
        return None
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with open_image(io.BytesIO(data)) as stored:
            return stored.convert("RGB")
    except Exception:  # whatever is left of it
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


def _beside(image: Image.Image, case: Case) -> Image.Image:
    """Image and mask at one scale."""
    masks = []
    for path in (case.item.files or ())[1:2]:
        try:
            with open_image(path) as stored:
                masks = [ImageOps.autocontrast(stored.convert("L")).convert("RGB")]
        except Exception:  # it is shown for what it is worth
            masks = []
    return ImageOps.contain(join_images([image, *masks], ground="grey"), (_SIDE, _SIDE), Image.Resampling.BICUBIC)
