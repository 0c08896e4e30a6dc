#!/usr/bin/env python3
"""Runs a command under CUDA's Multi-Process Service: mps.py COMMAND [ARGUMENT ...].

Processes then use a GPU at the same time, where they would otherwise have it in turns. A fault of one on the
GPU ends all of them.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

CONTROL = "nvidia-cuda-mps-control"


class MpsError(Exception):
    """The service cannot be started; the text says why."""


@contextmanager
def shared_gpu() -> Iterator[dict[str, str]]:
    """Starts the service, and ends it together with what still uses it.

    Yields:
        The environment variables by which processes find it.

    Raises:
        MpsError: it does not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        try:
            done = _control(found, ["-d"])
        except FileNotFoundError as error:
            raise MpsError(f"found no {CONTROL}, which is a part of NVIDIA's driver") from error
        if done.returncode:
            raise MpsError(f"{CONTROL} ended with {done.returncode}: {done.stderr.strip()}")
        try:
            yield found
        finally:
            # Without a time, it would wait for a process that hangs.
            _control(found, [], "quit -t 5\n")


def is_used(found: dict[str, str]) -> bool:
    """Whether any process has found the service: where CUDA does not, it does without, and says nothing."""
    return bool(_control(found, [], "get_server_list\n").stdout.strip())


def _control(found: dict[str, str], arguments: list[str], said: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **found}
    environment.pop("CUDA_VISIBLE_DEVICES", None)  # The service numbers anew what it sees.
    command = [CONTROL, *arguments]
    try:
        return subprocess.run(
            command, env=environment, input=said, capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", "no answer in 60 s")


def main() -> int:
    """Returns the command's exit code; 1 if the service did not start or nothing used it."""
    if len(sys.argv) < 2:
        print("usage: mps.py COMMAND [ARGUMENT ...]", file=sys.stderr)
        return 2
    try:
        with shared_gpu() as found:
            code = subprocess.run(sys.argv[1:], env={**os.environ, **found}, check=False).returncode
            if code == 0 and not is_used(found):
                raise MpsError("no process found the service")
            return code
    except MpsError as error:
        print(f"mps: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
