"""Programs end when they are told to, whatever they wait for."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

WAITING = """
import signal, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from clients import options, sources

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # The tests may run under nohup.
(picture,) = sources.find([sys.argv[1]])
with options.one_line_errors("detect.py", grace_s=0.1) as program:
    waiting = ThreadPoolExecutor(1).submit(picture.read)
    signal.raise_signal(int(sys.argv[2]))
    waiting.result()
sys.exit(program.code)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_pipe_that_nobody_writes_to_holds_no_signal_back(tmp_path: Path, number: signal.Signals) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    command = [sys.executable, "-c", WAITING, tmp_path / "pipe.jpg", str(int(number))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 128 + number
    assert done.stderr == ("detect.py: interrupted\n" if number == signal.SIGINT else "")
