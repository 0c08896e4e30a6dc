"""Every request gets its own answer or its own error, whatever comes beside it."""

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as grpc
from centernet_image import contract
from centernet_image.decode import decode
from centernet_image.description import Description
from centernet_image.geometry import warp
from centernet_image.selection import select
from exported import SMALL_CLASSES, SMALL_SIZE
from hostile_pictures import damaged_animation, many_scans
from pictures import bomb, encode, picture
from protocols import INVALID, PROTOCOLS, images, infer
from seed_pictures import seeds
from servers import stubs
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.server
SIZES = ((60, 90), (300, 200), (256, 384), (481, 640), (1000, 300), (33, 700))
JPEG = encode(picture(200, 240), "JPEG")
PNG = encode(picture(200, 240))


@pytest.fixture(scope="module")
def expect(small_onnx):
    """What one process makes of encoded pictures, with the same model and code."""
    session = onnxruntime.InferenceSession(small_onnx)
    labels = np.array([name.encode() for name in SMALL_CLASSES], object)
    assert Description.read(small_onnx.with_suffix(".json")).input_size == SMALL_SIZE

    def expect(pictures, threshold=contract.SCORE_THRESHOLD):
        decoded = [decode(data) for data in pictures]
        frames = np.stack([warp(image, SMALL_SIZE) for image in decoded])
        names = [tensor.name for tensor in contract.TASKS["detect"].columns]
        detections = select(
            *session.run(names, {"frame": frames}),
            image_sizes=np.array([image.shape[:2] for image in decoded]),
            frame_size=SMALL_SIZE,
            thresholds=threshold,
            labels=labels,
        )
        return dict(zip((tensor.name for tensor in contract.DETECTIONS), detections, strict=True))

    return expect


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-2, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def network_executions(server):
    """Batches that the network has computed, and pictures that were in them."""
    with grpc.InferenceServerClient(server.grpc_url) as client:
        statistics = client.get_inference_statistics("centernet_network").model_stats[0]
    return np.array([statistics.execution_count, statistics.inference_count])


def test_64_at_once_each_with_its_own_answer(server, expect):
    rng = np.random.default_rng(0)
    requests = [
        (
            PROTOCOLS[i % 2],
            [encode(picture(*SIZES[(i + j) % 6], seed=10 * i + j)) for j in range(1 + i % 3)],
            float(np.round(rng.uniform(0, 1), 3)),
        )
        for i in range(64)
    ]

    def ask(request):
        protocol, pictures, threshold = request
        return infer(server, protocol, "centernet", images(pictures), {"score_threshold": threshold})

    before = network_executions(server)
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, requests))
    batches, batched = network_executions(server) - before
    assert batches < 64
    assert batched == sum(len(pictures) for _, pictures, _ in requests)
    nums = set()
    for (_, pictures, threshold), answer in zip(requests, answers, strict=True):
        assert_equal(answer, expect(pictures, threshold))
        nums.update(answer["num_detections"].ravel().tolist())
    assert len(nums) > 10


def test_defaults_and_rows_beyond_the_last(server, expect):
    answer = infer(server, "grpc", "centernet", images([JPEG]))
    assert_equal(answer, expect([JPEG]))
    num = answer["num_detections"][0, 0]
    assert 0 < num < 100
    assert (answer["detection_scores"][0, :num] >= contract.SCORE_THRESHOLD).all()
    for name, empty in (("boxes", 0), ("scores", 0), ("classes", 0), ("labels", b"")):
        assert (answer[f"detection_{name}"][0, num:] == empty).all()
    assert set(answer["detection_labels"][0, :num]) <= {name.encode() for name in SMALL_CLASSES}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pictures_of_every_kind(server, expect, protocol):
    pictures = list(seeds().values())
    for first in range(0, len(pictures), 32):
        batch = pictures[first : first + 32]
        assert_equal(infer(server, protocol, "centernet", images(batch)), expect(batch))


def test_frames_are_the_same_as_pictures(server):
    image = decode(JPEG)
    frame = {
        "frame": warp(image, SMALL_SIZE)[None],
        "image_size": np.array([image.shape[:2]], np.int32),
    }
    assert_equal(
        infer(server, "grpc", "centernet_frames", frame), infer(server, "grpc", "centernet", images([JPEG]))
    )


BAD_PICTURES = {
    "empty": (b"", "found 0 bytes, expected an encoded picture"),
    "text": (b"<html>no picture</html>", "found an HTML page, expected one of JPEG"),
    "unknown": (b"no picture", "found 10 bytes beginning b'no pictu', expected one of JPEG"),
    "truncated": (JPEG[: len(JPEG) // 2], "of a damaged or truncated JPEG picture"),
    "hole": (JPEG[: len(JPEG) // 2] + JPEG[-2:], "of a damaged or truncated JPEG picture: Corrupt JPEG data"),
    "scans": (many_scans(640, 480, 1000), "found a JPEG picture of more than 10 scans, limit is 10"),
    "bomb": (bomb(20000, 20000), "20000x20000 pixels = 400000000, limit max_pixels is 67108864"),
    "animation": (damaged_animation(), "of a damaged or truncated PNG picture: its pixels cannot be decoded"),
    "claim": (PNG[:33] + b"\x7f\xff\xff\xffIDAT" + PNG[41:], "a chunk claims 2147483647 bytes"),
    "1x1": (encode(np.zeros((1, 1, 3), np.uint8)), "1x1 pixels, limit min_side is 8"),
    "1x5000": (encode(np.zeros((1, 5000, 3), np.uint8)), "5000x1 pixels, limit min_side is 8"),
}
CASES = {
    **{
        name: ("centernet", images([data]), None, f"image: .*{re.escape(text)}")
        for name, (data, text) in BAD_PICTURES.items()
    },
    "one of three": (
        "centernet",
        images([JPEG, JPEG[:50], JPEG]),
        None,
        r"image 1 of 3 \(counted from 0\): found 50 bytes",
    ),
    "wrong type": ("centernet", {"image": np.zeros((1, 1), np.uint8)}, None, "data.?type|UINT8"),
    "wrong shape": ("centernet", {"image": np.array([[JPEG, JPEG]], object)}, None, r"shape.*\[1,2\]"),
    "too many": ("centernet", images([JPEG] * 33), None, "<= 32"),
    "threshold nan": (
        "centernet",
        images([JPEG]),
        {"score_threshold": "nan"},
        "found 'nan', expected a number",
    ),
    "threshold high": ("centernet", images([JPEG]), {"score_threshold": 1.5}, "found 1.5, expected a number"),
    "threshold low": (
        "centernet",
        images([JPEG]),
        {"score_threshold": "-0.1"},
        "found '-0.1', expected a number",
    ),
    "threshold text": (
        "centernet",
        images([JPEG]),
        {"score_threshold": "high"},
        "found 'high', expected a number",
    ),
    "threshold bool": (
        "centernet",
        images([JPEG]),
        {"score_threshold": True},
        "found True, expected a number",
    ),
    "frame size": (
        "centernet_frames",
        {"frame": np.zeros((1, 512, 512, 3), np.uint8), "image_size": np.array([[512, 512]], np.int32)},
        None,
        r"shape.*\[-1,256,384,3\].*\[1,512,512,3\]",
    ),
    "frame type": (
        "centernet_frames",
        {"frame": np.zeros((1, *SMALL_SIZE, 3), np.float32), "image_size": np.array([[512, 512]], np.int32)},
        None,
        "FP32",
    ),
    "image size": (
        "centernet_frames",
        {"frame": np.zeros((1, *SMALL_SIZE, 3), np.uint8), "image_size": np.array([[512, 0]], np.int32)},
        None,
        r"image_size: found \[\[512, 0\]\], expected positive height and width",
    ),
    **{
        f"classes {classes}": (
            "centernet_postprocess",
            {
                "peaks": np.array([[[0, 0, 4, 4, 1, *each] for each in classes]], np.float32),
                "image_size": np.array([[512, 512]], np.int32),
            },
            None,
            message,
        )
        for classes, message in (
            (([0], [999]), "classes: found 999.0, expected 0 to 2, the classes with names"),
            (([-1], [0]), "classes: found -1.0, expected 0 to 2, the classes with names"),
            (([0], [np.nan]), "classes: found nan, expected 0 to 2, the classes with names"),
            (([], []), "peaks: found 5 columns, expected 6: boxes, scores, classes"),
        )
    },
}


def refused(server, protocol, case):
    model, inputs, parameters, message = CASES[case]
    with pytest.raises(InferenceServerException, match=message) as caught:
        infer(server, protocol, model, inputs, parameters)
    assert caught.value.status() == INVALID[protocol]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_and_the_server_goes_on(server, expect, protocol, case):
    refused(server, protocol, case)
    assert_equal(infer(server, protocol, "centernet", images([JPEG])), expect([JPEG]))


def test_nan_threshold_over_grpc(server):
    with pytest.raises(InferenceServerException, match="found nan, expected a number from 0 to 1"):
        infer(server, "grpc", "centernet", images([JPEG]), {"score_threshold": float("nan")})


def test_other_parameters_are_not_ours(server, expect):
    parameters = {"my_score_threshold": 0.9}
    assert_equal(infer(server, "grpc", "centernet", images([JPEG]), parameters), expect([JPEG]))


PATIENT = {
    "max_queue_delay_microseconds: 0": "max_queue_delay_microseconds: 500000",
    "count: 3": "count: 1",
}


@pytest.fixture(scope="module")
def patient_server(serve_edited):
    """Waits for batches to fill."""
    return serve_edited(PATIENT)


def test_bad_input_beside_good(patient_server, expect):
    """One batch of everything: this server waits until all have come."""
    good = [encode(picture(*size, seed=i)) for i, size in enumerate(SIZES)]
    cases = [case for case in CASES if CASES[case][0] == "centernet" and case != "too many"]

    def ask(job):
        if isinstance(job, str):
            return refused(patient_server, "grpc", job)
        return infer(patient_server, "grpc", "centernet", images([job]))

    jobs = [job for pair in zip(cases, good * 3, strict=False) for job in pair]
    with ThreadPoolExecutor(len(jobs)) as pool:
        answers = list(pool.map(ask, jobs))
    for job, answer in zip(jobs, answers, strict=True):
        if isinstance(job, bytes):
            assert_equal(answer, expect([job]))
    with grpc.InferenceServerClient(patient_server.grpc_url) as client:
        batches = client.get_inference_statistics("centernet_preprocess").model_stats[0].batch_stats
    assert max(batch.batch_size for batch in batches) > 8


def test_a_failure_of_the_network_is_told_to_each_request_of_a_batch(serve_edited):
    server = serve_edited(PATIENT, "--exit-timeout-secs=1")  # It waits for the dead ones.
    for name, pid in stubs(server.process.pid).items():
        if name.startswith("centernet_network_0_"):
            os.kill(pid, signal.SIGKILL)

    def ask(number):
        with pytest.raises(InferenceServerException) as caught:
            infer(server, "grpc", "centernet", images([encode(picture(60, 90, seed=number))]))
        return caught.value

    with ThreadPoolExecutor(8) as pool:
        failures = list(pool.map(ask, range(8)))
    words = "Stub process 'centernet_network_0_"
    assert all(words in failure.message() for failure in failures), failures
    assert {failure.status() for failure in failures} == {"StatusCode.INTERNAL"}


def test_limits_are_parameters(strict_server):
    for data, message in (
        (JPEG + bytes(100_000), "limit max_bytes is 100000"),
        (bomb(1001, 1000), "limit max_pixels is 1000000"),
        (encode(picture(31, 90)), "limit min_side is 32"),
    ):
        with pytest.raises(InferenceServerException, match=message):
            infer(strict_server, "grpc", "centernet", images([data]))


def test_a_request_that_waits_too_long_is_dropped(patient_server):
    with pytest.raises(InferenceServerException, match="Request timeout expired"):
        infer(patient_server, "grpc", "centernet", images([JPEG]), timeout=1000)
