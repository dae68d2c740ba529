"""Where tokens begin and end in a text, for all that compares them with spans of it."""


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The place from `start` to `end` without white space at its edges; of white space alone nothing is left.

    Byte-level tokens begin with the space before a word. No span begins there.
    """
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
