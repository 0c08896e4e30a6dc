"""Programs for each task: the network in one process, columns of Parquet, the reference."""

import json
import re

import numpy as np
import pyarrow
import pytest
import served_family as family
from centernet_image.contract import TASKS
from pictures import encode, picture
from pyarrow import parquet

from clients import CenterNetClient, batch, evaluate, local
from clients.detections import EXTRAS
from clients.shard_worker import schema

pytestmark = pytest.mark.server
CAMERA = np.array([[260, 0, 105, 40], [0, 250, 75, -0.5], [0, 0, 1, 0.005]], np.float32)
NAMES = list(family.NETWORKS)
COUNT = 5
FIXED = {"keypoints": 2, "locations": 3, "dimensions": 3}
"""Numbers of the last list of a column, where the task knows how many."""
SPOILED = {
    "keypoints": ("hps", "keypoints"),
    "boxes3d": ("dim", "dimensions"),
    "embeddings": ("id", "embeddings"),
    "landmarks": ("landmarks", "keypoints"),
}
"""Heads whose weights make another answer, and which."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of several sizes, and a camera's file."""
    made = tmp_path_factory.mktemp("pictures")
    for seed in range(COUNT):
        (made / f"{seed}.png").write_bytes(encode(picture(150 + 9 * seed, 200, seed=seed)))
    np.savetxt(made / "camera.txt", CAMERA)
    return made


@pytest.fixture
def served(request, family_server, folder):
    """What the server answers to each picture, by the picture's name."""
    camera = CAMERA if request.param == "boxes3d" else None
    with CenterNetClient(family_server.grpc_url, model=request.param, camera=camera) as client:
        found = {path.name: client.detect(path.read_bytes()) for path in sorted(folder.glob("*.png"))}
    assert sum(map(len, found.values())) > 10 * COUNT
    return request.param, found


def options(name, folder):
    return ["--camera", folder / "camera.txt"] if name == "boxes3d" else []


def run(monkeypatch, program, *arguments):
    monkeypatch.setattr("sys.argv", [program.__name__, *map(str, arguments)])
    return program.main()


def assert_alike(one, other):
    assert (one.labels, one.extras.keys()) == (other.labels, other.extras.keys())
    for name, values in {"xyxy": other.xyxy, "scores": other.scores, **other.extras}.items():
        mine = getattr(one, name)
        assert mine.dtype == values.dtype
        np.testing.assert_allclose(mine, values, rtol=1e-3, atol=2e-3, err_msg=name)


@pytest.mark.parametrize("served", NAMES, indirect=True)
def test_one_process_answers_what_the_server_does(served, networks, folder):
    name, found = served
    detector = local.of_file(networks[name], camera=CAMERA if name == "boxes3d" else None)
    contents = [(folder / each).read_bytes() for each in found]
    for one, other in zip(detector.detect_each(contents), found.values(), strict=True):
        assert_alike(one, other)


@pytest.mark.parametrize("name", TASKS)
def test_columns_of_each_task(name):
    extras = [extra for extra, tensor in EXTRAS.items() if tensor in TASKS[name].answers]
    assert extras or name == "detect"
    made = schema(extras)
    assert set(made.names) == {"name", "num", "boxes", "scores", "class_ids", "labels", "error", *extras}
    for extra in extras:
        kind, sides = made.field(extra).type, len(EXTRAS[extra].shape)
        for side in range(sides):
            fixed = side == sides - 1 and extra in FIXED
            assert pyarrow.types.is_fixed_size_list(kind) == fixed, extra
            assert not fixed or kind.list_size == FIXED[extra]
            kind = kind.value_type
        assert kind == (pyarrow.int32() if extra == "tracks" else pyarrow.float32())


@pytest.mark.parametrize(
    ("served", "by_network"),
    [pytest.param("keypoints", False, marks=pytest.mark.wide), ("boxes3d", True)],
    indirect=["served"],
)
def test_parquet_has_what_the_model_answers(
    served, by_network, networks, family_server, folder, tmp_path, monkeypatch
):
    name, found = served
    (tmp_path / "bad.png").write_bytes(b"no picture")
    source = (
        ["--network", networks[name]] if by_network else ["--url", family_server.grpc_url, "--model", name]
    )
    inputs = [folder, tmp_path / "bad.png", tmp_path / "out"]
    assert run(monkeypatch, batch, *inputs, *source, *options(name, folder), "--workers", 1) == 0
    rows = parquet.read_table(tmp_path / "out" / "part-00000.parquet").to_pylist()
    assert len(rows) == COUNT + 1
    extras = next(iter(found.values())).extras
    assert extras
    for row in rows:
        picture_name = row["name"].rpartition("/")[2]
        if picture_name == "bad.png":
            assert row["error"]
            assert all(row[extra] is None for extra in extras)
            continue
        expected = found[picture_name]
        assert row["num"] == len(expected)
        for extra, values in expected.extras.items():
            mine = np.array(row[extra], np.float32).reshape(values.shape)
            np.testing.assert_allclose(mine, values, rtol=1e-3, atol=2e-3, err_msg=extra)


def test_a_camera_that_is_missing_ends_a_run_before_it_begins(networks, folder, tmp_path, monkeypatch, capfd):
    words = [folder, tmp_path / "out", "--network", networks["boxes3d"]]
    assert run(monkeypatch, batch, *words) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert "expected the camera's projection (--camera)" in line
    assert not list((tmp_path / "out").glob("part-*"))


@pytest.mark.parametrize(
    ("served", "spoiled"),
    [(name, False) for name in NAMES] + [(name, True) for name in SPOILED],
    indirect=["served"],
)
def test_the_reference_is_compared_in_all_that_it_answers(
    served, spoiled, networks, family_server, folder, tmp_path, monkeypatch, capfd
):
    """Beside its own checkpoint the server differs by rounding; beside one with another head, in that."""
    import torch

    name, found = served
    content = {
        "images": [{"id": number, "file_name": each} for number, each in enumerate(found, 1)],
        "categories": [
            {"id": number, "name": label}
            for number, label in enumerate(
                json.loads(networks[name].with_suffix(".json").read_text())["classes"]
            )
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 0, "bbox": [1, 1, 20, 20], "area": 400, "iscrowd": 0}
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    checkpoint = family.write_checkpoint(name, tmp_path / "x.pth")
    if spoiled:
        head, _ = SPOILED[name]
        state = torch.load(checkpoint, weights_only=True)["state_dict"]
        last = [key for key in state if key.startswith(f"{head}.")][-2:]
        for key in last:
            state[key] *= torch.linspace(0.5, 1.5, len(state[key])).view(-1, *[1] * (state[key].dim() - 1))
        torch.save({"state_dict": state}, checkpoint)
    words = ["--annotations", tmp_path / "a.json", "--images", folder, "--output", tmp_path / "out.json"]
    words += ["--url", family_server.grpc_url, "--model", name, "--reference", checkpoint, "--threshold", 0.3]
    assert run(monkeypatch, evaluate, *words, *options(name, folder)) == 0
    output = capfd.readouterr()
    assert output.err == ""
    rows = {line.split()[0]: line.split() for line in output.out.splitlines() if line.strip()}
    answered = next(iter(found.values())).extras.keys() - {"tracks"}
    assert {"server", "PyTorch", *answered} <= rows.keys()
    for answer in answered:
        *_, count, _, _, largest = rows[answer]
        assert int(count) > 10
        if not spoiled:
            assert float(largest) < 0.01
    if spoiled:
        assert float(rows[SPOILED[name][1]][-1]) > 0.01
    elif answered:
        alone, of = map(
            int, re.search(r"(\d+) of (\d+) without a counterpart", " ".join(output.out.split())).groups()
        )
        assert alone <= 0.05 * of
