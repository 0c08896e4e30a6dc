"""ci/container/mps.py, with a stand-in for NVIDIA's daemon."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mps_standin import standin

SCRIPT = Path(__file__).parents[2] / "ci/container/mps.py"
COMMAND = ["sh", "-c", "echo $CUDA_MPS_PIPE_DIRECTORY; exit ${CODE:-0}"]


@pytest.fixture
def under_mps(tmp_path):
    def run(*command, code=0, path=None, **changes):
        control = standin(tmp_path, **changes)
        log = control.with_name("log")
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "1",
            "CODE": str(code),
            "PATH": path or f"{control.parent}{os.pathsep}{os.environ['PATH']}",
        }
        done = subprocess.run(
            [sys.executable, SCRIPT, *command], env=environment, capture_output=True, text=True
        )
        said = [line.partition(" ")[2] for line in log.read_text().splitlines()] if log.exists() else []
        return done, said

    return run


def test_a_command_finds_the_service_which_ends_after_it(under_mps):
    done, said = under_mps(*COMMAND)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    assert not Path(done.stdout.strip()).exists()
    assert said == ["-d", "get_server_list", "quit -t 5"]


def test_a_command_that_fails(under_mps):
    done, said = under_mps(*COMMAND, code=3)
    assert (done.returncode, done.stderr) == (3, "")
    assert said == ["-d", "quit -t 5"]


def test_a_service_that_nothing_used_is_no_success(under_mps):
    done, said = under_mps(*COMMAND, servers="")
    assert (done.returncode, done.stderr) == (1, "mps: no process found the service\n")
    assert said[-1] == "quit -t 5"


def test_a_service_that_does_not_start(under_mps):
    done, said = under_mps(*COMMAND, fails=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "mps: nvidia-cuda-mps-control ended with 1: no GPU\n"
    assert said == ["-d"]


def test_without_nvidias_program(under_mps):
    done, _ = under_mps(*COMMAND, path="/nowhere")
    assert done.returncode == 1
    assert done.stderr == "mps: found no nvidia-cuda-mps-control, which is a part of NVIDIA's driver\n"


def test_without_a_command(under_mps):
    done, said = under_mps()
    assert (done.returncode, said) == (2, [])
    assert done.stderr == "usage: mps.py COMMAND [ARGUMENT ...]\n"
