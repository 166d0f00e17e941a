"""What rewards read of a record: its task, the truth that its answer tells, and how boxes are written.

A record may have the answer of a temporal question as the published RL file spells it (`[10.0, 20.0]`, below
the letter in multiple choice) or as the prompts ask for it; both mean the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from o3jax.errors import UserError
from o3jax.grounding import Box, Grounding, Interval
from o3jax.prompts import coords, grammar
from o3jax.prompts.coords import Space
from o3jax.tasks import TASKS, VISUAL

Record = Mapping[str, Any]

_OPTION = "Correct Option:"


def field(sample: Record, name: str) -> Any:
    """Returns a field of the record.

    Raises:
        UserError: if it is missing.
    """
    if sample.get(name) is None:
        raise UserError(f"field {name!r} is missing in the record to be rewarded; add it")
    return sample[name]


def groundings(items: Iterable[Record]) -> list[Grounding]:
    """Returns the evidence of a record: {"object", "time" or "interval", "box"} each, None where unknown.

    Each has an interval: its own, else its moment as one without length.
    """
    found = []
    for item in items:
        time, interval, box = item.get("time"), item.get("interval"), item.get("box")
        if interval is None and time is not None:
            interval = time, time
        found.append(
            Grounding(
                str(item.get("object", "")),
                None if time is None else float(time),
                None if interval is None else tuple(map(float, interval)),
                () if box is None else (tuple(map(float, box)),),
            )
        )
    return found


def task_of(sample: Record) -> str:
    """Returns the record's task; UserError where it is none of the six."""
    task = field(sample, "task")
    if task not in TASKS:
        raise UserError(f"field 'task' must be one of {', '.join(TASKS)}, not {task!r:.80}")
    return task


def block(text: str, tag: str) -> str | None:
    """Returns what stands in the first block of a tag, or None."""
    _, opened, rest = text.partition(f"<{tag}>")
    inside, closed, _ = rest.partition(f"</{tag}>")
    return inside if opened and closed else None


def box_texts(text: str) -> Iterator[str]:
    r"""Yields the matches of the published `<box>(\[.*?\])</box>`, each within a line, in linear time."""
    for line in text.split("\n"):
        at = 0
        while (begin := line.find("<box>[", at)) >= 0 and (end := line.find("]</box>", begin + 6)) >= 0:
            yield line[begin + 5 : end + 1]
            at = end + 7


def load_box(text: str) -> Box | None:
    """Returns the four finite numbers of a JSON list, or None where the text is anything else."""
    try:
        box = json.loads(text)
        if isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box):
            box = tuple(map(float, box))
            return box if all(map(math.isfinite, box)) else None
    except (ValueError, RecursionError, OverflowError):  # a number may have thousands of digits
        pass
    return None


def first_box(text: str) -> Box | None:
    """Returns the first box of a text; None without one or where that one is no JSON list of four numbers."""
    found = next(box_texts(text), None)
    return None if found is None else load_box(found)


def option(answer: str) -> str:
    """Returns the letter that the truth of a multiple-choice question tells."""
    _, labelled, letter = answer.partition(_OPTION)
    return (letter if labelled else answer.strip().partition("\n")[0]).strip()


def is_option(answer: str, letter: str) -> bool:
    """Whether an answer is exactly this option, written as X, `X.`, `(X)` or `[X]`."""
    return answer.strip() in (letter, f"{letter}.", f"({letter})", f"[{letter}]")


def said_option(answer: str) -> str:
    """Returns what an answer has behind `Correct Option:`; empty without that."""
    return answer.partition(_OPTION)[2]


def interval(answer: str) -> Interval | None:
    """Returns the interval in seconds that the truth of a temporal question tells, or None."""
    pair = answer[answer.find("[") :].strip()
    numbers = [coords.parse_number(part) for part in pair[1:-1].split(",")]
    if pair.startswith("[") and pair.endswith("]") and len(numbers) == 2 and None not in numbers:
        return numbers[0], numbers[1]
    return next(iter(grammar.parse(answer, coords.NORMALISED).intervals), None)


def written_space(sample: Record, default: str) -> Space:
    """Returns the space of the boxes in completions, without rounding: `box_space` of the record.

    It is "pixels" of the size that the model saw (`image_size`, for an image `image_size_refine`),
    "per_mille" (0-1000) or "normalised".

    Raises:
        UserError: if the name is another one, or the size is missing.
    """
    name = sample.get("box_space", default)
    if name == "pixels":
        return size_space(sample, "image_size_refine" if sample.get("task") == VISUAL else "image_size")
    spaces = {"per_mille": Space(1000, 1000), "normalised": coords.NORMALISED}
    if name not in spaces:
        raise UserError(f"field 'box_space' must be pixels, per_mille or normalised, not {name!r:.80}")
    return spaces[name]


def size_space(sample: Record, name: str) -> Space:
    """Returns the space of unrounded pixels of a picture of the size that a field of the record has."""
    try:
        width, height = field(sample, name)
        return Space(float(width), float(height))
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"field {name!r} must be [width, height], not {sample[name]!r:.80}") from None


def answer_box(sample: Record) -> tuple[Box, Space] | None:
    """Returns the box that the truth's answer tells and its space, or None where it tells none.

    The truth of visual QA is in pixels of `image_size`, any other one normalised.
    """
    box = first_box(field(sample, "answer"))
    if box is None:
        return None
    return box, size_space(sample, "image_size") if sample.get("task") == VISUAL else coords.NORMALISED
