"""How a command line ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(main, stdout, *options):
    program = f"import sys; from export import errors; errors.run(lambda: {main})"
    command = [sys.executable, *options, "-c", program]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.fixture(params=[(), ("-u",)], ids=["buffered", "unbuffered"])
def options(request):
    return request.param


def test_a_reader_who_left_early_is_no_failure(options):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = run("print(1)", gone, *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert run("sys.exit(3)", gone, *options).returncode == 3


def test_another_pipe_that_breaks_is_one():
    done = run("(_ for _ in ()).throw(BrokenPipeError('worker'))", subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "BrokenPipeError: worker"


def test_a_full_disk_is_one_line(options):
    with Path("/dev/full").open("wb") as full:
        done = run("print(1)", full, *options)
    assert done.returncode == 1
    assert done.stderr == "error: standard output: No space left on device\n"


def test_what_the_encoding_lacks_is_escaped(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = run(r"print('M\xfcnze\ud800')", subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "M\\xfcnze\\ud800\n", "")
