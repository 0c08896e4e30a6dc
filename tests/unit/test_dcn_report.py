"""The table of what is fused, and its copy in the documents."""

from pathlib import Path

import foreign
import pytest

from export import dcn_report

ROOT = Path(__file__).parents[2]
NETWORKS = ROOT.parent / "shared" / "cases" / "networks"


def test_what_is_counted(tmp_path, capsys):
    paths = [
        foreign.save(make(), tmp_path / f"{make.__name__}.onnx")
        for make in (foreign.separate, foreign.shared, foreign.flow)
    ]
    dcn_report.main([str(path) for path in paths])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].removeprefix("| ") for row in rows] == ["separate", "shared", "flow"]
    assert [[int(cell.rstrip(" |")) for cell in row[1:]] for row in rows] == [
        [1, 1, 1, 1, 1],
        [3, 3, 0, 0, 3],
        [0, 0, 0, 0, 0],
    ]


def test_the_readmes_table_is_the_commands():
    if not NETWORKS.is_dir():
        pytest.skip(f"no {NETWORKS}")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n".join(dcn_report.table(sorted(NETWORKS.glob("*.onnx")))) in text
