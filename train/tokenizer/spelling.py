"""How a byte-level BPE spells text: one character for each byte of its UTF-8."""

from transformers.convert_slow_tokenizer import bytes_to_unicode

_CHARACTERS = bytes_to_unicode()
BYTES = {character: byte for byte, character in _CHARACTERS.items()}


def spell(text: str) -> str:
    """`text` as tokens spell it; the half surrogates of `text_of` become their bytes again."""
    return "".join(map(_CHARACTERS.__getitem__, text.encode("utf-8", "surrogateescape")))


def text_of(token: str, errors: str = "surrogateescape") -> str:
    """The text that a token spells.

    Args:
        errors: what becomes of bytes that are no complete character, as in `bytes.decode`; by default half surrogates.
    """
    return bytes(map(BYTES.__getitem__, token)).decode("utf-8", errors)
