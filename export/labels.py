"""Files of class names: one a line, UTF-8."""

import json
import re
from collections import defaultdict
from pathlib import Path

from export.errors import UsageError


def read(path: Path) -> list[str]:
    """Reads class names, one a line, in the order of the network's class indices.

    Space around a name and empty lines at the end do not count.

    Raises:
        UsageError: The file cannot be read, is no UTF-8 text or has another form, or a name is empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"labels: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"labels: {path} is no UTF-8 text: {error.reason} at byte {error.start}: save it as UTF-8"
        ) from error
    if "\0" in text:
        raise UsageError(f"labels: {path} is no text: found a zero byte: save it as UTF-8")
    # Not splitlines, which also splits at what is rare but may be in a name.
    names = [line.strip() for line in text.rstrip().split("\n")]
    if form := _other_form(path, text, names):
        raise UsageError(f"labels: {path} is {form}, expected plain text, one name a line")
    return check(names, where=f"labels: {path}") if text.strip() else []


def check(names: list[str], *, where: str) -> list[str]:
    """Returns the names as they are.

    Raises:
        UsageError: A name is empty or no text; the message says which.
    """
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise UsageError(f"{where}: name {number} of {len(names)} is empty, expected one for each class")
        if re.search("[\ud800-\udfff]", name):
            raise UsageError(f"{where}: name {number} of {len(names)} is {name!a}, expected whole characters")
    return names


def repeated(names: list[str]) -> dict[str, list[int]]:
    """The names that several classes have, and the indices of these classes."""
    indices = defaultdict(list)
    for index, name in enumerate(names):
        indices[name].append(index)
    return {name: found for name, found in indices.items() if len(found) > 1}


def _other_form(path: Path, text: str, names: list[str]) -> str | None:
    """What the text is instead of names: what all its lines have in common is then a form's, not a name's."""
    suffix = path.suffix.lower()
    if suffix in (".json", ".jsonl") or _is_json(text):
        return "JSON"
    if suffix in (".yaml", ".yml"):
        return "YAML"
    if re.match(r"""\s*[\[{]\s*(\d+:\s*)?["']""", text):
        return "a list in brackets"
    if len(names) == 1:
        return None
    if all(name.startswith("- ") for name in names):
        return "a YAML list"
    if all(re.fullmatch(r"""(["']).*\1,?""", name) for name in names):
        return "a list of quoted names"
    if all(re.match(rf"{index}[\s:,;=]", name) for index, name in enumerate(names)):
        return "names behind their indices"
    return None


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list | dict)
    except ValueError:
        return False
