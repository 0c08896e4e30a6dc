"""Training samples: scenes, COCO pictures, the random warp."""

import json

import cv2
import numpy as np
import pytest

from clients.errors import CenterNetError
from export.errors import UsageError
from training import scenes
from training.data import CocoPictures, Coins, Samples, random_colour, random_warp, warp_boxes

SIZE = (128, 192)


def test_scene_is_decided_by_the_generator():
    first, again, other = (scenes.scene(np.random.default_rng(seed)) for seed in (3, 3, 4))
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert first[0].shape != other[0].shape or (first[0] != other[0]).any()


def test_scenes_have_coins_of_many_sizes_inside_the_picture():
    sides, counts, grey = [], [], []
    for seed in range(12):
        picture, boxes, classes = scenes.scene(np.random.default_rng(seed))
        assert picture.dtype == np.uint8
        height, width = picture.shape[:2]
        assert len(boxes) == len(classes)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= (width, height)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        sides += list(boxes[:, 2] - boxes[:, 0])
        counts.append(len(boxes))
        grey.append(np.ptp(picture.astype(int), axis=2).mean() < 5)
    assert min(sides) < 30
    assert max(sides) > 100
    assert max(counts) > 10
    assert len(set(grey)) == 2, "grey pictures and coloured ones"


def test_a_coin_is_where_its_box_says():
    """Without its coins a scene differs from itself inside the boxes and their shadows only."""
    canvas = np.full((200, 200, 3), 0.5, np.float32)
    box = scenes._strike(np.random.default_rng(0), canvas, (90, 110), 40, light=0.0, metal=1.0)
    bright = (canvas > 0.55).any(2)
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    assert box == pytest.approx([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], abs=3)


def test_warped_boxes_hold_the_warped_objects():
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(60):
        box = np.array([[*rng.integers(20, 60, 2), *rng.integers(80, 150, 2)]], np.float32)
        picture = np.zeros((160, 240, 3), np.uint8)
        x1, y1, x2, y2 = box[0].astype(int)
        picture[y1:y2, x1:x2] = 255
        matrix = random_warp(rng, picture.shape[:2], SIZE, any_way_up=True)
        frame = cv2.warpAffine(picture, matrix, SIZE[::-1], flags=cv2.INTER_LINEAR)[..., 0] > 127
        warped, kept = warp_boxes(box, matrix, SIZE)
        if kept[0]:
            rows, columns = np.flatnonzero(frame.any(1)), np.flatnonzero(frame.any(0))
            seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            # Pixels are squares to the box and points to the warp: half a pixel, scaled.
            np.testing.assert_allclose(warped[0], seen, atol=2)
            compared += 1
    assert compared > 30


def test_hardly_visible_objects_are_not_learnt():
    identity = np.eye(2, 3)
    boxes = np.array([[-70, 10, 30, 20], [-60, 10, 40, 20], [500, 10, 600, 20], [5, 5, 5.5, 50]], np.float32)
    cut, kept = warp_boxes(boxes, identity, SIZE)
    assert kept.tolist() == [False, True, False, False]
    np.testing.assert_array_equal(cut[1], [0, 10, 40, 20])


def test_upright_warps_neither_turn_nor_stand_on_the_head():
    rng = np.random.default_rng(1)
    matrices = np.array([random_warp(rng, (100, 200), SIZE, any_way_up=False) for _ in range(50)])
    assert (matrices[:, 1, 1] > 0).all()
    assert (matrices[:, 0, 1] == 0).all()
    assert len(set(np.sign(matrices[:, 0, 0]))) == 2, "mirrored and not"
    turned = np.array([random_warp(rng, (100, 200), SIZE, any_way_up=True) for _ in range(50)])
    assert (turned[:, 0, 0] == 0).any()
    assert (turned[:, 0, 0] != 0).any()


def test_colour_leaves_the_outside_black():
    rng = np.random.default_rng(0)
    frame = rng.integers(1, 256, (32, 32, 3), np.uint8)
    frame[:8] = 0
    changed = random_colour(rng, frame)
    assert not changed[:8].any()
    assert (changed[8:] != frame[8:]).any()


def test_samples_are_decided_by_seed_and_number():
    def sample(seed):
        return Samples(Coins(), seed=seed, count=3, size=SIZE, any_way_up=True)[2]

    first, again, other = sample(1), sample(1), sample(2)
    assert first["frame"].shape == (*SIZE, 3)
    assert first["hm"].shape == (1, SIZE[0] // 4, SIZE[1] // 4)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert (first["frame"] != other["frame"]).any()


def test_crops_are_windows_of_the_frames_scale():
    whole, crops = (
        Samples(Coins(), seed=1, count=8, size=(256, 256), any_way_up=True, crop=crop) for crop in (None, 128)
    )
    compared = 0
    for number in range(8):
        frame, crop = whole[number], crops[number]
        assert crop["frame"].shape == (128, 128, 3)
        assert crop["hm"].shape == (1, 32, 32)
        # A coin whose centre lies in the window is as large there as in the frame, unless the window cuts it.
        sizes = [tuple(row) for row in frame["wh"][frame["valid"]].round(3)]
        for index, row in zip(crop["index"][crop["valid"]], crop["wh"][crop["valid"]], strict=True):
            x, y = index % 32, index // 32
            if min(x, 31 - x) > row[0] / 2 + 1 and min(y, 31 - y) > row[1] / 2 + 1:
                assert min(np.abs(np.array(sizes) - row).max(1)) < 0.01
                compared += 1
    assert compared > 3


@pytest.fixture
def coco(tmp_path):
    """Three pictures whose grey is their number; categories with a gap and out of order."""
    images = [{"id": 10 + i, "file_name": f"{i}.png", "height": 50, "width": 60} for i in range(3)]
    for i, image in enumerate(images):
        cv2.imwrite(str(tmp_path / image["file_name"]), np.full((50, 60, 3), 10 * i, np.uint8))
    annotations = [
        {"id": 1, "image_id": 11, "category_id": 7, "bbox": [5, 6, 10, 20], "iscrowd": 0},
        {"id": 2, "image_id": 11, "category_id": 2, "bbox": [1, 2, 3, 4], "iscrowd": 0},
        {"id": 3, "image_id": 12, "category_id": 2, "bbox": [0, 0, 60, 50], "iscrowd": 1},
    ]
    categories = [{"id": 7, "name": "late"}, {"id": 2, "name": "early"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path, content


def test_coco_pictures_come_once_in_each_epoch(coco):
    path, _ = coco
    source = CocoPictures(path, path.parent)
    assert source.classes == ("early", "late")
    epochs = [[int(source.sample(5, 3 * e + i)[0][0, 0, 0]) // 10 for i in range(3)] for e in range(8)]
    assert all(sorted(epoch) == [0, 1, 2] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1, "shuffled"
    number = next(i for i in range(3) if source.sample(5, i)[0][0, 0, 0] == 10)
    _, boxes, classes = source.sample(5, number)
    assert boxes.tolist() == [[5, 6, 15, 26], [1, 2, 4, 6]]
    assert classes.tolist() == [1, 0]


def test_coco_files_as_tools_write_them(coco):
    """With a byte order mark, a number for a name, a category that is not listed."""
    path, content = coco
    content["categories"][0]["name"] = 5
    content["annotations"][1]["category_id"] = 9
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    source = CocoPictures(path, path.parent)
    assert source.classes == ("early", "5")
    assert source.left_out == "annotations left out of 3: 1 of categories that are not listed"


def test_coco_refusals(coco):
    path, content = coco
    (path.parent / "2.png").unlink()
    with pytest.raises(ValueError, match=r"names 2\.png, which .* lacks"):
        CocoPictures(path, path.parent)
    cv2.imwrite(str(path.parent / "2.png"), np.zeros((50, 60, 3), np.uint8))
    broken = [dict(content["annotations"][0], bbox=[5, 6, float("nan"), 3])]
    path.write_text(json.dumps({**content, "annotations": broken}))
    with pytest.raises(CenterNetError, match=r"annotation 0 .*: found the bbox \[5, 6, nan, 3\]"):
        CocoPictures(path, path.parent)
    path.write_text(json.dumps({**content, "categories": [{"id": 7, "name": ""}, {"id": 2, "name": "a"}]}))
    with pytest.raises(UsageError, match=r"categories: name 2 of 2 is empty"):
        CocoPictures(path, path.parent)
    path.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(ValueError, match="no picture with a box"):
        CocoPictures(path, path.parent)
