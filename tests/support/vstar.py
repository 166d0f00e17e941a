"""Parts of V-STaR's evaluation that no command asks for yet: boxes in a model's text, tables by group."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from o3jax.metrics.vstar import Item, parse_answer, score

_FENCE = {
    "[": (re.compile(r"```json\s*\n(?=\[)"), re.compile(r"\]\s*\n```")),
    "{": (re.compile(r"```json\s*\n(?=\{)"), re.compile(r"\}\s*\n```")),
}


def parse_boxes(text: str) -> dict[str, Any] | list[Any] | None:
    """Returns the boxes that the answer holds as JSON: {second: box}, a bare list, or None.

    A list of dicts is merged, a list of [second, box] pairs becomes a dict. What is not JSON is tried
    again with its missing brackets completed; a list stays a list then, and scores 0 for want of keys.
    """
    found = find_json(parse_answer(text))
    if found is None:
        return None
    found = found.replace("'", '"')
    boxes = _load_json(found)
    if isinstance(boxes, dict):
        return boxes
    if isinstance(boxes, list):
        if all(isinstance(entry, dict) for entry in boxes):
            return {key: value for entry in boxes for key, value in entry.items()}
        try:
            return {str(entry[0]): entry[1] for entry in boxes}
        except (TypeError, LookupError, RecursionError):
            pass
    return _load_json(_complete_brackets(found))


def find_json(text: str) -> str | None:
    """Returns the first ```json block that holds a list or object, else the widest bracketed part."""
    spans = []
    for opening, closing in _FENCE.values():
        start = opening.search(text)
        end = closing.search(text, start.end() + 1) if start else None
        if end:
            spans.append((start.start(), text[start.end() : end.start() + 1]))
    if not spans:
        for opening, closing in ("[]", "{}"):
            start, end = text.find(opening), text.rfind(closing)
            if 0 <= start < end:
                spans.append((start, text[start : end + 1]))
    return min(spans)[1] if spans else None


def _complete_brackets(text: str) -> str:
    for opening, closing in ("[]", "{}"):
        missing = text.count(opening) - text.count(closing)
        text = opening * -missing + text + closing * missing
    return text


def _load_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def subgroups(items: Sequence[Item]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Returns {"duration": {group: metrics}, "domain": {group: metrics}} for the groups that occur.

    Durations: Short below 60 s, Medium below 180 s, else Long. Each group's metrics are those of
    `score` plus `N`, its number of items; as published, only items with an `answer_vqa` count here.
    """
    judged = [item for item in items if item.get("answer_vqa")]
    grouped: dict[str, dict[str, list[Item]]] = {"duration": {}, "domain": {}}
    for item in judged:
        grouped["duration"].setdefault(_duration_group(item), []).append(item)
        grouped["domain"].setdefault(str(item.get("domain", "unknown")), []).append(item)
    return {
        kind: {name: {"N": len(members), **score(members)} for name, members in sorted(groups.items())}
        for kind, groups in grouped.items()
    }


def _duration_group(item: Item) -> str:
    try:
        seconds = round(item["frame_count"] / item["fps"], 2)
    except (KeyError, TypeError, ArithmeticError):
        return "unknown"
    return "Short" if seconds < 60 else "Medium" if seconds < 180 else "Long"
