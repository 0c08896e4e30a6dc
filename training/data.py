"""Training samples: pictures and their boxes, changed at random, as frames and targets."""

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.random import Generator
from torch.utils.data import Dataset

from clients import annotations as coco
from export import labels
from training import scenes
from training.targets import make_targets

Labelled = tuple[np.ndarray, np.ndarray, np.ndarray]
"""BGR uint8 [H, W, 3], boxes x1 y1 x2 y2 [N, 4] in its pixels, classes [N]."""

VISIBLE = 0.3
"""Share of a box that must lie in the frame for the object to be learnt."""


class Source(Protocol):
    """Where labelled pictures come from."""

    classes: tuple[str, ...]
    left_out: str

    def sample(self, seed: int, number: int) -> Labelled:
        """The `number`th picture of a run with this seed."""


class Coins:
    """Drawn scenes, a new one each time."""

    classes = scenes.CLASSES
    left_out = ""

    def sample(self, seed: int, number: int) -> Labelled:
        """See `Source`."""
        return scenes.scene(np.random.default_rng((seed, number)))


class CocoPictures:
    """A set with annotations in COCO form; in each epoch every picture once, shuffled.

    `left_out` says which annotations do not count, as in `clients.annotations`.

    Raises:
        CenterNetError: The file cannot be read or has another form.
        UsageError: A category has no name.
        ValueError: It has no picture with a box, or names a picture that the folder lacks.
    """

    def __init__(self, annotations: Path, images: Path):
        content = coco.load(annotations)
        self.left_out = content["left_out"]
        categories = sorted(content["categories"], key=lambda category: coco.numbers_first(category["id"]))
        names = [category["name"] for category in categories]
        self.classes = tuple(labels.check(names, where=f"{annotations}: categories"))
        position = {category["id"]: i for i, category in enumerate(categories)}
        boxes: dict[coco.Id, list] = {image["id"]: [] for image in content["images"]}
        for a in content["annotations"]:
            if not a["iscrowd"]:
                boxes[a["image_id"]].append((*a["bbox"], position[a["category_id"]]))
        self._items = []
        for image in content["images"]:
            name = str(image.get("file_name"))
            path = coco.locate(images, name)
            if not path.is_file():
                raise ValueError(f"{annotations} names {name}, which {images} lacks")
            rows = np.array(boxes[image["id"]], np.float32).reshape(-1, 5)
            rows[:, 2:4] += rows[:, :2]
            self._items.append((path, rows[:, :4], rows[:, 4].astype(np.int64)))
        if not any(len(item[1]) for item in self._items):
            raise ValueError(f"{annotations} has no picture with a box")

    def sample(self, seed: int, number: int) -> Labelled:
        """See `Source`."""
        epoch, position = divmod(number, len(self._items))
        path, boxes, classes = self._items[_permutation(len(self._items), seed, epoch)[position]]
        try:
            picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        except cv2.error as error:  # it has too many pixels
            raise ValueError(f"{path} cannot be read: {error.err}") from error
        if picture is None:
            raise ValueError(f"{path} is not a picture")
        return picture, boxes, classes


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


class Samples(Dataset):
    """All samples of a training run, in order: each is decided by the seed and its number alone.

    Args:
        source: Of the pictures.
        seed: Of the run.
        count: Samples in the run.
        size: Height and width of the network's frames.
        crop: Sides of windows at random in those frames, to train on in their place: less work each.
        any_way_up: Whether a picture upside down or turned by a quarter is as likely as the picture itself:
            so it is with coins and cells, not with streets.
    """

    def __init__(
        self,
        source: Source,
        *,
        seed: int,
        count: int,
        size: tuple[int, int],
        any_way_up: bool,
        crop: int | None = None,
    ):
        self._source, self._seed, self._count = source, seed, count
        self._size, self._any_way_up, self._crop = size, any_way_up, crop

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        """A frame or a window in it, BGR uint8 [H, W, 3], and the fields of its `Targets`."""
        picture, boxes, classes = self._source.sample(self._seed, number)
        rng = np.random.default_rng((self._seed, number, 1))
        matrix = random_warp(rng, picture.shape[:2], self._size, any_way_up=self._any_way_up)
        size = self._size
        if self._crop:
            matrix[:, 2] -= rng.uniform(0, np.array(size[::-1]) - self._crop)
            size = (self._crop, self._crop)
        frame = cv2.warpAffine(picture, matrix, size[::-1], flags=cv2.INTER_LINEAR)
        boxes, kept = warp_boxes(boxes, matrix, size)
        targets = make_targets(boxes[kept], classes[kept], num_classes=len(self._source.classes), size=size)
        return {"frame": random_colour(rng, frame), **asdict(targets)}


def random_warp(
    rng: Generator, picture_size: tuple[int, int], frame_size: tuple[int, int], *, any_way_up: bool
) -> np.ndarray:
    """CenterNet's warp changed by a random scale, shift and flip: [2, 3], picture to frame."""
    (h, w), (height, width) = picture_size, frame_size
    scale = min(width / w, height / h) * np.exp(rng.uniform(-0.5, 0.4))
    linear = scale * np.diag((rng.choice((-1.0, 1.0)), rng.choice((-1.0, 1.0)) if any_way_up else 1.0))
    if any_way_up and rng.random() < 0.5:
        linear = linear[::-1]
    # Shifts keep most of the picture, or of what the frame shows of it, in sight.
    frame = np.array((width, height))
    reach = 0.5 * np.abs(frame - np.abs(linear) @ (w, h)) + 0.1 * frame
    centre = frame / 2 + rng.uniform(-1, 1, 2) * reach
    return np.column_stack([linear, centre - linear @ (w / 2, h / 2)])


def warp_boxes(boxes: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in the frame, cut to it [N, 4], and which of them are visible enough to be learnt [N]."""
    corners = boxes.reshape(-1, 2, 2) @ matrix[:, :2].T + matrix[:, 2]
    whole = np.concatenate([corners.min(1), corners.max(1)], 1)
    cut = whole.clip(0, (size[1], size[0]) * 2)
    area, seen = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (whole, cut))
    return cut.astype(np.float32), (seen > VISIBLE * area) & ((cut[:, 2:] - cut[:, :2]).min(1) > 1)


def random_colour(rng: Generator, frame: np.ndarray) -> np.ndarray:
    """Another camera's contrast, brightness, gamma, white balance and saturation; BGR uint8 [H, W, 3]."""
    levels = np.linspace(0, 1, 256)[:, None] ** np.exp(rng.uniform(-0.25, 0.25))
    levels = (levels - 0.5) * rng.uniform(0.75, 1.25) + 0.5 + rng.uniform(-0.1, 0.1)
    table = np.clip(255 * levels * rng.uniform(0.92, 1.08, 3), 0, 255).astype(np.uint8)
    grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    share = rng.uniform(0.6, 1.3)
    # The frame's black outside stays black: so it is when the network is used.
    outside = ~frame.any(2)
    changed = cv2.LUT(cv2.addWeighted(frame, share, grey, 1 - share, 0), table[None])
    changed[outside] = 0
    return changed
