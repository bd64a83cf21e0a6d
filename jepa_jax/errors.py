"""What an error is called in a sentence of ours."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name where it has none, as a TimeoutError."""
    return next(iter(str(error).splitlines()), type(error).__name__)
