"""Does the server still answer? Triton never starts again the process of a Python model that has died."""

import os
import re
import sys
import threading
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import health

FAILURES, AMONG = 3, 8
"""So many failures among the last inferences are no hiccup. The dead process of a Python model shows by one:
where there are several, Triton may seldom ask it."""

UNHEALTHY = re.compile("Stub process '([^']+)' is not healthy")


@dataclass
class Watch:
    """Real inferences, every `interval_s`; `gone` is set when the server no longer answers.

    It begins with the first answer: a server that never gives one is not helped by another start.

    Attributes:
        metrics_port: Of the server.
        interval_s: Pause between inferences, seconds.
        url: Where they go.
        gone: Set once, and for good.
    """

    metrics_port: int
    interval_s: float
    url: str
    gone: threading.Event = field(default_factory=threading.Event)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Watches from a thread of its own, for as long as the process lives."""
        threading.Thread(target=self.run, daemon=True).start()

    def stop(self) -> None:
        """Asks no more: a server that drains waits until nobody does."""
        self._stopped.set()

    def run(self) -> None:
        """Watches until the server no longer answers."""
        failed: deque[bool] = deque(maxlen=AMONG)
        answers = 0.0
        while sum(failed) < FAILURES:
            if self._stopped.wait(self.interval_s):
                return
            before, answers = answers, answered(self.metrics_port)
            try:
                health.infer(self.url)
            except health.UnhealthyError as error:
                # Refused or late while others are answered: load, not death.
                if not failed or (error.busy and answers > before):
                    continue
                failed.append(True)
                print(f"entrypoint: inference failed: {error}", file=sys.stderr, flush=True)
                if names_a_dead_process(str(error)):
                    break
            else:
                failed.append(False)
        self.gone.set()


def names_a_dead_process(error: str) -> bool:
    """Whether Triton's words are of a Python model's process that has ended; another may only be slow."""
    found = UNHEALTHY.search(error)
    return found is not None and not any(found[1] in words for words in _command_lines())


def _command_lines() -> Iterator[list[str]]:
    """Of the processes of this group. One that has ended has none, even if its parent does not know yet."""
    group = os.getpgrp()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if os.getpgid(int(path.parent.name)) == group:
                yield path.read_bytes().decode(errors="replace").split("\0")


def answered(metrics_port: int) -> float:
    """How many requests have come through the last model of the ensembles; 0 where nothing says so."""
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in metrics(metrics_port)
        if line.startswith('nv_inference_request_success{model="centernet_postprocess"')
    )


def metrics(port: int) -> list[str]:
    """The lines of Triton's metrics; none where it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
            return answer.read().decode().splitlines()
    except OSError:
        return []
