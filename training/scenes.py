"""Pictures of coins, drawn from a random generator: the demo's training set.

Nothing here is photographed. What a coin has in a picture is drawn: an uneven outline, a relief that is lit
from one side, wear, stains and a shadow; and what a photograph adds: uneven light, blur, noise, JPEG.
"""

import cv2
import numpy as np
from numpy.random import Generator

CLASSES = ("coin",)


def scene(rng: Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws one picture.

    Args:
        rng: Decides everything.

    Returns:
        Picture, BGR uint8 [H, W, 3], sides of 300 to 640 pixels; boxes of the coins [N, 4], x1 y1 x2 y2 in
        pixels; their classes [N].
    """
    height, width = (int(side) for side in rng.integers(300, 641, 2))
    canvas = _background(rng, height, width)
    light = rng.uniform(0, 2 * np.pi)
    metal = rng.uniform(0, 1)  # Coins of one picture are often alike.
    boxes = []
    for x, y, radius in _places(rng, height, width):
        kind = metal if rng.random() < 0.6 else rng.uniform(0, 1)
        box = _strike(rng, canvas, (x, y), radius, light=light, metal=kind)
        if box is not None:
            boxes.append(box)
    picture = _photograph(rng, canvas)
    return picture, np.array(boxes, np.float32).reshape(-1, 4), np.zeros(len(boxes), np.int64)


def _texture(rng: Generator, height: int, width: int, finest: int = 2) -> np.ndarray:
    """Noise of several octaves, mean 0 and deviation 1, float32 [H, W]."""
    total = np.zeros((height, width), np.float32)
    cell, strength, roughness = max(height, width), 1.0, rng.uniform(0.5, 0.9)
    while cell >= finest:
        shape = (height // cell + 2, width // cell + 2)
        field = rng.standard_normal(shape, np.float32) * np.float32(strength)
        total += cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
        cell, strength = cell // 2, strength * roughness
    return (total - total.mean()) / (total.std() + 1e-6)


def _colour(rng: Generator, saturation: float) -> np.ndarray:
    """A colour around 1 in each channel, BGR [3]."""
    return (1 + saturation * rng.uniform(-1, 1, 3)).astype(np.float32)


def _background(rng: Generator, height: int, width: int) -> np.ndarray:
    """Cloth, wood, stone, paper or clutter, float32 BGR [H, W, 3], about 0 to 1."""
    level = rng.uniform(0.08, 0.8)
    grain = _texture(rng, height, width, int(rng.choice([2, 4, 16, 64])))
    if rng.random() < 0.2:  # Wood: texture drawn out along one axis.
        grain = cv2.blur(grain, (61, 1) if rng.random() < 0.5 else (1, 61))
        grain /= grain.std() + 1e-6
    if rng.random() < 0.15:  # Cloth.
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        angle, period = rng.uniform(0, np.pi), rng.uniform(3, 14)
        grain = 0.5 * grain + np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * 2 * np.pi / period)
    canvas = (
        level
        * (1 + rng.choice([0.03, 0.1, 0.25]) * grain[..., None])
        * _colour(rng, rng.choice([0, 0.15, 0.5]))
    )
    canvas = np.ascontiguousarray(canvas, np.float32)
    if rng.random() < 0.4:
        _clutter(rng, canvas)
    return canvas


def _clutter(rng: Generator, canvas: np.ndarray) -> None:
    """Draws what is no coin: lines, sheets, letters, outlines, crumbs."""
    height, width = canvas.shape[:2]
    for _ in range(rng.integers(3, 30)):
        paint = (rng.uniform(0.05, 0.95) * _colour(rng, 0.4)).tolist()
        at = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        to = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        thick = int(rng.integers(1, 6))
        match rng.integers(0, 6):
            case 0:
                cv2.line(canvas, at, to, paint, thick, cv2.LINE_AA)
            case 1:
                corners = np.array(at) + rng.integers(-90, 90, (int(rng.integers(3, 5)), 2))
                cv2.fillPoly(canvas, [corners.astype(np.int32)], paint, cv2.LINE_AA)
            case 2:
                _write(rng, canvas, at, rng.uniform(8, 60), int(rng.integers(1, 9)), paint, thick)
            case 3:
                cv2.circle(canvas, at, int(rng.integers(15, 200)), paint, 1 + thick // 3, cv2.LINE_AA)
            case 4:
                axes = (int(rng.integers(40, 200)), int(rng.integers(4, 16)))
                cv2.ellipse(canvas, at, axes, rng.uniform(0, 180), 0, 360, paint, -1, cv2.LINE_AA)
            case _:
                cv2.circle(canvas, at, int(rng.integers(1, 5)), paint, -1, cv2.LINE_AA)


def _write(
    rng: Generator, canvas: np.ndarray, at: tuple[int, int], size: float, count: int, paint: list, thick: int
) -> None:
    """Draws letters of no alphabet to the right of `at`, x y."""
    for i in range(count):
        strokes = rng.uniform(0, size, (int(rng.integers(3, 6)), 2)) * (0.7, -1) + (at[0] + i * size, at[1])
        cv2.polylines(canvas, [strokes.astype(np.int32)], bool(rng.random() < 0.3), paint, thick, cv2.LINE_AA)


def _places(rng: Generator, height: int, width: int) -> list[tuple[float, float, float]]:
    """Centres and radii of coins that touch at most: scattered, heaped or in rows."""
    typical = np.exp(rng.uniform(np.log(14), np.log(75)))
    spread = rng.choice([0.08, 0.25, 0.45])
    rows = rng.random() < 0.35
    wanted = 0 if rng.random() < 0.04 else int(rng.integers(1, 50))
    places: list[tuple[float, float, float]] = []
    step = typical * rng.uniform(2.2, 3.4)
    corners = [(x, y) for y in np.arange(step / 2, height, step) for x in np.arange(step / 2, width, step)]
    rng.shuffle(corners)
    for trial in range(min(len(corners), 2 * wanted) if rows else wanted * 3):
        radius = typical * np.clip(np.exp(spread * rng.standard_normal()), 0.4, 2.2)
        if rows:
            x, y = np.array(corners[trial]) + rng.normal(0, 0.06 * step, 2)
            radius = min(radius, 0.5 * step)
        elif places and rng.random() < 0.35:  # Against a coin that lies there already.
            x0, y0, other = places[rng.integers(len(places))]
            angle = rng.uniform(0, 2 * np.pi)
            x, y = np.array((x0, y0)) + (radius + other) * np.array((np.cos(angle), np.sin(angle)))
        else:
            x, y = rng.uniform(0, width), rng.uniform(0, height)
        slack = rng.uniform(0.94, 1.04)
        if all(np.hypot(x - px, y - py) >= slack * (radius + pr) for px, py, pr in places):
            places.append((float(x), float(y), float(radius)))
        if len(places) >= wanted and not rows:
            break
    return places


def _outline(rng: Generator, side: int, radius: float) -> np.ndarray:
    """How much of each pixel the coin covers, float32 [side, side], 0 to 1."""
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    uneven = rng.choice([0.0, 0.015, 0.04])
    reach = np.ones_like(angles)
    for order in range(2, 8):
        reach += (
            uneven / (order - 1) * rng.standard_normal() * np.cos(order * angles + rng.uniform(0, 2 * np.pi))
        )
    if rng.random() < 0.2:  # A flat or broken edge.
        reach = np.minimum(
            reach, rng.uniform(0.7, 0.95) / np.maximum(np.cos(angles - rng.uniform(0, 2 * np.pi)), 0.1)
        )
    squash, turn = rng.uniform(0.85, 1) if rng.random() < 0.5 else 1.0, rng.uniform(0, np.pi)
    x, y = reach * np.cos(angles) * squash, reach * np.sin(angles)
    points = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], 1)
    centre = (side - 1) / 2
    mask = np.zeros((side, side), np.float32)
    fixed = np.round((centre + radius * points) * 16).astype(np.int32)
    cv2.fillPoly(mask, [fixed], 1.0, cv2.LINE_8, shift=4)
    return cv2.GaussianBlur(mask, (0, 0), 0.6)


def _relief(rng: Generator, side: int, radius: float) -> np.ndarray:
    """Height of the coin's face, float32 [side, side]: rim, beads, a head or a device, letters, wear."""
    face = np.zeros((side, side), np.float32)
    centre = side // 2
    at = (centre, centre)
    thick = max(1, round(radius * 0.06))
    if rng.random() < 0.6:
        cv2.circle(face, at, round(radius * rng.uniform(0.82, 0.97)), 1.0, thick, cv2.LINE_AA)
    if rng.random() < 0.3:
        for angle in np.arange(0, 2 * np.pi, rng.uniform(0.12, 0.3)):
            bead = (centre + 0.85 * radius * np.cos(angle), centre + 0.85 * radius * np.sin(angle))
            cv2.circle(face, (round(bead[0]), round(bead[1])), max(1, thick // 2), 1.0, -1, cv2.LINE_AA)
    for _ in range(rng.integers(0, 12)):  # Limbs, hair, drapery.
        spot = (centre + rng.normal(0, 0.3 * radius, 2)).astype(int).tolist()
        axes = (radius * rng.uniform(0.04, 0.5, 2)).astype(int).tolist()
        start = rng.uniform(0, 360)
        filled = -1 if rng.random() < 0.5 else thick
        arc = start + (360 if filled < 0 else rng.uniform(60, 300))
        cv2.ellipse(
            face, spot, axes, rng.uniform(0, 180), start, arc, float(rng.uniform(0.3, 1)), filled, cv2.LINE_AA
        )
    if rng.random() < 0.4:
        size, count = radius * rng.uniform(0.2, 0.8), int(rng.integers(1, 4))
        start = (round(centre - size * count / 2), round(centre + size / 2))
        _write(rng, face, start, size, count, [0.8], thick)
    face = cv2.GaussianBlur(face, (0, 0), max(0.5, radius * rng.uniform(0.01, 0.06)))
    return face + rng.uniform(0, 0.3) * _texture(rng, side, side, 4)


def _strike(
    rng: Generator, canvas: np.ndarray, at: tuple[float, float], radius: float, *, light: float, metal: float
) -> list[float] | None:
    """Draws a coin and its shadow; returns its box inside the picture, None where most of it is outside."""
    margin = int(radius * 0.5) + 4
    side = 2 * (int(radius) + margin) + 1
    mask = _outline(rng, side, radius)
    left, top = round(at[0]) - side // 2, round(at[1]) - side // 2
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if x1 >= x2 or y1 >= y2:
        return None
    inside = np.s_[y1 - top : y2 - top, x1 - left : x2 - left]
    rows, columns = (np.flatnonzero((mask[inside] > 0.5).any(axis)) for axis in (1, 0))
    if (mask[inside] > 0.5).sum() < 0.35 * (mask > 0.5).sum():
        return None

    direction = np.array((np.cos(light), np.sin(light)), np.float32)
    height_map = _relief(rng, side, radius)
    if rng.random() < 0.7:  # The edge falls off.
        height_map += rng.uniform(0.3, 1.5) * cv2.GaussianBlur(mask, (0, 0), max(1.0, radius * 0.05))
    slope = direction[0] * cv2.Sobel(height_map, cv2.CV_32F, 1, 0) + direction[1] * cv2.Sobel(
        height_map, cv2.CV_32F, 0, 1
    )
    slope /= slope.std() + 1e-6
    stains = _texture(rng, side, side, 8)
    level = 0.12 + 0.8 * metal + rng.normal(0, 0.06)
    shade = level * (1 + rng.uniform(0.03, 0.3) * np.clip(slope, -2.5, 2.5) + rng.uniform(0, 0.15) * stains)
    tint = np.array(
        ((1, 1, 1), (0.45, 0.8, 1.05), (0.5, 0.68, 1.0))[rng.choice(3, p=(0.6, 0.2, 0.2))], np.float32
    )
    coin = np.clip(shade, 0.02, 1.3)[..., None] * tint * _colour(rng, 0.06)

    patch = canvas[y1:y2, x1:x2]
    if rng.random() < 0.7:
        offset = radius * rng.uniform(0.02, 0.2) * direction
        shadow = cv2.warpAffine(
            mask, np.array([[1, 0, offset[0]], [0, 1, offset[1]]], np.float32), (side, side)
        )
        shadow = cv2.GaussianBlur(shadow, (0, 0), max(0.8, radius * rng.uniform(0.02, 0.2)))
        patch *= 1 - rng.uniform(0.2, 0.8) * shadow[inside][..., None]
    cover = mask[inside][..., None]
    patch *= 1 - cover
    patch += cover * coin[inside]
    return [x1 + columns[0], y1 + rows[0], x1 + columns[-1] + 1, y1 + rows[-1] + 1]


def _photograph(rng: Generator, canvas: np.ndarray) -> np.ndarray:
    """Light, lens, sensor and file: float32 canvas to uint8 BGR picture of the same size."""
    height, width = canvas.shape[:2]
    light = 1 + rng.uniform(0, 0.35) * _texture(rng, height, width, max(height, width) // 2)
    picture = canvas * np.clip(light, 0.25, 2)[..., None]
    if rng.random() < 0.5:
        grey = picture @ np.array((0.114, 0.587, 0.299), np.float32)
        picture = np.repeat(grey[..., None], 3, 2)
    else:
        picture *= _colour(rng, 0.12)
    if rng.random() < 0.15:  # The plate's or the lens's round corners.
        corners = np.zeros((height, width), np.float32)
        reach = 0.5 * np.hypot(height, width) * rng.uniform(0.85, 1)
        cv2.circle(corners, (width // 2, height // 2), round(reach), 1.0, -1, cv2.LINE_AA)
        picture *= corners[..., None]
    exposure = rng.uniform(0.6, 1.15) / max(1.0, float(np.percentile(picture[::4, ::4], 97)))
    picture = np.clip(picture * exposure + rng.uniform(-0.05, 0.15), 0, 1) ** rng.uniform(0.6, 1.6)
    if rng.random() < 0.5:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.8))
    if rng.random() < 0.7:
        channels = 1 if rng.random() < 0.5 else 3
        noise = rng.standard_normal((height, width, channels), np.float32)
        picture = picture + np.float32(rng.uniform(0.005, 0.06)) * noise
    picture = (np.clip(picture, 0, 1) * 255).astype(np.uint8)
    if rng.random() < 0.6:
        encoded = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 96))))[1]
        picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    return picture
