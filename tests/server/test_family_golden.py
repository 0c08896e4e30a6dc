"""The originals' answers come out of the server: the same checkpoints, the same pictures, every task."""

import exported
import numpy as np
import pytest
import reference
import served_family
from centernet_image.decode import decode
from pictures import encode
from protocols import images, infer

pytestmark = pytest.mark.server
PICTURES = ("16004479832", "17790319373")
OPTIONS = {
    "multi_pose_resdcn_18": [],
    "multi_pose_dla_34": [],
    "ctdet_pascal_resdcn_18": ["--mean", "imagenet", "--input-size", "384x384"],
    "ctdet_pascal_dla_34": ["--mean", "imagenet"],
    "ddd_dla_34": ["--input-size", "192x640"],
    "ddd_dla_34_bare": ["--input-size", "192x640"],
    "mot_dla_34": [],
    "tracking_dla_34": [],
    "tracking_amodal_dla_34": ["--input-size", "544x960"],
}
DEFAULT = ("multi_pose_resdcn_18", "ctdet_pascal_resdcn_18", "ddd_dla_34_bare")
"""The others take a minute each, most of it for the export."""


def networks(*prefixes):
    """The answers there are of networks with such names; most of them under the marker `wide`."""
    names = [name for name in OPTIONS if name.startswith(prefixes)]
    pairs = [(name, picture) for name in names for picture in PICTURES]
    return pytest.mark.parametrize(
        ("served", "picture"),
        [
            pytest.param(name, picture, marks=() if name in DEFAULT else pytest.mark.wide)
            for name, picture in pairs
            # Of a camera or a video there is one.
            if picture == PICTURES[0] or not name.startswith(("ddd", "tracking"))
        ],
        indirect=["served"],
    )


@pytest.fixture(scope="module")
def served(request, shared, serve, tmp_path_factory):
    """A reference network's name, and a server that answers for it as `family`."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    checkpoint = reference.write_checkpoint(shared, name, folder / "checkpoint.pth")
    onnx = exported.export(checkpoint, *OPTIONS[name])
    repository = served_family.write_repository("family", onnx, folder / "repository")
    return name, serve(repository)


@pytest.fixture
def golden(shared, served, picture):
    """A network's server, an encoded picture, and what the original found there."""
    name, server = served
    facts = reference.detections(shared, name, picture)
    return server, (shared / "images" / facts["image"]).read_bytes(), Facts(facts)


class Facts(dict):
    """The reference's file, with its rows as columns."""

    def columns(self, *names, rows=None):
        """[rows, names]; of names that are there twice the first."""
        table = np.array(self["detections"] if rows is None else rows)
        return np.stack([table[:, self["columns"].index(name)] for name in names], axis=1)


def rows_of(found, boxes, scores, classes=None):
    """For each row that is certain: which it is of the server's, by place, score and class.

    Returns:
        Indices of the original's rows and of the server's.
    """
    alike = np.abs(boxes[:, None] - found["detection_boxes"][0]).max(axis=2) <= 0.05
    alike &= np.abs(scores[:, None] - found["detection_scores"][0]) <= 5e-4
    if classes is not None:
        alike &= classes[:, None] == found["detection_classes"][0]
    # Which of two equal scores is the last one is not decided.
    certain = np.flatnonzero(scores > scores.min() + 1e-4)
    assert len(certain) >= 0.8 * len(scores)
    missing = [index for index in certain if not alike[index].any()]
    assert not missing, boxes[missing]
    return certain, alike[certain].argmax(axis=1)


def ask(server, data, threshold=0.0, *, camera=None, **options):
    inputs = images([data]) | ({} if camera is None else {"camera": camera})
    return infer(server, "grpc", "family", inputs, {"score_threshold": threshold}, **options)


@networks("multi_pose")
def test_key_points(golden):
    server, data, facts = golden
    found = ask(server, data)
    table = np.array(facts["detections"])  # x1, y1, … are in it twice
    certain, place = rows_of(found, table[:, :4], table[:, 4])
    expected = table[certain, 5:].reshape(len(certain), 17, 2)
    wrong = np.abs(found["detection_keypoints"][0, place] - expected).max(axis=2) > 0.05
    # A joint at the limit of a rule may be snapped or not.
    assert wrong.sum() <= 5, np.argwhere(wrong)
    snapped = np.array([[mark == "1" for mark in row] for row in facts["snapped"]])[certain]
    assert (snapped & ~wrong).sum() > 30


@networks("ctdet_pascal")
def test_detections_with_another_normalisation(golden):
    server, data, facts = golden
    boxes, (scores, classes) = facts.columns("x1", "y1", "x2", "y2"), facts.columns("score", "class").T
    rows_of(ask(server, data), boxes, scores, classes)


@networks("ddd")
def test_boxes_in_space(golden):
    server, data, facts = golden
    camera = np.array([facts["calib"]], np.float32)
    found = ask(server, data, camera=camera)
    scores, classes = facts.columns("score", "class").T
    height, width = decode(data).shape[:2]
    scale = width / (facts["input"][1] / 4)  # of the map
    if "x1" in facts["columns"]:
        boxes = facts.columns("x1", "y1", "x2", "y2")
        # The original adds the picture's translation to the height.
        fault = height / 2 - scale * facts["input"][0] / 4 / 2
        assert fault > 100
        boxes += [0, fault / 2, 0, -fault / 2]
        certain, place = rows_of(found, boxes, scores, classes)
    else:
        certain, place = by_location(found, facts.columns("X", "Y", "Z"), scores, classes)
        boxes = found["detection_boxes"][0, place]
        seen = project(camera[0], found["detection_locations"][0, place] - height_of(found, place) / 2)
        ahead = found["detection_locations"][0, place, 2] > 5
        assert ahead.sum() > 50
        inside = (seen >= boxes[:, :2]) & (seen <= boxes[:, 2:])
        assert inside[ahead].all()
    for answer, names in {"locations": "XYZ", "dimensions": "hwl"}.items():
        values = found[f"detection_{answer}"][0, place]
        # Beside 1e-3 relative: the files have four decimals.
        np.testing.assert_allclose(values, facts.columns(*names)[certain], rtol=1e-3, atol=2e-3)
    turn = found["detection_rotations"][0, place] - facts.columns("rotation_y")[certain, 0]
    assert np.abs((turn + np.pi) % (2 * np.pi) - np.pi).max() <= 1e-3


def by_location(found, locations, scores, classes):
    """As `rows_of`, for rows without boxes."""
    alike = np.isclose(found["detection_locations"][0], locations[:, None], rtol=1e-3, atol=2e-3).all(axis=2)
    alike &= np.abs(scores[:, None] - found["detection_scores"][0]) <= 5e-4
    alike &= classes[:, None] == found["detection_classes"][0]
    certain = np.flatnonzero(scores > scores.min() + 1e-4)
    assert len(certain) >= 0.8 * len(scores)
    assert alike[certain].any(axis=1).all()
    return certain, alike[certain].argmax(axis=1)


def height_of(found, place):
    heights = found["detection_dimensions"][0, place, 0]
    return np.stack([np.zeros_like(heights), heights, np.zeros_like(heights)], axis=1)


def project(camera, points):
    u, v, depth = camera.astype(float) @ np.c_[points, np.ones(len(points))].T
    return np.stack([u / depth, v / depth], axis=1)


@networks("mot")
def test_embeddings(golden, shared):
    server, data, facts = golden
    found = ask(server, data)
    theirs, scores = facts.columns("x1", "y1", "x2", "y2"), facts.columns("score")[:, 0]
    height, width = decode(data).shape[:2]
    frame_height, frame_width = facts["input"]
    # The original's way back, undone: into its map, whose cells have four pixels of the frame.
    scale = frame_width / 4 / max(frame_width / frame_height * height, width)
    cells = (theirs.reshape(-1, 2, 2) - [width / 2, height / 2]) * scale
    pixels = 4 * cells + [frame_width / 2, frame_height / 2]
    # Ours: the letterbox's.
    ratio, left, top = (facts["letterbox"][key] for key in ("ratio", "dw", "dh"))
    inner = np.array([round(width * ratio), round(height * ratio)])
    start = np.array([round(left - 0.1), round(top - 0.1)])
    boxes = ((pixels - start) / (inner / [width, height])).reshape(-1, 4)
    certain, place = rows_of(found, boxes, scores)
    difference = np.abs(found["detection_boxes"][0, place] - theirs[certain]).max()
    assert difference < 1.5, "the original's boxes are half a pixel away at most"
    if facts["image"].startswith("17790319373"):
        assert difference > 0.2, "and there, not the same"
    name = facts["image"].split("_")[0]
    with np.load(shared / f"reference/mot_dla_34.{name}.embeddings.npz") as file:
        expected = file["id"][certain]
    cosines = (found["detection_embeddings"][0, place] * expected).sum(axis=1)
    assert cosines.min() >= 0.9999


@networks("tracking")
def test_tracks(golden):
    server, data, facts = golden
    roll = facts["second_frame"]
    second = np.roll(decode(data), (roll["roll_down"], roll["roll_right"]), axis=(0, 1))
    threshold = facts["track_thresh"]
    pictures = (data, encode(second))
    found = [
        ask(server, each, threshold, sequence_id=1, sequence_start=n == 0, sequence_end=n == 1)
        for n, each in enumerate(pictures)
    ]
    ids = []
    for answer, frame in zip(found, facts["frames"], strict=True):
        table = np.array(frame["tracks"])
        certain, place = rows_of(answer, table[:, :4], table[:, 4], table[:, 5].astype(int))
        assert len(frame["detections"]) == answer["num_detections"].item()
        ours = answer["detection_tracks"][0]
        assert len({*ours[: len(table)]}) == len(table)
        ids.append(dict(zip(table[certain, 6].astype(int).tolist(), ours[place].tolist(), strict=True)))
    first, later = ids
    both = first.keys() & later.keys()
    assert len(both) > 5
    # The numbers follow the order of rows, of which some have the same score; who is who does not.
    assert {one: first[one] for one in both} == {one: later[one] for one in both}
    new = later.keys() - {int(row[6]) for row in facts["frames"][0]["tracks"]}
    assert all(later[one] > len(facts["frames"][0]["tracks"]) for one in new)
