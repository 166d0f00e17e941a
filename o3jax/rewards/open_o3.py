"""The published Open-o3 Video rewards (marinero4972/Open-o3-Video, `reward_func.py`), bug for bug.

So far the term for the format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_TEMPORAL = ("temporal QA", "temporal QA (MCQ)")
_SPATIAL = ("temporal-spatial free-form QA", "visual QA")
_OBJECT = re.compile(r"<obj>\w+</obj><box>\[")  # of one word: the published pattern takes no spaces


def format_term(completion: str, sample: Mapping[str, Any]) -> float:
    """Returns 0 for missing or unbalanced tags, else 1 for a text with the task's evidence, 0.5 without.

    Evidence are two `<t>` in the reasoning for temporal tasks, one each of `<obj>`, `<t>`, `<box>` for the
    spatial ones or, for questions about an image, an object with a box anywhere. General tasks need none.

    Args:
        sample: the published record; its `task` is read.
    """
    think, answer = _block(completion, "think"), _block(completion, "answer")
    if think is None or answer is None:
        return 0.0
    if not (_balanced(completion, "think", "answer") and _balanced(think, "obj", "t", "box")):
        return 0.0
    task = sample["task"]
    if task in _TEMPORAL:
        return 1.0 if think.count("<t>") >= 2 else 0.5
    if task in _SPATIAL:
        shown = all(f"<{tag}>" in think for tag in ("obj", "t", "box"))
        return 1.0 if shown or (task == "visual QA" and _has_box(completion)) else 0.5
    return 1.0


def _block(text: str, tag: str) -> str | None:
    """Returns what stands in the first block of a tag, or None."""
    _, opened, rest = text.partition(f"<{tag}>")
    inside, closed, _ = rest.partition(f"</{tag}>")
    return inside if opened and closed else None


def _balanced(text: str, *tags: str) -> bool:
    return all(text.count(f"<{tag}>") == text.count(f"</{tag}>") for tag in tags)


def _has_box(text: str) -> bool:
    """Whether an object with its box stands in one line; in linear time, unlike the published pattern."""
    return any(
        (found := _OBJECT.search(line)) and line.rfind("]</box>") >= found.end() for line in text.split("\n")
    )
