"""A narrow network for each task of the family."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import tiny
import torch
from centernet_image.contract import TASKS

from export.checkpoint import Checkpoint
from export.detector import Detector
from export.networks import STEMS
from export.plan import feed_dicts
from export.tasks import TASKS as DECODES
from export.verify import against_pytorch

SIZE = (64, 96)


@dataclass(frozen=True)
class Network:
    """What it is for, and its heads; `seed` gives scores that differ by more than INT8 rounds."""

    task: str
    heads: dict[str, int]
    arch: str = "resdcn_18"
    stems: tuple[str, ...] = ()
    seed: int = 0


NETWORKS = {
    "keypoints": Network("keypoints", {"hm": 1, "reg": 2, "wh": 2, "hm_hp": 5, "hp_offset": 2, "hps": 10}),
    "boxes3d": Network("boxes3d", {"hm": 3, "reg": 2, "wh": 2, "dep": 1, "dim": 3, "rot": 8}),
    "boxes3d bare": Network("boxes3d", {"hm": 3, "dep": 1, "dim": 3, "rot": 8}),
    "embeddings": Network("embeddings", {"hm": 1, "reg": 2, "wh": 4, "id": 16}),
    "tracks": Network("tracks", {"hm": 2, "reg": 2, "wh": 2, "tracking": 2}, "dla_34", tuple(STEMS)),
    "landmarks": Network(
        "landmarks", {"hm": 1, "wh": 2, "hm_offset": 2, "landmarks": 8}, "mobilenetv2", seed=2
    ),
}
"""By name; the architecture matters little for most."""


def checkpoint(name: str, seed: int | None = None) -> Checkpoint:
    made = NETWORKS[name]
    seed = made.seed if seed is None else seed
    network = tiny.network(made.arch, made.heads, stems=made.stems, seed=seed)
    return Checkpoint(network, made.arch, dict(made.heads), None, "0" * 64)


def write(path: Path, name: str) -> Path:
    torch.save({"state_dict": checkpoint(name).network.state_dict()}, path)
    return path


def detector(name: str, *, top_k: int) -> Detector:
    task = NETWORKS[name].task
    kind = DECODES[task]
    return Detector(
        checkpoint(name).network,
        top_k=top_k,
        normalisation=kind.normalisation,
        color=kind.color,
        task=task,
    ).eval()


def feeds(task: str) -> dict[str, np.ndarray]:
    frame = against_pytorch.pictures(*SIZE)
    return {"frame": frame} | (feed_dicts.previous(frame) if TASKS[task].inputs else {})


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name in names:
        copy.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return copy


def drawn_person(
    person: dict, *, joint: tuple[float, float], score: float, size: tuple[int, int] = (16, 24)
) -> dict[str, np.ndarray]:
    """Heads with one person of one joint, which is regressed to the person's cell.

    Args:
        person: `place`, the column and row of its cell, and `size`, width and height of its box, in cells.
        joint: Where the joint's peak is, from there.
        score: The peak's.
        size: Height and width of the maps.
    """
    x, y = person["place"]
    heads = {
        "hm": np.full((1, 1, *size), -9, np.float32),
        "wh": np.zeros((1, 2, *size), np.float32),
        "reg": np.zeros((1, 2, *size), np.float32),
        "hps": np.zeros((1, 2, *size), np.float32),
        "hm_hp": np.full((1, 1, *size), -9, np.float32),
        "hp_offset": np.zeros((1, 2, *size), np.float32),
    }
    heads["hm"][0, 0, y, x] = 3
    heads["wh"][0, :, y, x] = person["size"]
    column, row = (int(np.floor(at + step)) for at, step in zip((x, y), joint, strict=True))
    # The sigmoid's inverse, and a little less, so that float32 does not round a score above a threshold.
    heads["hm_hp"][0, 0, row, column] = np.log(score / (1 - score)) - 1e-6
    heads["hp_offset"][0, :, row, column] = (x + joint[0] - column, y + joint[1] - row)
    return heads
