"""Every text file is opened with its encoding, where ruff's rule cannot see that a path is one."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (
    "backends",
    "benchmarks",
    "ci",
    "clients",
    "demo",
    "export",
    "model_repository",
    "plugins",
    "server",
)
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
OTHERS = {"Image", "av", "os", "tarfile", "video"}
"""Whose `open` opens something else than a text file."""


def without_encoding(source: str) -> list[int]:
    """Lines of the calls of `open`, `read_text` and `write_text` that do not say the encoding."""
    lines = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or any(keyword.arg == "encoding" for keyword in call.keywords):
            continue
        method = isinstance(call.func, ast.Attribute)
        name = call.func.attr if method else getattr(call.func, "id", "")
        owner = getattr(call.func.value, "id", "") if method else ""
        mode = next(iter(call.args[0 if method else 1 :]), ast.Constant("r"))
        binary = isinstance(mode, ast.Constant) and "b" in str(mode.value)
        if name in ("read_text", "write_text") or (name == "open" and not binary and owner not in OTHERS):
            lines.append(call.lineno)
    return lines


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_name_their_encoding(path: Path) -> None:
    assert without_encoding(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("path.read_text()", True),
        ("path.write_text(text)", True),
        ("path.open('w')", True),
        ("open(path)", True),
        ("path.open('rb')", False),
        ("open(path, 'rb')", False),
        ("path.open(encoding='utf-8')", False),
        ("Image.open(path)", False),
    ],
)
def test_what_is_found(source: str, found: bool) -> None:
    assert bool(without_encoding(source)) == found
