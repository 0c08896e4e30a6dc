"""A soak in its short form, of a server that suffers nothing and of one with planted faults."""

import pytest
from servers import make_repository, stop

from benchmarks import soak

# Not in the default gate: Triton 24.10 sometimes dies under such a load, see docs/serving-performance.md.
pytestmark = [pytest.mark.server, pytest.mark.soak]

SIZES = {(64, 48): 4, (320, 240): 6, (640, 480): 4, (1280, 960): 1}
# With more load, on two cores, answers wait in the process that makes it.
SHORT = {"load": 3, "sizes": SIZES, "capacity_s": 3}
MOST_GROWTH = 0.1
"""Of a third of a short time. The long form holds a hundredth."""

# From its first request on the postprocess keeps more and more each second; it swaps the answers of a batch.
FAULTS = """

import threading
import time


def keep():
    kept, begin = [], time.monotonic()
    while (seconds := time.monotonic() - begin) < 40:
        kept.append(b"x" * int(3e6 * seconds**2 - sum(map(len, kept))))
        time.sleep(0.1)


leak = threading.Thread(target=keep, daemon=True)


def wrong(self, requests):
    if not leak.ident:
        leak.start()
    responses = right(self, requests)
    return responses[1:] + responses[:1]


right = TritonPythonModel.execute
TritonPythonModel.execute = wrong
"""


def test_server_suffers_nothing(server):
    result = soak.soak(server, seconds=15, **SHORT)
    assert result.failures(most_growth=MOST_GROWTH) == []
    assert result.outcomes.counts["vanished"] > 0
    assert result.outcomes.counts["damaged, refused"] > 0
    assert server.alive


def test_planted_faults_are_seen(serve, small_onnx, tmp_path):
    repository = make_repository(tmp_path, small_onnx)
    with (repository / "centernet_postprocess/1/model.py").open("a", encoding="utf-8") as file:
        file.write(FAULTS)
    server = serve(repository)
    failures = " ".join(soak.soak(server, seconds=12, **SHORT).failures(most_growth=MOST_GROWTH))
    stop(server.process)  # What it keeps is the machine's.
    assert "requests answered wrongly" in failures
    assert "memory grew by" in failures


def test_two_minutes(server):
    """Pictures of 12 megapixels come and go: on a busy machine, memory swings by a fifth in this time."""
    assert soak.soak(server, seconds=120, load=10).failures(most_growth=0.25) == []
