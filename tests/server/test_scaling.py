"""`benchmarks.scaling` on two real servers behind Envoy."""

import pytest
from chart import fetch_tools
from servers import make_repository

from benchmarks.scaling import compared

pytestmark = [pytest.mark.server, pytest.mark.wide]


def test_measured_beside_simulated(small_onnx, tmp_path):
    fetch_tools()
    head, _, *rows = compared(make_repository(tmp_path, small_onnx), seconds=2).splitlines()
    assert len(rows) == 5
    assert "Simulated with what lone requests show" in rows[-1]
    for row in rows[:3]:
        cells = dict(zip(head.split("|"), row.split("|"), strict=True))
        figures = {name.strip(): float(cell.strip().rstrip("%") or 0) for name, cell in cells.items()}
        assert figures["failed"] == 0
        assert figures["pictures a second"] > 0
        assert figures["queue measured, ms"] > 0
        assert figures["batch, ms"] + figures["picture, ms"] > 0
