"""What rewards read of a record: its task, the truth that its answer tells, and how boxes are written.

A record may have the answer of a temporal question as the published RL file spells it (`[10.0, 20.0]`, below
the letter in multiple choice) or as the prompts ask for it; both mean the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from o3jax.errors import UserError
from o3jax.grounding import Box, Grounding, Interval
from o3jax.prompts import coords, grammar
from o3jax.prompts.coords import Space
from o3jax.rewards import published
from o3jax.tasks import TASKS, TEMPORAL_MCQ, VISUAL

Record = Mapping[str, Any]


def field(sample: Record, name: str) -> Any:
    """Returns a field of the record; UserError if it is missing."""
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


def plain_boxes(text: str) -> list[Box | None]:
    """Returns what a text has in box tags: four plain numbers in order, or None."""
    found = [coords.parse_box(inside[1]) for inside in coords.BOX.finditer(text)]
    return [box if box and box[0] <= box[2] and box[1] <= box[3] else None for box in found]


def truth(sample: Record) -> str:
    """Returns the record's answer, as text: some files have intervals as lists."""
    return str(field(sample, "answer"))


def option(answer: str) -> str:
    """Returns the letter that the truth of a multiple-choice question tells."""
    _, labelled, letter = answer.partition(published.LABEL)
    return (letter if labelled else answer.strip().partition("\n")[0]).strip()


def is_option(answer: str | None, letter: str) -> bool:
    """Whether an answer is exactly this option, written as X, `X.`, `(X)` or `[X]`."""
    return answer is not None and answer.strip() in (letter, f"{letter}.", f"({letter})", f"[{letter}]")


def interval(sample: Record, more: bool = False) -> Interval | None:
    """Returns the interval in seconds that the truth of a temporal question tells, or None.

    It is a literal of two numbers, in multiple choice on the line below the letter, or as prompts ask for it.

    Args:
        more: whether other things may follow the two numbers.
    """
    text = truth(sample)
    literal = "".join(text.split("\n")[1:2]) if sample.get("task") == TEMPORAL_MCQ else text
    try:
        start, end, *others = published.literal(literal)
        if others and not more:
            return None
        if isinstance(start, int | float) and isinstance(end, int | float):
            return start, end
    except (TypeError, ValueError):  # no pair
        pass
    return next(iter(grammar.parse(text, coords.NORMALISED).intervals), None)


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
    """Returns the first box that the truth's answer tells and its space, or None where it tells none.

    The truth of visual QA is in pixels of `image_size`, any other one normalised.
    """
    box = (next(published.boxes(truth(sample)), None) or [])[:4]
    if not (len(box) == 4 and all(isinstance(v, int | float) and abs(v) < math.inf for v in box)):
        return None
    return tuple(box), size_space(sample, "image_size") if sample.get("task") == VISUAL else coords.NORMALISED
