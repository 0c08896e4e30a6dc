"""Class names of any script are legible in drawings, or their numbers are."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from clients import drawing, fonts
from clients.detections import Detections

DIGITS = "#0123456789."


def make_font(path: Path, characters: str, *, ink: bool = True) -> Path:
    """A font with as many bars for a character as it is far from the beginning."""
    names = {char: f"g{ord(char):x}" for char in characters}
    glyphs = {}
    for number, name in enumerate([".notdef", "space", *names.values()]):
        pen = TTGlyphPen(None)
        for bar in range(number if ink and name != "space" else 0):
            left = 40 * bar
            pen.moveTo((left, 0))
            pen.lineTo((left, 700))
            pen.lineTo((left + 20, 700))
            pen.lineTo((left + 20, 0))
            pen.closePath()
        glyphs[name] = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({32: "space", **{ord(char): name for char, name in names.items()}})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, sTypoDescender=-200, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`install(*paths)` makes these the machine's fonts, beside the one that always is there."""

    def forget() -> None:
        fonts.font_for.cache_clear()
        fonts._installed.cache_clear()

    def install(*paths: Path) -> None:
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(map(str, paths)))
        forget()

    install()
    yield install
    forget()


def draw(*names: str) -> np.ndarray:
    count = len(names)
    boxes = np.array([[10, 40 + 60 * i, 200, 80 + 60 * i] for i in range(count)], np.float32)
    found = Detections(boxes, np.full(count, 0.97, np.float32), np.arange(count, dtype=np.int32), names)
    return drawing.draw(np.full((60 + 60 * count, 240, 3), 127, np.uint8), found)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((one == other).all())


def names_of_the_case(shared: Path) -> list[str]:
    return (shared / "cases" / "names-non-ascii.txt").read_text(encoding="utf-8").split()


def test_a_name_is_drawn_with_a_font_that_has_it(install, tmp_path: Path, caplog) -> None:
    latin = make_font(tmp_path / "latin.ttf", "coin" + DIGITS)
    chinese = make_font(tmp_path / "chinese.ttf", "硬币" + DIGITS)
    install(latin, chinese)
    assert fonts.font_for("硬币") == str(chinese)
    assert fonts.font_for("coin") == ""
    drawn = [draw(name) for name in ("硬币", "币硬", "class 0")]
    assert not any(same(drawn[i], drawn[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert not caplog.records


def test_without_a_font_the_number_stands_in(install, caplog) -> None:
    assert same(draw("coin", "硬币"), draw("coin", "class 1"))
    draw("coin", "硬币")
    (record,) = caplog.records
    assert "'硬币'" in record.getMessage()


def test_the_case_without_a_font(install, shared: Path) -> None:
    for name in names_of_the_case(shared):
        assert same(draw(name), draw("class 0"))


def test_a_font_without_ink_or_digits_or_of_last_resort_is_none(install, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.ttf"
    damaged.write_bytes(b"no font")
    install(
        damaged,
        make_font(tmp_path / "blank.ttf", "硬币" + DIGITS, ink=False),
        make_font(tmp_path / "no-digits.ttf", "硬币"),
        make_font(tmp_path / "half.ttf", "硬" + DIGITS),
        make_font(tmp_path / "LastResort-Regular.ttf", "硬币" + DIGITS),
    )
    assert fonts.font_for("硬币") is None


def test_a_plain_font_goes_before_a_bold_one(install, tmp_path: Path) -> None:
    plain, bold = (make_font(tmp_path / name, "硬币" + DIGITS) for name in ("Z.ttf", "A-Bold.ttf"))
    install(bold, plain)
    assert fonts.font_for("硬币") == str(plain)


@pytest.mark.parametrize("name", ["монета", "κέρμα", "gâteau", "żółw", "عملة", "😀", "a😀", "مى\u200cخ"])
def test_names_that_every_machine_can_draw(install, name: str) -> None:
    assert fonts.font_for(name)
    assert not same(draw(name), draw("class 0"))


@pytest.mark.parametrize(
    ("name", "drawn"), [("عملة", False), ("שלום", False), ("e\u0301", False), ("монета", True)]
)
def test_scripts_that_want_a_layout_engine_have_one_or_a_number(
    install, monkeypatch, name: str, drawn: bool
) -> None:
    monkeypatch.setattr(fonts.features, "check", lambda feature: False)
    assert (fonts.font_for(name) is not None) == drawn


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\x1b[2J", "caf\udce9", "\U0010ffff", "class [red]"])
def test_odd_names_are_drawn_somehow(install, name: str) -> None:
    changed = (draw(name) != 127).any(axis=-1)
    assert changed[:40].sum() > 100
