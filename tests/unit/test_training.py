"""Targets and losses against their definitions, and a training run that is as short as can be."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from export import checkpoint
from export.errors import ExportError
from export.networks.dcn import DCN
from export.tasks.detect import Detect
from training import train
from training.data import Coins
from training.losses import WH_WEIGHT, centernet_loss, focal_loss
from training.sampled_dcn import use_grid_sample
from training.targets import MAX_OBJECTS, gaussian_radius, make_targets

SIZE = (128, 192)
BOXES = np.array([[8, 8, 40, 56], [90, 30, 171, 101], [0, 100, 30, 128]], np.float32)
CLASSES = np.array([1, 0, 1])


@pytest.fixture
def targets():
    return make_targets(BOXES, CLASSES, num_classes=2, size=SIZE)


def as_heads(targets):
    """Heads that say exactly what the targets say."""
    height, width = targets.hm.shape[1:]
    heads = {"hm": torch.logit(torch.from_numpy(targets.hm)[None], 1e-6)}
    for name in ("reg", "wh"):
        dense = np.zeros((2, height * width), np.float32)
        count = int(targets.valid.sum())
        dense[:, targets.index[:count]] = getattr(targets, name)[:count].T
        heads[name] = torch.from_numpy(dense.reshape(1, 2, height, width))
    return heads


def batch(targets):
    return {name: torch.from_numpy(value)[None] for name, value in asdict(targets).items()}


def test_decoded_targets_are_the_boxes(targets):
    """What the network learns is what the served graph decodes."""
    heads = as_heads(targets)
    boxes, scores, classes = Detect(len(BOXES))(heads)
    assert (scores > 0.99).all()
    order = np.lexsort((boxes[0, :, 0].numpy(),))
    expected = np.lexsort((BOXES[:, 0],))
    np.testing.assert_allclose(boxes[0].numpy()[order], BOXES[expected], atol=1e-4)
    np.testing.assert_array_equal(classes[0].numpy()[order], CLASSES[expected])


def test_heat_map_is_the_highest_of_the_gaussians(targets):
    expected = np.zeros_like(targets.hm)
    for (x1, y1, x2, y2), kind in zip(BOXES / 4, CLASSES, strict=True):
        radius = int(gaussian_radius(x2 - x1, y2 - y1))
        deviation = (2 * radius + 1) / 6
        cx, cy = int((x1 + x2) / 2), int((y1 + y2) / 2)
        for y in range(expected.shape[1]):
            for x in range(expected.shape[2]):
                if abs(x - cx) <= radius and abs(y - cy) <= radius:
                    value = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * deviation**2))
                    expected[kind, y, x] = max(expected[kind, y, x], value)
    np.testing.assert_allclose(targets.hm, expected, atol=1e-6)
    assert (targets.hm == 1).sum() == len(BOXES)


def test_too_many_objects_are_dropped():
    boxes = np.tile(BOXES[:1], (MAX_OBJECTS + 5, 1))
    targets = make_targets(boxes, np.zeros(len(boxes), int), num_classes=1, size=SIZE)
    assert targets.valid.all()
    none = make_targets(np.zeros((0, 4)), np.zeros(0, int), num_classes=1, size=SIZE)
    assert not none.valid.any()
    assert not none.hm.any()


def test_focal_loss_is_the_papers():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 0.99, (2, 3, 4, 5))
    truth[0, 1, 2, 3] = truth[1, 2, 0, 0] = 1
    logits = rng.normal(0, 2, truth.shape)
    total = 0.0
    for y, x in zip(truth.ravel(), logits.ravel(), strict=True):
        p = 1 / (1 + np.exp(-x))
        total -= (1 - p) ** 2 * np.log(p) if y == 1 else (1 - y) ** 4 * p**2 * np.log(1 - p)
    found = focal_loss(torch.from_numpy(logits), torch.from_numpy(truth))
    assert found.item() == pytest.approx(total / 2, rel=1e-5)


def test_size_losses_are_means_over_objects(targets):
    heads = as_heads(targets)
    losses = centernet_loss(heads, batch(targets))
    assert losses["reg"].item() == pytest.approx(0, abs=1e-6)
    assert losses["wh"].item() == pytest.approx(0, abs=1e-6)
    heads["wh"] += 2
    heads["reg"] -= 0.25
    losses = centernet_loss(heads, batch(targets))
    assert losses["wh"].item() == pytest.approx(4)
    assert losses["reg"].item() == pytest.approx(0.5)
    parts = losses["hm"] + losses["reg"] + WH_WEIGHT * losses["wh"]
    assert losses["total"].item() == pytest.approx(parts.item())


def test_a_picture_without_objects_has_a_finite_loss():
    empty = make_targets(np.zeros((0, 4)), np.zeros(0, int), num_classes=2, size=SIZE)
    losses = centernet_loss(as_heads(empty), batch(empty))
    assert all(torch.isfinite(value) for value in losses.values())
    assert losses["wh"].item() == 0


def short_run(**changed):
    arguments = {
        "arch": "resdcn_18",
        "width": 0.125,
        "any_way_up": True,
        "iterations": 2,
        "batch_size": 1,
        "learning_rate": 1e-3,
        "ema_decay": 0.98,
        "seed": 1,
        "device": "cpu",
        "workers": 0,
    }
    return train.train(Coins(), **{**arguments, **changed})


def test_the_same_seed_trains_the_same_network():
    first, again, other = short_run(), short_run(), short_run(seed=2)
    assert first["classes"] == ["coin"]
    names = [name for name, value in first["state_dict"].items() if value.ndim > 1]
    assert all(torch.equal(first["state_dict"][name], again["state_dict"][name]) for name in names)
    assert any(not torch.equal(first["state_dict"][name], other["state_dict"][name]) for name in names)


def test_a_step_lowers_the_loss():
    torch.manual_seed(0)
    network = train.create("resdcn_18", {"hm": 1, "wh": 2, "reg": 2}, width=0.125)
    samples = train.Samples(Coins(), seed=1, count=1, size=SIZE, any_way_up=True)
    sample = {name: torch.from_numpy(value)[None] for name, value in samples[0].items()}
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    losses = [train._step(network, optimizer, sample)["total"].item() for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["training.train", *map(str, arguments)])
    return train.main()


def test_command_writes_what_the_exporter_reads(monkeypatch, tmp_path):
    output = tmp_path / "coins.pth"
    options = ["--width", 0.125, "--iterations", 1, "--batch-size", 1, "--workers", 0, "--device", "cpu"]
    assert run(monkeypatch, output, *options) == 0
    loaded = checkpoint.load(output)
    assert loaded.arch == "resdcn_18"
    assert loaded.heads == {"hm": 1, "reg": 2, "wh": 2}
    assert loaded.classes == ["coin"]
    assert [path.name for path in tmp_path.iterdir()] == ["coins.pth"]


def test_command_refusals(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, tmp_path / "x.pth", "--coco", "train.json")
    assert exit_.value.code == 2
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path / "nowhere" / "x.pth")
    assert "no such folder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path / "x.pth", "--ema-decay", "nan")
    assert "--ema-decay: found nan, expected 0 or more, less than 1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path / "x.pth", "--crop", 100)
    assert "found 100, expected a multiple of 32 up to 512" in capsys.readouterr().err
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert run(monkeypatch, tmp_path / "x.pth", "--coco", other, "--images", tmp_path) == 1
    assert "is no COCO annotation file, expected 'images' and 'categories'" in capsys.readouterr().err
    other.unlink()
    assert run(monkeypatch, tmp_path / "x.pth", "--coco", tmp_path / "no.json", "--images", tmp_path) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("training.train: ")
    assert not list(tmp_path.iterdir())


SHORT = ("--width", 0.125, "--iterations", 1, "--batch-size", 1, "--device", "cpu", "--crop", 64)


def test_a_diverged_training_writes_nothing(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path / "x.pth", *SHORT, "--workers", 0, "--learning-rate", 1e30) == 1
    assert "weight is not finite after 1 iterations: the training diverged: lower" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_diverged_training_ends_early(monkeypatch):
    monkeypatch.setattr(train, "_step", lambda *_: {"total": torch.tensor(float("nan"))})
    with pytest.raises(ExportError, match="the loss is not finite after 20 iterations"):
        short_run(iterations=40, crop=64)


def test_a_picture_that_is_none_is_one_line(tmp_path):
    """In a process of its own, for those that read are forked from it."""
    (tmp_path / "0.png").write_text("no picture")
    annotations = [{"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4]}]
    images, categories = [{"id": 0, "file_name": "0.png"}], [{"id": 1, "name": "a"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content))
    options = ["--coco", path, "--images", tmp_path, "--workers", 1]
    command = [sys.executable, "-m", "training.train", tmp_path / "x.pth", *map(str, (*SHORT, *options))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 1
    assert done.stderr.endswith(f"training.train: {tmp_path / '0.png'} is not a picture\n")
    assert "Traceback" not in done.stderr


def test_sampled_dcn_is_a_dcn():
    torch.manual_seed(0)
    layer = DCN(6, 5)
    torch.nn.init.normal_(layer.conv_offset_mask.weight, std=0.3)
    x = torch.randn(2, 6, 9, 7, requires_grad=True)
    results = []
    for change in (lambda _: None, use_grid_sample):
        change(layer)
        for tensor in (x, *layer.parameters()):
            tensor.grad = None
        output = layer(x)
        output.square().sum().backward()
        results.append([output.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
