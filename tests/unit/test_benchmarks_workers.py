"""A contender's process, and what its parent hears of it."""

import os
from pathlib import Path

import pytest

from benchmarks import workers
from benchmarks.workers import Worker, working

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


def test_a_module_does_its_work():
    """Without a GPU or without TensorRT: it says why it cannot, as its last words."""
    spec = {"contender": "nvidia", "precision": "fp32", "layers": [], "repeats": 1, "device": "cpu"}
    with working("dcnv2_worker", spec, timeout_s=300) as worker:
        (said,) = worker.events()
    if said["event"] == "skipped":
        assert "tensorrt" in said["reason"]


def test_cublas_is_found_under_the_name_of_cuda_12(monkeypatch, tmp_path):
    library = tmp_path / "libcublas.so.13"
    library.write_bytes(b"")
    monkeypatch.setattr(workers, "loaded_library", lambda name: library)
    script = "import json, os; print(json.dumps({'event': 'path', 'is': os.environ['LD_LIBRARY_PATH']}))"
    monkeypatch.setenv("LD_LIBRARY_PATH", "/theirs")
    for contender, expected in (("nvidia", [library.resolve(), "/theirs"]), ("dcnv2", ["/theirs"])):
        worker = workers.Worker

        def run(command, *, timeout_s, environment, worker=worker):
            return worker(["-c", script], timeout_s=timeout_s, environment=environment)

        monkeypatch.setattr(workers, "Worker", run)
        with working("none", {"contender": contender}, timeout_s=60) as made:
            (said,) = made.events()
            *first, last = said["is"].split(os.pathsep)
            assert [*((Path(one) / "libcublas.so.12").resolve() for one in first), last] == expected
        monkeypatch.setattr(workers, "Worker", worker)
