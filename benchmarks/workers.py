"""A process for each contender: one that crashes, hangs or spoils the GPU spoils nothing else."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.plan.builder import loaded_library


class SkippedError(Exception):
    """The contender cannot run here; its text says why."""


class Worker:
    """`python -m MODULE SPEC.json` while the `with` block is open: `serve` in that module answers.

    Args:
        module: What Python is to run.
        spec: What it has to do.
        timeout_s: It is ended when it has been silent for so long.
        cublas_12: Whether it finds this process's cuBLAS under the only name that NVIDIA's plugin looks for:
            that of CUDA 12.
    """

    def __init__(
        self, module: str, spec: dict[str, Any], *, timeout_s: float, cublas_12: bool = False
    ) -> None:
        self._module, self._spec, self._timeout_s, self._cublas_12 = module, spec, timeout_s, cublas_12

    def __enter__(self) -> "Worker":
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        path = folder / "spec.json"
        path.write_text(json.dumps(self._spec), encoding="utf-8")
        environment = dict(os.environ)
        if self._cublas_12 and (library := loaded_library("libcublas.so")):
            (folder / "libcublas.so.12").symlink_to(library)
            paths = [str(folder), *filter(None, [environment.get("LD_LIBRARY_PATH")])]
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(paths)
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module, str(path)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._last_words = ""
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read, self._listen)]
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def events(self) -> Iterator[dict[str, Any]]:
        """What it says, until it ends; a last `failed` with its reason if it ends badly."""
        while True:
            try:
                line = self._lines.get(timeout=self._timeout_s)
            except queue.Empty:
                yield {"event": "failed", "reason": f"hung: silent for {self._timeout_s:g} s"}
                return
            if line is None:
                break
            said = json.loads(line)
            yield said
            if said["event"] == "failed":
                return
        code = self._process.wait()
        self._readers[1].join(timeout=5)
        if code:
            yield {"event": "failed", "reason": f"ended with {code}: {self._last_words or 'no message'}"}

    def answer(self, line: str) -> None:
        """Send it a line; nobody reads it if the process has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # Libraries write to standard output too.
            if line.startswith('{"event"'):
                self._lines.put(line)
        self._lines.put(None)

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._last_words = line.strip() or self._last_words


def say(event: str, **facts: Any) -> None:
    """In a worker: one thing done."""
    print(json.dumps({"event": event} | facts), flush=True)


def serve(work: Callable[[dict[str, Any]], None]) -> int:
    """In a worker: do what the specification asks for; returns the exit code."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        work(spec)
    except (SkippedError, ImportError, ExportError) as error:
        say("skipped", reason=(str(error) or type(error).__name__).splitlines()[0])
    except Exception as error:
        # A CUDA error stays with its process: what is left to do needs another one.
        say("failed", reason=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        return 1
    else:
        say("done")
    return 0
