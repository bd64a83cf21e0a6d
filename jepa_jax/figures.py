"""Pictures of matplotlib: their letters, in any script, and their files."""

import io
import itertools
import logging
import unicodedata
import warnings

from etils import epath

logger = logging.getLogger(__name__)


def columns_of(text: str) -> int:
    """How wide a text is, in Latin letters; those of East Asia take two, what joins others none."""
    return sum(0 if unicodedata.combining(x) else 1 + (unicodedata.east_asian_width(x) in "WF") for x in text)


def shortened(text: str, columns: int) -> str:
    """A text on one line of at most so many columns: of a longer one the beginning, and an ellipsis."""
    text = " ".join(text.split())
    if columns_of(text) <= columns:
        return text
    ends = itertools.accumulate(map(columns_of, text))
    return text[: sum(end < columns for end in ends)] + "…"


def save_figure(figure, path: epath.PathLike, **options) -> None:
    """Write a matplotlib figure as what its name ends in, else as PNG; `options` are those of its `savefig`.
    Letters that matplotlib's font lacks are drawn with others of this machine; what none has is told."""
    path = epath.Path(path)
    lacking = _add_fonts(figure)
    content = io.BytesIO()
    with warnings.catch_warnings():
        if lacking:
            logger.warning(
                "%s: no font of this machine has %s: they are boxes there", path.name, " ".join(lacking[:8])
            )
            warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(content, **{"format": path.suffix[1:] or "png"} | options)
    path.write_bytes(content.getvalue())


def _add_fonts(figure) -> list[str]:
    """Give a figure's texts the fonts they take beside their own, and return the letters that none has."""
    from matplotlib import font_manager  # slow to import, and only needed here
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    letters = {ord(x) for text in texts for x in text.get_text() if x.isprintable()}
    manager = font_manager.fontManager
    own = manager.findfont(font_manager.FontProperties())
    lacking = letters - font_manager.get_font(own).get_charmap().keys()
    families = []
    for entry in manager.ttflist:
        if not lacking:
            break
        # A "last resort" has a box for every letter.
        is_plain = entry.style == "normal" and entry.weight == 400 and "resort" not in entry.name.lower()
        if not is_plain or entry.name in families:
            continue
        try:
            font = font_manager.get_font(entry.fname)
        except (OSError, RuntimeError):  # a file that is gone or that FreeType cannot read
            continue
        # Fonts of bitmaps alone, as some of emoji are, cannot be drawn at any size.
        if found := lacking & font.get_charmap().keys() if font.scalable else set():
            families.append(entry.name)
            lacking -= found
    if families:
        for text in texts:
            text.set_fontfamily([*text.get_fontfamily(), *families])
    return [chr(x) for x in sorted(lacking)]
