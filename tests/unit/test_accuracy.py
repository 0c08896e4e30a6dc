"""What the accuracy study refuses, and how it writes its page."""

import json

import pytest

from benchmarks import accuracy


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command on annotation files that name these pictures; returns its exit code and message."""

    def run(val, train, *options):
        for name, pictures in (("val", val), ("train", train)):
            images = [{"id": i, "file_name": picture} for i, picture in enumerate(pictures)]
            (tmp_path / f"{name}.json").write_text(json.dumps({"images": images, "categories": []}))
        checkpoint = tmp_path / "network.pth"
        checkpoint.write_bytes(b"weights")
        code = accuracy.main(
            [
                str(checkpoint),
                f"--annotations={tmp_path / 'val.json'}",
                f"--calibration-annotations={tmp_path / 'train.json'}",
                f"--images={tmp_path}",
                f"--output-dir={tmp_path / 'out'}",
                *options,
            ]
        )
        return code, capsys.readouterr().err

    return run


def test_calibration_on_pictures_that_evaluate(run):
    code, message = run(["a.jpg", "b.jpg"], ["b.jpg", "c.jpg"])
    assert code == 1
    assert message.count("\n") == 1
    assert "1 pictures, such as b.jpg" in message
    assert "calibrate on training pictures alone" in message


def test_plan_of_another_checkpoint(run, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"checkpoint_sha256": "0" * 64}))
    code, message = run(["a.jpg"], ["b.jpg"], f"--plan={tmp_path / 'other.plan'}")
    assert code == 1
    assert "was built from none of the checkpoints" in message


def test_broken_checkpoint(run):
    code, message = run(["a.jpg"], ["b.jpg"])
    assert code == 1
    assert message.splitlines()[-1].startswith("benchmarks.accuracy: ")


def test_calibration_is_spread_over_the_set(tmp_path):
    for name, count in (("val", 1), ("train", 10)):
        images = [{"id": i, "file_name": f"{name}{i}.jpg"} for i in range(count)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"images": images, "categories": []}))
    (tmp_path / "network.pth").write_bytes(b"")
    options = accuracy._parser().parse_args(
        [
            str(tmp_path / "network.pth"),
            f"--annotations={tmp_path / 'val.json'}",
            f"--calibration-annotations={tmp_path / 'train.json'}",
            f"--images={tmp_path}",
            "--calibration-pictures=4",
            f"--output-dir={tmp_path / 'out'}",
        ]
    )
    study = accuracy.Study(tmp_path / "network.pth", options)
    assert [path.name for path in study.calibration] == [f"train{i}.jpg" for i in (0, 2, 4, 6)]
