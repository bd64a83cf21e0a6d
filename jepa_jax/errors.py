"""What an error is called in a sentence of ours, and what others' words look like in one."""

import unicodedata


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name where it has none, as a TimeoutError."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def printable(text: str) -> str:
    """A text of a dataset as a terminal and a log may have it: what would begin another line, or tell the
    terminal what to do, as its escape."""

    def shown(x: str) -> bool:
        # Spaces of every script, and what joins emoji and letters, are no more than what they show.
        return x.isprintable() or x in "\u200c\u200d" or unicodedata.category(x) == "Zs"

    return "".join(x if shown(x) else x.encode("unicode_escape").decode() for x in text)


def encodable(text: str) -> str:
    """A text without what UTF-8 has no letters for, so that it can be kept: "caf\\udce9" where a file is
    called by other bytes, or JSON holds half a surrogate pair."""
    return text.encode(errors="backslashreplace").decode()
