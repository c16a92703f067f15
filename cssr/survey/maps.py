"""Write a survey as maps: a GeoPackage of lines and polygons for GIS, a DXF for CAD (extra `survey`)."""

import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cssr.survey.collect import COLUMNS, Survey
from cssr.survey.geometry import paths

_LETTERS = 12  # height of text, pixels of the photograph
_MAP_PIXEL = 10  # mm, of a map with pixels of unknown size
_CORNERS = 1_000_000  # of all outlines, up to which the drawing has them
_GAP = 0.1  # of a photograph's width, between photographs that are laid side by side


def write_geopackage(survey: Survey, path: Path) -> list[str]:
    """Layers `crack_lines` and `crack_areas`, with all columns of the table.

    Cracks of georeferenced photographs are in the coordinate system of the first of them, others reprojected to it.
    Layers of their own have those on maps without a name (`..._unnamed_map`), and those without a map (`..._px`):
    pixels, y upwards and below 0, as QGIS shows a photograph that is on no map.
    Returns: sentences on what was reprojected.
    """
    target = next((crs for crs in survey.crs if crs), None)
    numbers: dict[str, list[int]] = {}
    for number, crs in enumerate(survey.crs):
        numbers.setdefault("_px" if crs is None else "" if crs else "_unnamed_map", []).append(number)
    for suffix, chosen in (numbers or {"_px": []}).items():
        for name, kind, geometries in (
            ("crack_lines", "MultiLineString", survey.lines),
            ("crack_areas", "MultiPolygon", survey.areas),
        ):
            shapes = [geometries[n] if suffix else _reprojected(geometries[n], survey.crs[n], target) for n in chosen]
            if suffix == "_px":  # y upwards
                shapes = [{**one, "coordinates": _negated(one["coordinates"])} for one in shapes]
            rows = [survey.rows[n] for n in chosen]
            _write_layer(path, f"{name}{suffix}", kind, rows, shapes, None if suffix else target)
    others = sorted({crs for crs in survey.crs if crs and crs != target})
    return [f"cracks in {crs} were reprojected to {target}" for crs in others]


def _write_layer(path: Path, layer: str, kind: str, rows: list, shapes: list, crs: str | None) -> None:
    import geopandas
    import shapely
    from shapely.geometry import shape

    multi = getattr(shapely, kind)
    parts = [shape(part) for part in shapes]
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    frame = geopandas.GeoDataFrame(
        columns, geometry=[part if part.geom_type == kind else multi([part]) for part in parts], crs=crs
    )
    for name, (unit, _) in COLUMNS.items():
        frame[name] = frame[name].astype("float64" if unit else "int64" if name in ("crack", "number") else "str")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")  # pixels have none
        frame.to_file(path, layer=layer, driver="GPKG", engine="pyogrio", geometry_type=kind)


def _reprojected(geometry: Any, crs: str | None, target: str | None) -> Any:
    if crs == target:
        return geometry
    import geopandas
    from shapely.geometry import mapping, shape

    return mapping(geopandas.GeoSeries([shape(geometry)], crs=crs).to_crs(target)[0])


def _negated(coordinates: Any) -> Any:
    if isinstance(coordinates, np.ndarray):
        return coordinates * (1, -1)
    return [_negated(part) for part in coordinates]


def write_dxf(survey: Survey, path: Path) -> list[str]:
    """Lines and outlines as polylines, a layer for each class of severity, and each crack's number and width as text.

    Georeferenced photographs are on the map's coordinates; others are laid side by side, y upwards, in millimetres
    where the size of their pixels is known, else in pixels, each with its frame and name.
    Returns: a sentence where there are so many outlines that they are left out.
    """
    import ezdxf
    from ezdxf import units

    document = ezdxf.new("R2010", setup=True)
    on_map = any(crs is not None for crs in survey.crs)
    in_mm = any("mm_per_pixel" in photograph for photograph in survey.photographs)
    document.units = units.M if on_map else units.MM if in_mm else 0
    classes = [*survey.limits.classes, "unknown"]
    names = {name: f"severity_{number}" for number, name in enumerate(classes, 1)}
    for number, name in enumerate(classes, 1):
        layer = document.layers.add(names[name], color=(3, 2, 30, 1, 6, 5)[min(number, 6) - 1])
        layer.description = name
    document.layers.add("crack_outlines", color=8)
    document.layers.add("photographs", color=9)
    space = document.modelspace()
    origins = _side_by_side(survey, space)
    outlines = [[_straightened(ring) for ring in paths(area)] for area in survey.areas]
    corners = sum(len(ring) for rings in outlines for ring in rings)
    if corners > _CORNERS:
        outlines = [[]] * len(survey.rows)
    for row, line, rings, crs in zip(survey.rows, survey.lines, outlines, survey.crs):
        origin = origins.get(row["photograph"], (0.0, 0.0, 1.0, 1.0))  # a map's coordinates stay
        layer = {"layer": names[row["severity"] or "unknown"]}
        for points in paths(line):
            space.add_lwpolyline(_to_drawing(points, origin), dxfattribs=layer)
        for ring in rings:
            space.add_lwpolyline(_to_drawing(ring, origin), close=True, dxfattribs={"layer": "crack_outlines"})
        first = _to_drawing(next(paths(line)), origin)[0]
        width = f"{row['max_width_px']:.3g} px" if row["max_width_mm"] is None else f"{row['max_width_mm']:.3g} mm"
        height = _LETTERS * (origin[2] if crs is None else (row["mm_per_pixel"] or _MAP_PIXEL) / 1000)
        space.add_text(f"{row['crack']}: {width}", height=height, dxfattribs=layer).set_placement(first)
    document.saveas(path)
    if corners <= _CORNERS:
        return []
    return [f"cracks.dxf is without outlines, as few programs draw {corners:,} corners: cracks.gpkg has them"]


def _side_by_side(survey: Survey, space: Any) -> dict[str, tuple[float, float, float, float]]:
    """Draw frames and names of photographs without a map: left, top, and size of a pixel along x and y of each."""
    origins, left = {}, 0.0
    for photograph in survey.photographs:
        if "affine" in photograph:
            continue
        size = photograph.get("mm_per_pixel") or 1.0
        width, height = photograph["width"] * size, photograph["height"] * size
        origins[photograph["name"]] = (left, 0.0, size, -size)
        corners = [(left, 0.0), (left + width, 0.0), (left + width, -height), (left, -height)]
        space.add_lwpolyline(corners, close=True, dxfattribs={"layer": "photographs"})
        name = space.add_text(photograph["name"], height=width / 40, dxfattribs={"layer": "photographs"})
        name.set_placement((left, width / 80))
        left += width * (1 + _GAP)
    return origins


def _straightened(ring: np.ndarray) -> np.ndarray:
    """A closed ring N 2 along sides of pixels without the stairs of slanting sides, M 2, not closed: within a pixel.

    As it is where that would change its area by more than a tenth.
    """
    corners = (ring[:-1] - ring[0]).astype(np.float32)[:, None]
    pixel = float(np.abs(np.diff(ring, axis=0)).max(1).min())
    points = cv2.approxPolyDP(corners, pixel, closed=True)
    area = cv2.contourArea(corners)
    simplified = points if abs(cv2.contourArea(points) - area) <= area / 10 else corners
    return simplified[:, 0] + ring[0]


def _to_drawing(points: np.ndarray, origin: tuple[float, float, float, float]) -> list[list[float]]:
    left, top, along, down = origin
    moved_points = points * (along, down) + (left, top)
    return moved_points[np.isfinite(moved_points).all(1)].tolist()
