"""A contender's process, and what its parent hears of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.workers import Worker, with_cublas_12
from export.plan.builder import loaded_library

pytestmark = pytest.mark.wide


def events(script):
    with Worker(["-c", script], timeout_s=60) as worker:
        return list(worker.events())


SAY = "import json, os, sys, time\nsay = lambda **facts: print(json.dumps(facts), flush=True)\n"


def test_events_among_other_output():
    script = SAY + "print('noise'); say(event='layer', us=2); say(event='done')"
    assert events(script) == [{"event": "layer", "us": 2}, {"event": "done"}]


def test_a_process_that_crashes_ends_with_its_last_words():
    script = SAY + "say(event='layer'); sys.stderr.write('out of luck\\n'); sys.stderr.flush(); os._exit(3)"
    assert events(script) == [{"event": "layer"}, {"event": "failed", "reason": "ended with 3: out of luck"}]


def test_a_process_that_hangs_is_ended():
    with Worker(["-c", SAY + "say(event='layer'); time.sleep(600)"], timeout_s=60) as worker:
        said = worker.events()
        assert next(said) == {"event": "layer"}
        worker._timeout_s = 0.2  # only now: a busy machine starts a process slowly
        assert list(said) == [{"event": "failed", "reason": "hung: silent for 0.2 s"}]


def test_a_failure_is_reported_once():
    assert events(SAY + "say(event='failed', reason='no'); sys.exit(1)") == [
        {"event": "failed", "reason": "no"}
    ]


def test_a_worker_is_answered():
    script = SAY + "say(event='outputs'); say(event='heard', line=sys.stdin.readline())"
    with Worker(["-c", script], timeout_s=30) as worker:
        found = []
        for event in worker.events():
            found.append(event)
            if event["event"] == "outputs":
                worker.answer("go")
    assert found[-1] == {"event": "heard", "line": "go\n"}


def test_cublas_is_found_under_the_name_of_cuda_12(tmp_path):
    pytest.importorskip("torch")
    if loaded_library("libcublas.so") is None:
        pytest.skip("a PyTorch without CUDA")
    environment = with_cublas_12(tmp_path)
    script = "import torch; from benchmarks.tensorrt_engine import load_cublas; load_cublas()"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
