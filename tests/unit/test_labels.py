"""Files of class names."""

import pytest

from export import labels
from export.errors import UsageError


def write(folder, content):
    path = folder / "names.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("coin\nnote\n", ["coin", "note"]),
        ("coin\nnote", ["coin", "note"]),
        ("coin\nnote\n\n \n\t\n", ["coin", "note"]),
        ("coin\r\nnote\r\n\r\n", ["coin", "note"]),
        ("coin\rnote\r", ["coin", "note"]),
        (" coin \nbank note\t\n", ["coin", "bank note"]),
        ("\ufeffcoin\nnote\n", ["coin", "note"]),
        ("硬币\n동전\nعملة\n🪙\n", ["硬币", "동전", "عملة", "🪙"]),
        ("one\u2028name\x85more\n", ["one\u2028name\x85more"]),
        ("[coin]\n", ["[coin]"]),
        ('"coin"\n', ['"coin"']),
        ("7\n", ["7"]),
        ("coin\ncoin\n", ["coin", "coin"]),
        ("- coin\n", ["- coin"]),
        ("- coin\nnote\n", ["- coin", "note"]),
        ("0 coin\n", ["0 coin"]),
        ("0 coin\n2 coins\n", ["0 coin", "2 coins"]),
        ("1 euro\n2 euro\n", ["1 euro", "2 euro"]),
        ("coin, new\ncoin, old\n", ["coin, new", "coin, old"]),
        ("'t hooft\nnote\n", ["'t hooft", "note"]),
        ("", []),
        ("\n\n", []),
    ],
)
def test_names(tmp_path, content, names):
    assert labels.read(write(tmp_path, content)) == names


def test_names_of_any_script(shared):
    assert labels.read(shared / "cases/names-non-ascii.txt") == ["硬币"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("coin\n\nnote\n", "name 2 of 3 is empty"),
        ("\ncoin\n", "name 1 of 2 is empty"),
        ("coin\n \nnote\n\n", "name 2 of 3 is empty"),
        ('["coin", "note"]', "is JSON, expected plain text, one name a line"),
        ('\ufeff{\n "0": "coin"\n}\n', "is JSON"),
        ("[]", "is JSON"),
        ('["coin", "note",]', "is a list in brackets, expected plain text, one name a line"),
        ('[\n "coin",\n "note",\n]\n', "is a list in brackets"),
        ('["coin",\n"note",\n"card"', "is a list in brackets"),
        ("{0: 'coin', 1: 'note'}", "is a list in brackets"),
        ("- coin\n- note\n", "is a YAML list"),
        ("'coin',\n'note'\n", "is a list of quoted names"),
        ('"coin"\n"note"\n', "is a list of quoted names"),
        ("0 coin\n1 note\n", "is names behind their indices"),
        ("0: coin\n1: note\n", "is names behind their indices"),
        ("0,coin\r\n1,note\r\n", "is names behind their indices"),
        ("M\xfcnze\n".encode("latin-1"), "is no UTF-8 text: .* at byte 1: save it as UTF-8"),
        ("硬币\n".encode("gb18030"), "is no UTF-8 text"),
        ("coin\n".encode("utf-16"), "is no UTF-8 text"),
        ("coin\n".encode("utf-16-le"), "is no text: found a zero byte"),
    ],
)
def test_what_is_refused(tmp_path, content, message):
    with pytest.raises(UsageError, match=message) as error:
        labels.read(write(tmp_path, content))
    assert str(error.value).startswith(f"labels: {tmp_path / 'names.txt'}")
    assert "\n" not in str(error.value)


def test_half_a_character_is_no_name():
    with pytest.raises(UsageError, match=r"classes: name 2 of 2 is 'b\\ud800', expected whole characters"):
        labels.check(["a", "b\ud800"], where="classes")


def test_yaml_is_known_by_its_name(tmp_path):
    (tmp_path / "data.yaml").write_text("names: [coin]\n")
    with pytest.raises(UsageError, match="is YAML, expected plain text"):
        labels.read(tmp_path / "data.yaml")


def test_names_that_several_classes_have():
    assert labels.repeated(["a", "b", "a", "c", "a"]) == {"a": [0, 2, 4]}
    assert labels.repeated(["a", "b"]) == {}
