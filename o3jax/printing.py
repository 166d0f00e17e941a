"""Text that is safe to show: what records, files and models say may not steer a terminal.

`experiments.cli.terminal` puts it before everything that a command prints.
"""

from __future__ import annotations

import re
import unicodedata

from o3jax.errors import UserError

# Control characters, those that turn the direction of writing or cannot be seen, line and paragraph ends.
_REMOVED = ("Cc", "Cf", "Zl", "Zp")
_HALF = re.compile("[\ud800-\udfff]")
_JOINERS = "\u200c\u200d"  # needed to write some languages, and emoji


def check_whole(text: str, what: str) -> None:
    """Raises a UserError if a text holds half of a character, as bytes of an argument that are no UTF-8 do.

    Args:
        what: the text is, as the error calls it.
    """
    if half := _HALF.search(text):
        raise UserError(
            f"{what} holds {half.group()!r}, half of a character or a byte that is no UTF-8: mend it"
        )


def printable(text: str, keep: str = "") -> str:
    """Returns the text in one line without anything that steers a terminal; any text can then be written.

    White space becomes a space, a half of a character a question mark; control characters and those that
    turn the direction of writing go.

    Args:
        keep: of the white space, what stays: "\\n" in a text of several lines.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character, keep) for character in text)


def shortened(sentence: str, most: int = 400) -> str:
    """Returns a sentence in one printable line of at most so many characters; of a longer one, both ends."""
    text = printable(sentence)
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most - most // 2 - 5) :]}"


def _shown(character: str, keep: str) -> str:
    if character in keep or character.isprintable() or character in _JOINERS:
        return character
    if character.isspace():
        return " "
    kind = unicodedata.category(character)
    return "?" if kind == "Cs" else "" if kind in _REMOVED else character


def clock(seconds: float) -> str:
    """Returns `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def fine_clock(seconds: float) -> str:
    """Returns `1:02:03.4`, without hours where there are none."""
    whole, tenths = divmod(round(seconds * 10), 10)
    text = clock(whole)
    return f"{text if whole >= 3600 else text[2:].removeprefix('0')}.{tenths}"
