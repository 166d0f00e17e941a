"""What is shown of a text while it grows: reasoning and answer for people, without tags."""

from __future__ import annotations

import re

from o3jax.report.answer import plain_text

_TAG, _MENTION, _AFTER = 16, 400, 12  # characters: of a tag, of a mention, and that decide what follows one
_TAGS = ("obj", "box", "t")
_WHOLE = re.compile(r"<(obj|box|t)>[^<]*+</\1>")


def shown(text: str, language: str, *, final: bool) -> tuple[str, str]:
    """Returns the (reasoning, answer) of a response so far; more text makes both longer, and changes nothing.

    Args:
        text: whole, see `o3jax.prompts.grammar.whole`.
        language: "en" or "zh", how times are written.
        final: nothing follows.
    """
    if not final:
        text = _settled(text)
    head, tag, answer = text.partition("<answer>")
    if not tag:
        # All of it is the answer, unless it opens with reasoning.
        reasons = text.lstrip().startswith("<think>")
        head, _, answer = text.partition("</think>") if reasons else ("", "", text)
    return plain_text(head, language), plain_text(answer.partition("</answer>")[0], language)


def _settled(text: str) -> str:
    """Returns the beginning of a text that reads the same whatever follows: it ends in no tag or mention."""
    text = text.rstrip("\ufffd")  # of a character whose bytes are not all there
    while True:
        ends = [text.rfind("<", max(0, len(text) - _TAG))]
        if ends[0] >= 0 and ">" in text[ends[0] :]:
            ends = []
        ends += [text.rfind(f"<{tag}>", max(0, len(text) - _MENTION)) for tag in _TAGS if _is_open(text, tag)]
        # A box or a time may follow, which is then part of the mention.
        for whole in _WHOLE.finditer(text, max(0, len(text) - _MENTION)):
            if len(text) - whole.end() < _AFTER:
                ends.append(whole.start())
        ends = [end for end in ends if end >= 0]
        if not ends:
            return text
        text = text[: min(ends)]


def _is_open(text: str, tag: str) -> bool:
    return text.rfind(f"<{tag}>") > text.rfind(f"</{tag}>")
