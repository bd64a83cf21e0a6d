"""Others' words in sentences of ours."""

import pytest

from jepa_jax.errors import encodable, printable


@pytest.mark.parametrize("text", ["größe 👨‍👩‍👧 of Zoë", "全角\u3000空白", "12\xa0kg", "नमस्ते", ""])
def test_texts_of_any_script_are_shown_as_they_are(text):
    assert printable(text) == text
    assert encodable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[2Jx", r"\x1b[2Jx"),
        ("a\u202egpj.exe", r"a\u202egpj.exe"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_would_act_on_a_terminal_is_spelled_out(text, shown):
    assert printable(text) == shown
    assert encodable(text).encode()
