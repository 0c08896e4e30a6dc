"""What a pod does before its server starts; a stand-in builds the plan."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

PREPARE = Path(__file__).parents[2] / "ci/container/prepare.py"
# Notes each build, and would be seen if two ran at once.
BUILDER = """
import pathlib, sys, time
plan = pathlib.Path(sys.argv[2])
plan.with_name("busy").mkdir()
with plan.with_name("builds").open("a") as file:
    print(*sys.argv[3:], file=file)
time.sleep(0.5)
if not plan.exists():
    plan.write_text("plan of " + pathlib.Path(sys.argv[1]).read_text())
    plan.with_suffix(".json").write_text("{}")
plan.with_name("busy").rmdir()
"""


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("net.onnx", "net.json", "net.onnx.data"):
        (folder / name).write_text(name)
    return folder / "net.onnx"


def command(tmp_path, model, into, *options, gpu="Lovely GPU 9"):
    builder = tmp_path / "builder.py"
    builder.write_text(BUILDER)
    return [
        *(sys.executable, PREPARE, f"--model={model}", f"--into={tmp_path / into}", f"--gpu-name=echo {gpu}"),
        *(f"--plan-builder={sys.executable} {builder}", *options),
    ]


def run(*arguments, **options):
    return subprocess.run(command(*arguments, **options), capture_output=True, text=True)


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_onnx_file_gets_the_name_that_the_server_knows(tmp_path, model, variant):
    assert run(tmp_path, model, "into", f"--variant={variant}").returncode == 0
    found = {path.name: path.read_text() for path in (tmp_path / "into").iterdir()}
    assert found == {"model.onnx": "net.onnx", "model.json": "net.json", "net.onnx.data": "net.onnx.data"}


def test_batch_that_no_server_would_take(tmp_path, model):
    (tmp_path / "config.pbtxt").write_text('name: "network"\nmax_batch_size: 8\n')
    done = run(tmp_path, model, "into", "--batch=1,2,4")
    assert done.returncode == 2
    said = "batch: found 1,2,4, expected 8 as the largest, max_batch_size of all models"
    assert done.stderr.splitlines()[-1] == f"prepare: error: {said}"
    assert not (tmp_path / "into").exists()
    assert run(tmp_path, model, "into", "--batch=1,2,8").returncode == 0


def test_pods_take_turns_and_build_once_for_each_kind_of_gpu(tmp_path, model):
    cache = f"--cache={tmp_path / 'plans'}"
    pods = [
        subprocess.Popen(command(tmp_path, model, f"pod{number}", cache, gpu=gpu))
        for number, gpu in enumerate(["A 1", "A 1", "A 1", "B 2"])
    ]
    assert [pod.wait() for pod in pods] == [0, 0, 0, 0]
    for number in range(4):
        assert (tmp_path / f"pod{number}" / "model.plan").read_text() == "plan of net.onnx"
    kinds = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "plans").iterdir()}
    assert kinds == {"A-1", "B-2"}


@pytest.mark.parametrize("change", ["onnx", "data", "precision"])
def test_another_network_or_precision_is_another_plan(tmp_path, model, change):
    cache = f"--cache={tmp_path / 'plans'}"
    assert run(tmp_path, model, "one", cache).returncode == 0
    if change != "precision":
        model.with_name("net.onnx" + (".data" if change == "data" else "")).write_text("other")
    assert (
        run(tmp_path, model, "two", cache, *(["--precision=fp32"] * (change == "precision"))).returncode == 0
    )
    assert len(list((tmp_path / "plans").iterdir())) == 2


def test_settings_reach_the_builder(tmp_path, model):
    assert (
        run(tmp_path, model, "into", "--precision=int8", "--batch=1,2,4", "--calibration=here").returncode
        == 0
    )
    (built,) = (tmp_path / "into/builds").read_text().splitlines()
    assert "--if-needed --verify --precision int8 --batch 1,2,4" in built
    assert "--calibration here" in built


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpu-name=false"], "found no GPU"),
        (["--plan-builder=false"], "the plan builder ended with 1"),
        (["--model=/nowhere/net.onnx"], "found no /nowhere/net.onnx"),
    ],
)
def test_failures_are_one_line(tmp_path, model, options, words):
    done = run(tmp_path, model, "into", f"--cache={tmp_path / 'plans'}", *options)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "into/model.plan").exists()


def test_waiting_ends(tmp_path, model):
    cache = f"--cache={tmp_path / 'plans'}"
    assert run(tmp_path, model, "one", cache).returncode == 0
    (folder,) = (tmp_path / "plans").iterdir()
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = run(tmp_path, model, "two", cache, "--wait-s=0.1")
    assert done.returncode == 1
    assert "another pod has held" in done.stderr


def test_a_network_without_its_description_is_not_copied(tmp_path, model):
    model.with_suffix(".json").unlink()
    done = subprocess.run(
        command(tmp_path, model, "into", "--variant=cpu"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"prepare: found no {model.with_suffix('.json')}: export.to_onnx writes")
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize("option", ["--plan-builder='", "--gpu-name=", "--wait-s=nan"])
def test_a_wrong_option_is_misuse(tmp_path, model, option):
    done = subprocess.run(
        command(tmp_path, model, "into", option), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
