"""Clients of networks that answer more than boxes: a real server, whose model answers what it was given."""

import json
from collections.abc import Callable
from pathlib import Path

import clips
import cv2
import fixed_answers
import numpy as np
import pytest
from gateway import running
from pictures import encode, picture
from protocols import PROTOCOLS

from clients import CenterNetClient, RejectedError, detect, evaluate

pytestmark = pytest.mark.server

PLAIN = encode(picture(120, 160))
POINTS = np.random.default_rng(0).uniform(15, 60, (2, 17, 2)).astype(np.float32)
EMBEDDINGS = np.eye(2, 8, dtype=np.float32)
CAMERA = np.array([[100, 0, 80, 0.25], [0, 100, 60, 0], [0, 0, 1, 0]], np.float32)
BOXES_3D = {
    "detection_locations": np.array([[-2, 1, 10], [2, 1, 10]], np.float32),
    "detection_dimensions": np.array([[1.5, 1.6, 4], [1.7, 0.6, 0.8]], np.float32),
    "detection_rotations": np.array([0, 1], np.float32),
}


@pytest.fixture(scope="module")
def family_server(serve, tmp_path_factory: pytest.TempPathFactory):
    repository = tmp_path_factory.mktemp("family")
    fixed_answers.make(repository, "keypoints", {"detection_keypoints": POINTS})
    fixed_answers.make(repository, "keypoints", {"detection_keypoints": POINTS}, name="keypoints_network")
    fixed_answers.make(repository, "boxes3d", BOXES_3D)
    fixed_answers.make(repository, "embeddings", {"detection_embeddings": EMBEDDINGS})
    fixed_answers.make(repository, "tracks", {"detection_tracks": np.array([0, 100], np.int32)})
    return serve(repository)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, family_server) -> Callable[..., int]:
    """Runs a program's `main` in this process."""

    def run(program, model: str, *arguments: object) -> int:
        words = [program.__name__, *map(str, arguments), "--model", model, "--url", family_server.grpc_url]
        monkeypatch.setattr("sys.argv", words)
        return program.main()

    return run


@pytest.fixture
def camera_file(tmp_path: Path) -> Path:
    path = tmp_path / "calib.txt"
    words = " ".join(map(str, CAMERA.ravel()))
    path.write_text(f"P1: {' '.join(['7'] * 12)}\nP2: {words}\nR0_rect: 1 0 0\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("memory", ["none", "system"])
def test_a_client_carries_what_the_model_answers(family_server, protocol: str, memory: str) -> None:
    url = getattr(family_server, f"{protocol}_url")

    def detected(model: str, given: object = PLAIN, **options: object):
        with CenterNetClient(url, protocol=protocol, model=model, shared_memory=memory) as client:
            return client.detect(given, **options)

    np.testing.assert_array_equal(detected("keypoints").keypoints, POINTS)
    # Pixels are encoded: there is no ensemble for frames.
    found = detected("embeddings", picture(40, 50))
    np.testing.assert_array_equal(found.embeddings, EMBEDDINGS)
    assert set(found.extras) == {"embeddings"}
    found = detected("boxes3d", camera=CAMERA)
    np.testing.assert_array_equal(found.locations, BOXES_3D["detection_locations"])
    np.testing.assert_array_equal(found.dimensions, BOXES_3D["detection_dimensions"])
    np.testing.assert_array_equal(found.rotations, [0.25, 1.25])
    found = detected("tracks")
    assert found.tracks.tolist() == [0, 100]
    assert found.labels == ("last", "last")
    with pytest.raises(RejectedError, match="expected the camera"):
        detected("boxes3d")
    with pytest.raises(RejectedError, match="leave the camera out"):
        detected("keypoints", camera=CAMERA)


def test_pictures_with_key_points(run, tmp_path: Path) -> None:
    path, out = tmp_path / "000042.png", tmp_path / "out"
    path.write_bytes(PLAIN)
    results = tmp_path / "list.json"
    assert run(detect, "keypoints", path, "--json", results, "--output-dir", out) == 0
    (entry,) = json.loads(results.read_text())
    for one, points in zip(entry["detections"], POINTS, strict=True):
        np.testing.assert_allclose(one["keypoints"], points, atol=0.006)
    assert run(detect, "keypoints", path, "--json", results, "--json-format", "coco") == 0
    for row, points in zip(json.loads(results.read_text()), POINTS, strict=True):
        assert row["image_id"] == 42
        triples = np.reshape(row["keypoints"], (17, 3))
        np.testing.assert_allclose(triples[:, :2], points, rtol=1e-6)
        assert (triples[:, 2] == 1).all()
    drawing = cv2.imread(str(out / path.name))
    plain = cv2.resize(picture(120, 160), drawing.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    changed = np.abs(drawing.astype(int) - plain).max(axis=-1) > 30
    factor = drawing.shape[0] // 120
    x, y = (POINTS[0] * factor).astype(int).T
    assert changed[y, x].mean() > 0.9


def test_pictures_with_3d_boxes(run, camera_file: Path, capsys, tmp_path: Path) -> None:
    path, results = tmp_path / "a.png", tmp_path / "list.json"
    path.write_bytes(PLAIN)
    assert run(detect, "boxes3d", path, "--camera", camera_file, "--json", results) == 0
    one, _ = json.loads(results.read_text())[0]["detections"]
    assert (one["location"], one["dimensions"], one["rotation"]) == ([-2, 1, 10], [1.5, 1.6, 4], 0.25)
    capsys.readouterr()
    assert run(detect, "boxes3d", path) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("model 'boxes3d' answers 3-D boxes, expected the camera's projection (--camera)")


def test_each_video_is_a_sequence(run, tmp_path: Path) -> None:
    """Its frames come in order, one by one, from its first to its last, whatever comes between."""
    paths = [clips.write(tmp_path / f"{frames}.avi", frames, "MJPG") for frames in (9, 5)]
    results = tmp_path / "out.jsonl"
    assert run(detect, "tracks", *paths, "--json", results, "--track") == 0
    for path, frames in zip(paths, (9, 5), strict=True):
        entries = [json.loads(line) for line in results.read_text().splitlines()]
        own = [entry for entry in entries if entry["image"] == str(path)]
        found = [[one["track"] for one in entry["detections"]] for entry in own]
        assert found == [[number, 100 + number] for number in range(frames)]
        labels = [entry["detections"][0]["label"] for entry in own]
        assert labels == ["one"] * (frames - 1) + ["last"]


def test_a_sequence_that_the_server_has_not_begins_anew(family_server) -> None:
    from clients.tensors import Step

    with CenterNetClient(family_server.grpc_url, model="tracks") as client:
        steps = [Step(7, start=False, end=False), Step(7, start=False, end=True)]
        assert [client.detect(PLAIN, step=step).tracks[0] for step in steps] == [0, 1]


def test_evaluation_of_key_points(run, capsys, tmp_path: Path) -> None:
    """One person is where the model says, the other half a picture away: boxes 1, key points 0.5."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(PLAIN)
    boxes = fixed_answers.ANSWERS["detection_boxes"]
    annotations = [
        {
            "image_id": 1,
            "category_id": number + 1,
            "bbox": [*map(float, box[:2]), *map(float, box[2:] - box[:2])],
            "keypoints": (points + 80 * number).ravel().tolist(),
        }
        for number, (box, points) in enumerate(zip(boxes, POINTS, strict=True))
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
        "annotations": annotations,
    }
    path = tmp_path / "keypoints.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    options = ("--annotations", path, "--images", images, "--output", tmp_path / "out.json")
    assert run(evaluate, "keypoints", *options) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "server" in line]
    assert [row[1] for row in rows] == ["1.0000", "0.5000"]


def test_the_page_shows_key_points(family_server, browser, files: Path) -> None:
    from page import Page

    with running(family_server.grpc_url, "--model", "keypoints") as gateway:
        answer = gateway.ask("/detect", PLAIN).json
        found = [one["keypoints"] for one in answer["detections"]]
        np.testing.assert_allclose(found, POINTS, atol=0.006)
        assert gateway.ask("/detect?draw=1", PLAIN).headers["content-type"] == "image/png"
        page = Page(browser, gateway, files)
        (files / "plain.png").write_bytes(PLAIN)
        page.choose("plain.png")
        page.wait(page.boxes)
        picture_left, scale = browser.execute_script(
            "const place = document.getElementById('picture').getBoundingClientRect();"
            "return [place.left, place.width / 160]"
        )
        for box, points in zip(page.boxes(), POINTS, strict=True):
            joints = box.find_elements("css selector", "i")
            middles = [joint.rect["x"] + joint.rect["width"] / 2 for joint in joints]
            np.testing.assert_allclose((np.array(middles) - picture_left) / scale, points[:, 0], atol=2)
        assert page.complaints() == []


def test_the_page_places_boxes_in_space(family_server, camera_file: Path) -> None:
    with running(family_server.grpc_url, "--model", "boxes3d", "--camera", str(camera_file)) as gateway:
        assert gateway.ask("/health").status == 200
        found = gateway.ask("/detect", PLAIN).json["detections"]
        assert [one["location"] for one in found] == BOXES_3D["detection_locations"].tolist()
        assert gateway.ask("/detect?draw=1", PLAIN).status == 200
    with running(family_server.grpc_url, "--model", "boxes3d") as gateway:
        answer = gateway.ask("/detect", PLAIN)
        assert answer.status == 502
        assert "--camera" in answer.json["error"]
