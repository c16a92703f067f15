"""Draw a pair of photographs: the old one in the view of the new one, the new one, and the changes."""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cssr.survey.changes import Change
from cssr.survey.pairing import Pair
from cssr.survey.photographs import cracks_of
from cssr.survey.registration import apply_homography
from cssr.utils.images import join_images

COLOURS = {  # of Okabe and Ito, which the colour-blind tell apart
    "new": "#d55e00",
    "grown": "#e69f00",
    "unchanged": "#009e73",
    "reduced": "#56b4e9",
    "gone": "#0072b2",
    "unclear": "#8a8f96",
    "out of view": "#c2c6cb",
}
_GAP, _HEAD, _MIN_SIDE = 8, 26, 900  # pixels: between pictures, above each, and of the longer side of each at least
_BEFORE = (40, 40, 40)  # where a crack was that has changed
_GREY, _LIGHT = (128, 128, 128), 0.45  # where a photograph is gone, and how much of it is left below what has changed


def draw(
    pair: Pair, images: tuple[Image.Image | None, Image.Image | None], changes: Sequence[Change], first: int
) -> Image.Image:
    """The picture; `images` are the photographs, reduced, and `first` the number of the first change."""
    height, width = pair.new.shape
    longer = max(height, width)
    factor = max(_MIN_SIDE, min(longer, max(images[1].size) if images[1] else longer)) / longer
    size = max(1, round(width * factor)), max(1, round(height * factor))
    new_panel = np.asarray((images[1] or Image.new("RGB", (1, 1), _GREY)).convert("RGB").resize(size)).copy()
    to_picture = np.diag([factor, factor, 1.0])
    old_panel = _placed(images[0], pair, to_picture, size)
    to_old = to_picture @ pair.registration.matrix
    changes_panel = cv2.addWeighted(new_panel, _LIGHT, np.full_like(new_panel, 255), 1 - _LIGHT, 0)
    labels = []
    for number, change in reversed([*enumerate(changes, first)]):
        colour = tuple(int(COLOURS[change.state][n : n + 2], 16) for n in (1, 3, 5))
        for chosen, cracks, matrix, panel in (
            (change.old, cracks_of(pair.old), to_old, old_panel),
            (change.new, cracks_of(pair.new), to_picture, new_panel),
        ):
            lines = [apply_homography(line, matrix) for n in chosen for line in cracks.lines[n]]
            _lines(panel, lines, colour, 2)
            if panel is new_panel or not change.new:
                _lines(changes_panel, lines, colour, 4)
        if change.change:  # additions have no earlier line
            _lines(
                changes_panel,
                [apply_homography(line, to_old) for n in change.old for line in cracks_of(pair.old).lines[n]],
                _BEFORE,
                1,
            )
        labels.append((str(number), np.array(change.place) * factor, colour, change.state))
    pictures = [Image.fromarray(panel) for panel in (old_panel, new_panel, changes_panel)]
    _label(pictures[2], labels[::-1])
    states = [state for state in COLOURS if any(change.state == state for change in changes)]
    titles = ((f"old: {pair.old.name}", ()), (f"new: {pair.new.name}", ()), ("", states))
    return join_images([_titled(*both) for both in zip(pictures, *zip(*titles))], width > 1.6 * height, _GAP)


def _placed(image: Image.Image | None, pair: Pair, to_picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The old photograph where the new one sees it, grey beyond."""
    image = image or Image.new("RGB", pair.old.shape[::-1], _GREY)
    own = np.diag([pair.old.shape[1] / image.width, pair.old.shape[0] / image.height, 1])
    # Pixel centres are at .5 here, at whole numbers in warpPerspective.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = np.linalg.inv(half) @ to_picture @ pair.registration.matrix @ own @ half
    return cv2.warpPerspective(np.asarray(image.convert("RGB")), matrix, size, borderValue=_GREY)


def _lines(panel: np.ndarray, lines: Sequence[np.ndarray], colour: tuple[int, ...], width: int) -> None:
    limit = 4 * max(panel.shape)
    points = [(line.clip(-limit, limit) * 16).round().astype(np.int32) for line in lines if np.isfinite(line).all()]
    cv2.polylines(panel, points, False, colour, width, cv2.LINE_AA, shift=4)


def _label(picture: Image.Image, labels: Sequence[tuple]) -> None:
    """Numbers, of which those of lesser changes are left out where they would cover others."""
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    occupied = np.zeros((picture.height + 1, picture.width + 1), bool)
    for text, (x, y), colour, state in labels:
        if state in ("unclear", "out of view"):  # in dozens where the model finds specks
            continue
        width, height = draw.textlength(text, font) + 8, 20
        left, top = max(0, min(x + 6, picture.width - width)), max(0, min(y - 26, picture.height - height))
        inside = np.s_[int(top) : int(top + height) + 1, int(left) : int(left + width) + 1]
        if occupied[inside].any():
            continue
        occupied[inside] = True
        draw.rectangle((left, top, left + width, top + height), fill="white", outline=colour, width=2)
        draw.text((left + 4, top + 1), text, fill="black", font=font)


def _titled(picture: Image.Image, title: str, states: Sequence[str]) -> Image.Image:
    """With a title above (its end where it is too long), or the colours of states."""
    sheet = Image.new("RGB", (picture.width, picture.height + _HEAD), "white")
    sheet.paste(picture, (0, _HEAD))
    font, draw = ImageFont.load_default(15), ImageDraw.Draw(sheet)
    while title and draw.textlength(title, font) > picture.width - 8:
        title = title[1:]
    draw.text((4, 4), title, fill="black", font=font)
    left = 4.0
    for state in states:
        draw.rectangle((left, 7, left + 12, 19), fill=COLOURS[state])
        draw.text((left + 18, 4), state, fill="black", font=font)
        left += 34 + draw.textlength(state, font)
    return sheet
