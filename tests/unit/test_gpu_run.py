"""ci/gpu without a GPU: the order of its steps, their options, its results, and what it says is missing."""

import json
import os
import shlex
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

from benchmarks import dcnv2, engine
from export.plan import command_line

pytestmark = pytest.mark.wide

ROOT = Path(__file__).parents[2]
MEASUREMENTS = ["kernel-times", "engine"]


@pytest.fixture
def gpu_run(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = SourceFileLoader("gpu_run", str(ROOT / "ci/gpu/run"))
    module = module_from_spec(spec_from_loader("gpu_run", loader))
    loader.exec_module(module)
    return module


def steps_of(module):
    return {step.name: step for stage in module.stages(Path("out")) for step in stage}


def script(folder, name, body):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_what_is_required_comes_first(gpu_run):
    order = list(steps_of(gpu_run))
    plans = [
        f"plan-{arch}-{precision}"
        for arch in ("dla_34", "resdcn_18", "dlav0_34")
        for precision in ("fp16", "fp32")
    ]
    required = {"plugin", "kernels", "kernel-tests", "memcheck", *plans, "coins", "plan-tests"}
    assert required < set(order[: order.index("racecheck")])
    assert order[order.index("racecheck") + 1 :] == MEASUREMENTS
    (names,) = (
        [step.name for step in stage] for stage in gpu_run.stages(Path()) if stage[0].name == "racecheck"
    )
    assert names == ["racecheck"]


def test_programs_know_the_options(gpu_run):
    parsers = {
        "export.to_plan": command_line.parse,
        "benchmarks.engine": engine._parser().parse_args,
        "benchmarks.dcnv2": dcnv2._parser().parse_args,
    }
    parsed = []
    for step in steps_of(gpu_run).values():
        command = step.command
        if command.startswith("ci/gpu/kernel time"):
            environment = {**os.environ, "PYTHON": "echo"}
            done = subprocess.run(
                shlex.split(command), cwd=ROOT, env=environment, capture_output=True, text=True
            )
            command = f"python {done.stdout}"
        words = shlex.split(command.split("&&")[-1])
        if words[1] == "-m" and words[2] in parsers:
            parsers[words[2]](words[3:])
            parsed.append(words[2])
    assert set(parsed) == set(parsers)
    assert len(parsed) == 9


@pytest.mark.parametrize("part", ["kernels", "engines", "plans"])
def test_precisions_are_steps(gpu_run, part):
    environment = {**os.environ, "PYTHON": "echo"}
    done = subprocess.run(
        ["ci/gpu/precisions", part, "--resume"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    program, *steps, option = done.stdout.split()
    assert Path(program) == Path("ci/gpu/run")
    assert steps
    assert set(steps) <= set(steps_of(gpu_run))
    assert option == "--resume"


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_sanitizers_have_something_to_look_at(gpu_run, tool, tmp_path):
    (tmp_path / "with_gpu.py").write_text("import torch\ntorch.cuda.is_available = lambda: True\n")
    step = steps_of(gpu_run)[tool]
    words = shlex.split(step.command)
    done = subprocess.run(
        [*words[words.index(sys.executable) :], "--collect-only", "-p", "with_gpu"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    small = [line for line in tests if "test_each_tile_on_small_layers" in line]
    assert len(small) == 16
    assert any("test_dcnv2_int8" in line for line in tests)
    for name in ("small_offset_groups", "several_taps"):
        assert any(name in line for line in tests), name
    if tool == "racecheck":
        assert len(tests) < 40, "it takes hours over larger layers"
    else:
        for name in (
            "test_lopsided",
            "out_of_range",
            "test_empty_batch",
            "test_options",
            "test_every_tactic",
        ):
            assert any(name in line for line in tests), name
        assert step.environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--kernel-name arg", "--kernel-name kernel_substring=dcnv2"),
        ("--kernel-regex arg", "--kernel-regex kns=dcnv2"),
    ],
)
def test_sanitizers_look_at_our_kernels_alone(gpu_run, option, expected, tmp_path, monkeypatch):
    script(tmp_path, "compute-sanitizer", f"echo '  {option}  key1=val1'")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for tool in ("memcheck", "racecheck"):
        assert f"--tool {tool} {expected} " in steps_of(gpu_run)[tool].command


def test_toolchain_is_found(gpu_run, monkeypatch):
    monkeypatch.delenv("TENSORRT_LIB", raising=False)
    found = gpu_run._environment()
    assert str(ROOT / ".toolchain/tensorrt-10/python") in found["PYTHONPATH"].split(os.pathsep)
    assert found["LD_LIBRARY_PATH"].split(os.pathsep)[0] == str(ROOT / ".toolchain/tensorrt-10/lib")
    assert found["PYTHON"] == sys.executable
    monkeypatch.setenv("TENSORRT_LIB", "/their/lib")
    theirs = gpu_run._environment()
    assert ".toolchain" not in theirs["PYTHONPATH"]
    assert theirs["LD_LIBRARY_PATH"].split(os.pathsep)[0] == "/their/lib"


def test_a_further_call_adds_to_the_results(gpu_run, tmp_path, monkeypatch):
    commands = {"one": "echo first", "two": "exit 3", "three": "echo '1 passed, 2 skipped in 0.10s'"}

    def call(*arguments):
        fakes = {name: gpu_run.Step(name, command, 30) for name, command in commands.items()}
        monkeypatch.setattr(gpu_run, "stages", lambda _: [[fakes["one"], fakes["two"]], [fakes["three"]]])
        monkeypatch.setattr(sys, "argv", ["ci/gpu/run", "--output", str(tmp_path / "out"), *arguments])
        code = gpu_run.main()
        results = json.loads((tmp_path / "out/results.json").read_text())["steps"]
        return code, {step["name"]: step["state"] for step in results}

    monkeypatch.setattr(gpu_run, "WORK", tmp_path / "work")
    monkeypatch.setattr(gpu_run, "_missing", list)
    monkeypatch.setattr(gpu_run, "_machine", dict)
    first = {"one": "passed", "two": "failed", "three": "skipped"}
    assert call() == (1, first)
    assert call("--deadline-s", "1") == (1, first)
    commands.update(two="echo second", three="echo '3 passed in 0.10s'")
    assert call("two") == (0, first | {"two": "passed"})
    assert call("--resume") == (0, dict.fromkeys(first, "passed"))
    log = (tmp_path / "out/log.txt").read_text()
    assert [line.split(",")[0] for line in log.splitlines() if line.startswith("====")] == [
        *("==== one: passed", "==== two: failed", "==== three: skipped"),
        *("==== one: no time", "==== two: no time", "==== three: no time"),
        *("==== two: passed", "==== three: passed"),
    ]


def test_what_is_missing_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "ci/gpu/run", "--output", tmp_path / "out"],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        "ci/gpu/run: found no nvidia-smi, no nvcc, no compute-sanitizer, no cmake, no ninja"
    )
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["kernel", "kernel build", "kernel time", "coins.py", "coins.py no.plan"])
def test_misuse_is_one_line(command):
    program, *arguments = command.split()
    interpreter = [sys.executable] if program.endswith(".py") else []
    done = subprocess.run(
        [*interpreter, f"ci/gpu/{program}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
