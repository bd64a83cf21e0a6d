"""Pictures whose letters matplotlib's own font lacks."""

import warnings

import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from jepa_jax.figures import columns_of, save_figure, shortened


def titled(text: str) -> Figure:
    figure = Figure(figsize=(2, 0.5))
    figure.text(0, 0.5, text, parse_math=False)
    return figure


@pytest.mark.parametrize("text", ["猫が走る", "un gatto", "🐋 moves", "\u00e9", "e\u0301", ""])
def test_a_shortened_text_is_no_wider_than_asked(text):
    assert shortened(text, 8) == text
    assert columns_of(shortened(text * 9, 8)) <= 8
    assert shortened(f"{text} \n {text}", 99) == f"{text} {text}".strip()


def test_letters_of_east_asia_take_two_columns_and_what_joins_others_none():
    assert [columns_of(text) for text in ("猫", "cat", "e\u0301")] == [2, 3, 1]
    assert shortened("猫" * 9, 8) == "猫猫猫…"


def test_letters_that_no_font_has_are_told_once(tmp_path, monkeypatch, caplog):
    own = font_manager.findfont(font_manager.FontProperties())
    fonts = [font for font in font_manager.fontManager.ttflist if font.fname == own]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(titled("a 猫 and a 犬"), tmp_path / "picture.png", dpi=10)
    assert caplog.messages == ["picture.png: no font of this machine has 犬 猫: they are boxes there"]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_letters_that_another_font_has_are_drawn_with_it(tmp_path, monkeypatch, caplog):
    """Fonts of symbols come with matplotlib itself: they stand for those of another script."""
    manager = font_manager.fontManager
    own = font_manager.get_font(manager.findfont(font_manager.FontProperties())).get_charmap().keys()
    symbols = font_manager.get_font(manager.findfont("STIXGeneral")).get_charmap().keys()
    letter = chr(min(symbols - own))
    gone = font_manager.FontEntry(fname=str(tmp_path / "gone.ttf"), name="gone", style="normal", weight=400)
    with monkeypatch.context() as patch:
        patch.setattr(manager, "ttflist", [gone, *manager.ttflist])
        save_figure(titled(letter), tmp_path / "with.png")
    assert not caplog.messages
    monkeypatch.setattr(manager, "ttflist", [])
    save_figure(titled(letter), tmp_path / "without.png")
    pictures = [Image.open(tmp_path / f"{name}.png").tobytes() for name in ("with", "without")]
    assert pictures[0] != pictures[1]
