"""Detections on a picture, legible from thumbnails to 4K: boxes, skeletons, identities, names."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import cv2
import numpy as np
import supervision as sv
from centernet_image.tasks.boxes3d import corners
from supervision.key_points.skeletons import Skeleton

from clients import camera as projection
from clients.detections import Detections
from clients.fonts import font_for

COLORS = 80
SMALL_SIDE = 800
"""A picture whose longer side has fewer pixels is drawn enlarged."""

GOLDEN_RATIO = 0.618034
TRACE = 30
"""Frames that the line behind an object reaches back."""

FAR = 2.0**20
"""Pixels."""

Edges = Sequence[tuple[int, int]]
COCO_PERSON: Edges = tuple((one - 1, other - 1) for one, other in Skeleton.COCO.value)
"""Which of COCO's 17 key points are joined."""


def enlarged(
    picture: np.ndarray, detections: Detections, camera: np.ndarray | None = None
) -> tuple[np.ndarray, Detections, np.ndarray | None]:
    """A small picture at a multiple of its size, so that captions hide little of it; others as they are.

    Args:
        picture: uint8 [height, width, 3].
        detections: In the picture's pixels.
        camera: Its projection, [3, 4], or None.

    Returns:
        The arguments of `draw`. A longer side below `SMALL_SIDE` becomes one of at least `SMALL_SIDE`, by a
        whole factor.
    """
    factor = -(-SMALL_SIDE // max(picture.shape[:2]))
    if factor == 1:
        return picture, detections, camera
    large = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    keypoints = None if detections.keypoints is None else detections.keypoints * factor
    return (
        large,
        replace(detections, xyxy=detections.xyxy * factor, keypoints=keypoints),
        None if camera is None else camera * [[factor], [factor], [1]],
    )


def draw(
    picture: np.ndarray,
    detections: Detections,
    camera: np.ndarray | None = None,
    traces: sv.TraceAnnotator | None = None,
) -> np.ndarray:
    """A copy of the picture with its detections: boxes, in space where that is known, skeletons, identities.

    Args:
        picture: uint8 [height, width, 3], BGR.
        detections: In the picture's pixels.
        camera: Its projection from metres to pixels, [3, 4]; without one, 3-D boxes are not drawn.
        traces: Of the video whose next frame this is; see `traces`.
    """
    height, width = picture.shape[:2]
    scene = picture.copy()
    # The best are drawn last, on top of the others.
    best_last = detections[::-1]
    found: Any = best_last.to_supervision()
    colors = _color_indices(best_last)
    if traces and best_last.tracks is not None:
        traces.annotate(scene, found, custom_color_lookup=colors)
    if best_last.locations is not None and camera is not None:
        _draw_3d(scene, best_last, camera, colors)
    else:
        _boxes(height, width).annotate(scene, found, custom_color_lookup=colors)
    if best_last.keypoints is not None:
        _draw_points(scene, best_last.keypoints, colors, COCO_PERSON, radius=1.5)
    fonts = np.array([font_for(label) for label in best_last.labels], object)
    captions = np.array(list(map(_caption, fonts, best_last.labels, *_columns(best_last))), object)
    pillow = sv.cv2_to_pillow(scene)
    for font in dict.fromkeys(font or "" for font in fonts):
        own = np.array([(one or "") == font for one in fonts])
        labels = _labels(height, width, font)
        labels.annotate(pillow, found[own], labels=list(captions[own]), custom_color_lookup=colors[own])
    return sv.pillow_to_cv2(pillow)


def traces(height: int, width: int) -> sv.TraceAnnotator:
    """For `draw`: where the objects of one video have been in its last frames."""
    return sv.TraceAnnotator(color=palette()[0], thickness=_thickness(height, width), trace_length=TRACE)


def _columns(detections: Detections) -> tuple[np.ndarray, ...]:
    none = np.full(len(detections), -1)
    return detections.class_ids, detections.scores, none if detections.tracks is None else detections.tracks


def _caption(font: str | None, label: str, class_id: int, score: float, track: int) -> str:
    name = label if font is not None else f"class {class_id}"
    return f"{name} #{track} {score:.2f}" if track >= 0 else f"{name} {score:.2f}"


def _color_indices(detections: Detections) -> np.ndarray:
    """Places in the palette: an identity's own, else the class's."""
    if detections.tracks is None:
        return detections.class_ids
    return np.where(detections.tracks >= 0, detections.tracks, detections.class_ids)


def _draw_3d(scene: np.ndarray, found: Detections, camera: np.ndarray, colors: np.ndarray) -> None:
    """Draws the edges of boxes in space as the camera sees them."""
    assert found.locations is not None
    assert found.dimensions is not None
    assert found.rotations is not None
    points = projection.project(corners(found.locations, found.dimensions, found.rotations), camera)
    _draw_points(scene, points, colors, projection.BOX_EDGES, radius=0)


def _draw_points(
    scene: np.ndarray, points: np.ndarray, colors: np.ndarray, edges: Edges, *, radius: float
) -> None:
    """Draws points [n, J, 2] and, if they are as many as `edges` joins, lines between them.

    Args:
        scene: Drawn on.
        points: Pixels; NaN for what is not to be seen.
        colors: Places in the palette, [n].
        edges: Pairs of points, from 0.
        radius: Of a point, in line widths.
    """
    thickness = _thickness(*scene.shape[:2])
    # OpenCV counts fixed-point pixels with 32 bits.
    points = np.clip(points, -FAR, FAR)
    joined = max(map(max, edges)) + 1 == points.shape[1]
    for one, index in zip(points, colors, strict=True):
        key_points = sv.KeyPoints(xy=one[np.newaxis].astype(np.float32))
        color = palette()[0].by_idx(int(index))
        if joined:
            from_one = [(first + 1, second + 1) for first, second in edges]
            sv.EdgeAnnotator(color, thickness, from_one).annotate(scene, key_points)
        if radius:
            sv.VertexAnnotator(color, round(radius * thickness)).annotate(scene, key_points)


@cache
def palette() -> tuple[sv.ColorPalette, sv.ColorPalette]:
    """Colours of boxes by class, and black or white for text on each.

    Neighbouring classes are a golden ratio apart in hue, so that any few of them are far from each other.
    """
    colors = []
    for index in range(COLORS):
        hue = (index * GOLDEN_RATIO + 0.33) % 1
        red, green, blue = colorsys.hsv_to_rgb(hue, (1.0, 0.65)[index % 2], (1.0, 0.8)[index // 2 % 2])
        colors.append(sv.Color(round(red * 255), round(green * 255), round(blue * 255)))
    texts = [sv.Color.BLACK if _luminance(color) > 0.18 else sv.Color.WHITE for color in colors]
    return sv.ColorPalette(colors), sv.ColorPalette(texts)


def _luminance(color: sv.Color) -> float:
    """Relative luminance, 0 to 1; black and white text contrast alike with 0.18 (WCAG 2)."""
    return float(np.power(np.array(color.as_rgb()) / 255, 2.2) @ [0.2126, 0.7152, 0.0722])


def _thickness(height: int, width: int) -> int:
    return round(0.5 + (height * width) ** 0.5 / 500)


@cache
def _boxes(height: int, width: int) -> sv.BoxAnnotator:
    return sv.BoxAnnotator(color=palette()[0], thickness=_thickness(height, width))


@cache
def _labels(height: int, width: int, font: str) -> sv.RichLabelAnnotator:
    # Text grows with the picture: 55 pixels on 4K.
    size = max(11, round((height * width) ** 0.5 / 52))
    colors, texts = palette()
    return sv.RichLabelAnnotator(
        color=colors,
        text_color=texts,
        font_path=font or None,
        font_size=size,
        text_padding=max(1, round(size / 5)),
        smart_position=True,
    )
