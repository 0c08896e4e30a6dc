"""Drawings are legible whatever the picture's size."""

from itertools import pairwise

import numpy as np
import pytest
import supervision as sv

from clients import drawing
from clients.detections import Detections

SIZES = [(150, 200), (480, 640), (1080, 1920), (2160, 3840), (3840, 2160), (100, 3000)]


def detections(boxes: list[list[float]], classes: list[int]) -> Detections:
    labels = tuple(f"class {index}" for index in classes)
    scores = np.linspace(0.9, 0.5, len(boxes), dtype=np.float32)
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), scores, np.array(classes, np.int32), labels)


def mask(picture: np.ndarray, color: sv.Color) -> np.ndarray:
    return (picture == np.array(color.as_bgr(), np.uint8)).all(axis=-1)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_box_and_caption_are_in_the_picture_and_in_proportion(height: int, width: int) -> None:
    picture = np.full((height, width, 3), 127, np.uint8)
    # Near the upper left corner, where a caption above the box would be cut off.
    box = [2, 2, width * 0.9, height * 0.9]
    drawn = drawing.draw(picture, detections([box], [0]))
    assert drawn.shape == picture.shape
    assert (picture == 127).all()
    changed = (drawn != 127).any(axis=-1)
    # The caption is the block of rows from the top that its background fills.
    filled = changed[: height // 2, 4 : min(width, height) // 8].mean(axis=1) > 0.9
    text_height = filled.sum()
    assert 9 <= text_height <= height * 0.2
    if height >= 2160:
        assert text_height >= 40
    # Right side of the box, at half of its height.
    line = changed[height // 2, int(width * 0.9) - 20 :].sum()
    assert 1 <= line <= 0.02 * max(height, width)
    assert line >= 5 or min(height, width) < 2160


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(303, 384, 3), (150, 200, 4), (800, 9, 1), (1, 1, 800)]
)
def test_small_pictures_are_drawn_enlarged(height: int, width: int, factor: int) -> None:
    picture = np.full((height, width, 3), 127, np.uint8)
    picture[height // 2 :] = 50
    large, found, _ = drawing.enlarged(picture, detections([[0, height // 2, width, height]], [0]))
    assert large.shape == (height * factor, width * factor, 3)
    x1, y1, x2, y2 = found.xyxy[0].astype(int)
    assert (x2 - x1, y2 - y1) == (width * factor, height * factor - y1)
    # The box still holds what it held, to the pixel.
    assert (large[y1:y2] < 88).all()
    assert (large[:y1] > 88).all()


def test_captions_hide_little_of_a_small_picture() -> None:
    # As on the demo's photograph: objects of 36 pixels on a picture of 384.
    boxes = [[x, y, x + 36.0, y + 36.0] for x in range(20, 330, 60) for y in range(40, 260, 70)]
    found = detections(boxes, [0] * len(boxes))
    drawn = drawing.draw(*drawing.enlarged(np.full((303, 384, 3), 127, np.uint8), found))
    changed = (drawn != 127).any(axis=-1)
    hidden = [
        changed[y * 3 + 6 : (y + 36) * 3 - 6, x * 3 + 6 : (x + 36) * 3 - 6] for x, y, *_ in np.int32(boxes)
    ]
    assert not np.any(hidden)
    assert changed.mean() < 0.15


def test_a_caption_fits_into_a_thumbnail() -> None:
    left, top, right, bottom = drawing._labels(150, 200, "").font.getbbox("traffic light 0.97")
    assert right - left <= 140
    assert bottom - top >= 9


def test_every_class_of_coco_has_a_colour_of_its_own_and_neighbours_differ_clearly() -> None:
    colors, _ = drawing.palette()
    rgb = np.array([color.as_rgb() for color in colors.colors], float)
    distances = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1) + 1e3 * np.eye(len(rgb))
    assert distances.min() > 5
    assert min(np.linalg.norm(one - two) for one, two in pairwise(rgb)) > 60


def test_text_contrasts_with_every_colour() -> None:
    def luminance(color: sv.Color) -> float:
        linear = np.where(
            (c := np.array(color.as_rgb()) / 255) <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for color, text in zip(*(palette.colors for palette in drawing.palette()), strict=True):
        dark, light = sorted((luminance(color), luminance(text)))
        # WCAG 2's limit for large text.
        assert (light + 0.05) / (dark + 0.05) >= 3


def test_classes_differ_in_colour_and_the_best_is_on_top() -> None:
    picture = np.zeros((200, 200, 3), np.uint8)
    same = [40.0, 60.0, 160.0, 160.0]
    drawn = drawing.draw(picture, detections([same, same], [0, 1]))
    colors, _ = drawing.palette()
    assert tuple(drawn[130, 40]) == colors.by_idx(0).as_bgr()
    apart = drawing.draw(picture, detections([[10, 40, 60, 90], [110, 110, 180, 180]], [0, 1]))
    assert mask(apart, colors.by_idx(0)).any()
    assert mask(apart, colors.by_idx(1)).any()


def test_nothing_found_leaves_the_picture() -> None:
    picture = np.full((50, 60, 3), 9, np.uint8)
    assert (drawing.draw(picture, detections([], [])) == picture).all()


def test_boxes_beyond_the_picture() -> None:
    picture = np.zeros((60, 60, 3), np.uint8)
    assert drawing.draw(picture, detections([[-500, -500, 900, 900]], [3])).shape == picture.shape
