"""Boxes with class names on a picture, legible from thumbnails to 4K."""

from __future__ import annotations

import colorsys
from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import supervision as sv

from clients.detections import Detections

COLORS = 80
SMALL_SIDE = 800
"""A picture whose longer side has fewer pixels is drawn enlarged."""

GOLDEN_RATIO = 0.618034


def enlarged(picture: np.ndarray, detections: Detections) -> tuple[np.ndarray, Detections]:
    """A small picture at a multiple of its size, so that captions hide little of it; others as they are.

    Args:
        picture: uint8 [height, width, 3].
        detections: In the picture's pixels.

    Returns:
        The picture and the detections in its pixels. A longer side below `SMALL_SIDE` becomes one of at
        least `SMALL_SIDE`, by a whole factor.
    """
    factor = -(-SMALL_SIDE // max(picture.shape[:2]))
    if factor == 1:
        return picture, detections
    large = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    return large, replace(detections, xyxy=detections.xyxy * factor)


def draw(picture: np.ndarray, detections: Detections) -> np.ndarray:
    """A copy of the picture with its detections.

    Args:
        picture: uint8 [height, width, 3], BGR.
        detections: In the picture's pixels.
    """
    # The best are drawn last, on top of the others.
    order = slice(None, None, -1)
    best_last = Detections(
        detections.xyxy[order],
        detections.scores[order],
        detections.class_ids[order],
        detections.labels[order],
    )
    captions = [
        f"{label} {score:.2f}" for label, score in zip(best_last.labels, best_last.scores, strict=True)
    ]
    boxes_and_classes = best_last.to_supervision()
    height, width = picture.shape[:2]
    boxes, labels = _annotators(height, width)
    scene = boxes.annotate(picture.copy(), boxes_and_classes)
    return labels.annotate(scene, boxes_and_classes, labels=captions)


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


@cache
def _annotators(height: int, width: int) -> tuple[sv.BoxAnnotator, sv.LabelAnnotator]:
    # Text grows with the picture: 36 pixels on 4K. Below a scale of 0.42 its letters are hard to tell apart.
    side = (height * width) ** 0.5
    scale = max(0.42, side / 1600)
    colors, texts = palette()
    line = round(0.5 + side / 500)
    return (
        sv.BoxAnnotator(color=colors, thickness=line),
        sv.LabelAnnotator(
            color=colors,
            text_color=texts,
            text_scale=scale,
            text_thickness=max(1, round(scale * 1.5)),
            text_padding=max(1, round(scale * 6)),
            smart_position=True,
        ),
    )
