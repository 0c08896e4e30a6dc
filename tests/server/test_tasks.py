"""Every task of the family through the real server, from what `export.to_repository` writes."""

import re
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import served_family as family
import torch
import tritonclient.grpc as grpc
from centernet_image.contract import TASKS
from centernet_image.geometry import frame_transform, warp
from pictures import encode, picture
from protocols import INVALID, PROTOCOLS, images, infer
from tritonclient.utils import InferenceServerException

from clients import CenterNetClient, RejectedError, RetryPolicy

pytestmark = pytest.mark.server
ALL = {"score_threshold": 0.0}
IMAGE_SIZE = (150, 200)
CAMERA = np.array([[[260, 0, 105, 40], [0, 250, 75, -0.5], [0, 0, 1, 0.005]]], np.float32)
NAMES = list(family.NETWORKS)
FRAMES = [np.roll(picture(*IMAGE_SIZE, seed=5), (2 * n, -5 * n), axis=(0, 1)) for n in range(4)]


def request(name, pictures):
    camera = {"camera": CAMERA.repeat(len(pictures), 0)} if name == "boxes3d" else {}
    return images([encode(each) for each in pictures]) | camera


def to_picture(points, fit):
    matrix = frame_transform(IMAGE_SIZE, family.SIZE, fit)
    return (np.asarray(points, float).reshape(-1, 2) - matrix[:, 2]) / matrix[[0, 1], [0, 1]]


def expected_answers(name, peaks, fit):
    if name in ("keypoints", "landmarks"):
        return {"keypoints": to_picture(peaks["keypoints"], fit).reshape(peaks["keypoints"].shape)}
    if name == "embeddings":
        return {"embeddings": peaks["embeddings"]}
    locations, rotations = [], []
    p = CAMERA[0].astype(float)
    for (u, v), depth, alpha, (height, _, _) in zip(
        to_picture(peaks["centers"], fit), peaks["depths"], peaks["alphas"], peaks["dimensions"], strict=True
    ):
        z = depth - p[2, 3]
        x = (u * depth - p[0, 3] - p[0, 2] * z) / p[0, 0]
        y = (v * depth - p[1, 3] - p[1, 2] * z) / p[1, 1] + height / 2
        locations.append((x, y, z))
        turn = alpha + np.arctan2(u - p[0, 2], p[0, 0])
        rotations.append(turn - 2 * np.pi if turn > np.pi else turn + 2 * np.pi if turn < -np.pi else turn)
    return {"locations": locations, "dimensions": peaks["dimensions"], "rotations": rotations}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "tracks"])
def test_the_servers_answers_are_the_networks(family_server, networks, name):
    """Two pictures in one request, against ONNX Runtime and plain arithmetic."""
    fit = TASKS[name].fit
    pictures = [picture(*IMAGE_SIZE, seed=seed) for seed in (1, 2)]
    found = infer(family_server, "grpc", name, request(name, pictures), ALL)
    assert found["num_detections"].tolist() == [[family.TOP_K]] * 2
    for index, image in enumerate(pictures):
        peaks = family.run(networks[name], warp(image, family.SIZE, fit=fit))
        answers = expected_answers(name, peaks, fit) | {
            "scores": peaks["scores"],
            "classes": peaks["classes"],
        }
        if name != "boxes3d":
            answers["boxes"] = to_picture(peaks["boxes"], fit).reshape(-1, 4)
        for answer, values in answers.items():
            np.testing.assert_allclose(
                found[f"detection_{answer}"][index], values, rtol=1e-4, atol=2e-3, err_msg=answer
            )
    if name == "boxes3d":  # Without `wh`: around what the camera sees of each.
        boxes = found["detection_boxes"]
        assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_persons_and_helmets(family_server):
    """A MobileNetV2 of the two classes, on pixels as its trainer normalised them."""
    image = picture(*IMAGE_SIZE, seed=1)
    found = infer(family_server, "grpc", "helmets", request("helmets", [image]), ALL)
    pixels = (warp(image, family.SIZE) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.inference_mode():
        heat = family.helmets()(torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float())["hm"].sigmoid()
    for index, name in enumerate((b"person", b"helmet")):
        own = found["detection_labels"][0] == name
        assert set(found["detection_classes"][0][own]) == {index}
        assert found["detection_scores"][0][own].max() == pytest.approx(heat[0, index].max().item(), abs=1e-4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_rows_below_the_threshold_are_empty(family_server, protocol):
    threshold = float(
        np.median(
            infer(family_server, protocol, "keypoints", request("keypoints", FRAMES[:1]), ALL)[
                "detection_scores"
            ]
        )
    )
    found = infer(
        family_server, protocol, "keypoints", request("keypoints", FRAMES[:1]), {"score_threshold": threshold}
    )
    count = int(found["num_detections"].item())
    assert 0 < count < family.TOP_K
    assert found["detection_keypoints"][0, :count].all()
    assert not found["detection_keypoints"][0, count:].any()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_camera_that_projects_nothing_is_the_requests_own_error(family_server, protocol):
    wrong = request("boxes3d", FRAMES[:1]) | {"camera": np.zeros((1, 3, 4), np.float32)}
    with pytest.raises(InferenceServerException, match=r"camera: found .*focal lengths above 0") as raised:
        infer(family_server, protocol, "boxes3d", wrong)
    assert raised.value.status() == INVALID[protocol]


def send(server, frames, *, model="tracks", sequence=1, protocol="grpc", start=True, end=True):
    """The answers to the frames of one stream, one after the other."""
    return [
        infer(
            server,
            protocol,
            model,
            images([encode(frame)]),
            ALL,
            sequence_id=sequence,
            sequence_start=start and n == 0,
            sequence_end=end and n == len(frames) - 1,
        )
        for n, frame in enumerate(frames)
    ]


def wait_for(server, count, model="tracks"):
    """Waits until the server says that it keeps so many streams."""
    end = time.monotonic() + 120
    found = None
    while found != count and time.monotonic() < end:
        with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as answer:
            text = answer.read().decode()
        found = float(re.search(rf'^centernet_streams\{{model="{model}"\}} (\S+)', text, re.M)[1])
        time.sleep(0.1)
    assert found == count


@pytest.fixture(scope="module")
def tracked(networks):
    """By ONNX Runtime and plain loops: each frame's boxes in the picture, classes and identities."""
    fit = TASKS["tracks"].fit
    frames = [warp(frame, family.SIZE, fit=fit) for frame in FRAMES]
    heat, count = np.zeros(family.SIZE, np.float32), 0
    before = {name: np.zeros((0, 4)) for name in ("boxes", "centers", "classes")} | {"ids": []}
    answers = []
    for n, frame in enumerate(frames):
        peaks = family.run(
            networks["tracks"], frame, previous_frame=frames[max(n - 1, 0)], previous_heat=heat
        )
        ids = family.naive_ids(peaks, before, count)
        before, count = peaks | {"ids": ids}, max(count, *ids)
        heat = family.naive_heat(peaks["boxes"].tolist(), family.SIZE).astype(np.float32)
        answers.append((to_picture(peaks["boxes"], fit).reshape(-1, 4), peaks["scores"], ids))
    return answers


def assert_tracked(found, tracked):
    for answer, (boxes, scores, ids) in zip(found, tracked, strict=True):
        np.testing.assert_allclose(answer["detection_boxes"][0], boxes, atol=0.05)
        np.testing.assert_allclose(answer["detection_scores"][0], scores, atol=1e-4)
        assert answer["detection_tracks"][0].tolist() == ids


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_stream_is_tracked(family_server, tracked, protocol):
    followed = {one for _, _, ids in tracked[1:] for one in ids} & set(tracked[0][2])
    assert followed, "some objects of the first frame are in later ones"
    assert max(tracked[-1][2]) > len(tracked[0][2]), "and some are new"
    assert_tracked(send(family_server, FRAMES, protocol=protocol), tracked)


def test_streams_at_the_same_time_do_not_mix(family_server, tracked):
    """Every frame of four streams is under way before the first is answered, in each stream's order."""
    answers = {}
    others = FRAMES[::-1]
    lonely = send(family_server, others)
    with grpc.InferenceServerClient(family_server.grpc_url) as client:
        done = []
        client.start_stream(lambda result, error: done.append((result, error)))
        for n in range(len(FRAMES)):
            for sequence in (11, 12, 13, "front door"):
                frame = (FRAMES if sequence in (11, "front door") else others)[n]
                tensor = grpc.InferInput("image", [1, 1], "BYTES")
                tensor.set_data_from_numpy(np.array([[encode(frame)]], object))
                client.async_stream_infer(
                    "tracks",
                    [tensor],
                    request_id=f"{sequence}/{n}",
                    sequence_id=sequence,
                    sequence_start=n == 0,
                    sequence_end=n == len(FRAMES) - 1,
                    parameters=ALL,
                )
        client.stop_stream()
    assert [error for _, error in done if error] == []
    for result, _ in done:
        names = ("detection_boxes", "detection_scores", "detection_tracks")
        answers[result.get_response().id] = {name: result.as_numpy(name) for name in names}
    for sequence in (11, "front door"):
        assert_tracked([answers[f"{sequence}/{n}"] for n in range(len(FRAMES))], tracked)
    for sequence in (12, 13):
        for n, expected in enumerate(lonely):
            ids = answers[f"{sequence}/{n}"]["detection_tracks"]
            np.testing.assert_array_equal(ids, expected["detection_tracks"])
    wait_for(family_server, 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_request_without_a_sequence_is_refused(family_server, protocol):
    with pytest.raises(
        InferenceServerException, match="must specify a non-zero or non-empty correlation ID"
    ) as raised:
        infer(family_server, protocol, "tracks", images([encode(FRAMES[0])]), ALL)
    assert raised.value.status() == INVALID[protocol]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_stream_that_has_not_begun_is_refused(family_server, protocol):
    with pytest.raises(InferenceServerException, match="must specify the START flag") as raised:
        send(family_server, FRAMES[:1], sequence=77, protocol=protocol, start=False)
    assert raised.value.status() == INVALID[protocol]


def test_a_frame_that_fails_leaves_its_stream_as_it_was(family_server, tracked):
    found = send(family_server, FRAMES[:2], sequence=5, end=False)
    for bad, parameters in ((b"no picture", ALL), (encode(FRAMES[0]), {"score_threshold": "nan"})):
        with pytest.raises(InferenceServerException, match=r"image: |score_threshold: ") as raised:
            infer(family_server, "grpc", "tracks", images([bad]), parameters, sequence_id=5)
        assert raised.value.status() == INVALID["grpc"]
    found += send(family_server, FRAMES[2:], sequence=5, start=False)
    assert_tracked(found, tracked)


def test_a_stream_whose_first_frame_fails_begins_with_the_next(family_server, tracked):
    with pytest.raises(InferenceServerException, match="image: "):
        infer(family_server, "grpc", "tracks", images([b"no"]), ALL, sequence_id=6, sequence_start=True)
    assert_tracked(send(family_server, FRAMES, sequence=6, start=False), tracked)


def test_streams_are_bounded(family_server):
    wait_for(family_server, 0)
    for sequence in (21, 22, 23, 24):
        send(family_server, FRAMES[:1], sequence=sequence, end=False)
    wait_for(family_server, 4)
    with pytest.raises(InferenceServerException, match="limit max_streams is 4") as raised:
        send(family_server, FRAMES[:1], sequence=25)
    assert raised.value.status() == "StatusCode.UNAVAILABLE"
    for protocol in PROTOCOLS:  # A client does not take it for a server that is away.
        url = getattr(family_server, f"{protocol}_url")
        with (
            CenterNetClient(url, protocol=protocol, model="tracks", retry=RetryPolicy(retries=1)) as client,
            pytest.raises(RejectedError, match="limit max_streams is 4: try again when one has ended"),
        ):
            client.detect(encode(FRAMES[0]))
    for sequence in (21, 22, 23, 24):
        send(family_server, FRAMES[1:2], sequence=sequence, start=False)
    wait_for(family_server, 0)
    send(family_server, FRAMES[:1], sequence=25)


def test_an_idle_stream_is_forgotten(family_server):
    send(family_server, FRAMES[:1], model="hasty", sequence=31, end=False)
    wait_for(family_server, 0, "hasty")
    with pytest.raises(InferenceServerException, match=r"START flag|found no earlier frame") as raised:
        send(family_server, FRAMES[:1], model="hasty", sequence=31, start=False)
    assert raised.value.status() == INVALID["grpc"]
    again = send(family_server, FRAMES[:1], model="hasty", sequence=31)
    assert again[0]["detection_tracks"][0, 0] == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_client_that_is_printed_runs(family_server, networks, tmp_path, capsys, name):
    (tmp_path / "picture.jpg").write_bytes(encode(FRAMES[0]))
    family.write_repository(name, networks[name], tmp_path / "repository")
    said = capsys.readouterr().err
    code = "\n".join(line.strip() for line in said.split("ask:\n")[1].splitlines())
    code = code.replace("localhost:8001", family_server.grpc_url)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "(1, 1)\n", done.stderr
