"""ci/gpu/serving without a GPU: its steps, and that the programs know the options."""

import shlex
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

from benchmarks import preprocess, server

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "ci/gpu/serving"


@pytest.fixture
def serving(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = SourceFileLoader("serving", str(SCRIPT))
    module = module_from_spec(spec_from_loader("serving", loader))
    loader.exec_module(module)
    return module


def steps_of(module):
    stages = [
        *module.gpu_stages(Path("/out"), "python3", 1.0, Path("/bccd")),
        *module.cpu_stages(Path("/out"), "python3", 1.0, Path("/bccd")),
    ]
    return [step for stage in stages for step in stage]


def test_the_benchmark_knows_every_option(serving):
    measured = 0
    for step in steps_of(serving):
        words = shlex.split(step.command)
        if "ci/container/mps.py" in words:
            words = shlex.split(words[-1])
        if "benchmarks.server" not in words:
            continue
        options = server._parser().parse_args(words[words.index("benchmarks.server") + 1 :])
        assert options.output_dir == Path("/out") / step.name.removesuffix("-cpu").replace(
            "coins", "coins-cpu"
        )
        assert max(options.concurrency) <= 192, "the door's queue"
        measured += 1
    assert measured == 24


def test_the_benchmark_of_decoding_knows_every_option(serving):
    (step,) = [step for step in steps_of(serving) if step.name == "decoding"]
    words = shlex.split(step.command)
    options = preprocess._parser().parse_args(words[words.index("benchmarks.preprocess") + 1 :])
    assert options.output_dir == Path("/out/decoding")
    assert options.plan.parts[-4:] == ("dla_34-repository", "centernet_network", "1", "model.plan")


def test_networks_are_made_before_they_are_measured(serving):
    names = [step.name for step in steps_of(serving)]
    assert names.index("plugin") < names.index("onnx-dla_34") < names.index("plan-dla_34")
    assert names.index("plan-bccd_dla_34") < names.index("dla_34-jpeg") < names.index("bccd-cpu")
    assert names.index("plan-dla_34") < names.index("decoding")
    assert names.index("onnx-coins") < names.index("coins-cpu")


def test_unknown_step():
    done = subprocess.run([sys.executable, SCRIPT, "none*"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "found none*, expected of plugin, onnx-dla_34" in done.stderr


def test_measuring_needs_no_pytorch():
    modules = ("server", "streams", "serving", "triton_server")
    imports = ", ".join(f"benchmarks.{module}" for module in modules)
    code = f"import sys; sys.modules['torch'] = None; import {imports}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
