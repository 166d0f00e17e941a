"""Answers to questions of the synthetic world with all that was seen of them, one JSON line each, kept on
disk.

A run that was stopped goes on where it was; what is measured of the lines costs no model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.synthetic.scenes import Object
from experiments.evaluation.scores import Question, score
from experiments.evaluation.shifts import write_clips
from experiments.evaluation.synthetic import in_batches
from experiments.library.records import append_line, lines
from o3jax.api import Model
from o3jax.grounding import Box, Grounding
from o3jax.inference.respond import Response
from o3jax.metrics.boxes import box_iou
from o3jax.prompts import grammar
from o3jax.prompts.mentions import claim_numbers
from o3jax.verify.signals import Observed

MAX_NEW_TOKENS = 128  # of 800 texts those that ended had 90 at most
# Questions answered at a time, by level; those about long clips are answered one by one anyhow.
_BATCH = {1: 16, 2: 16, 3: 1}
_MIN_IOU = 0.5  # of the box of right evidence


@dataclasses.dataclass(frozen=True)
class Part:
    """Some questions: of a level, of a split, as they are or under a shift."""

    level: int
    split: str
    count: int
    shift: str = "none"
    seed: int = 0

    @property
    def name(self) -> str:
        return f"l{self.level}-{self.split}-{self.seed}-{self.shift}"


@dataclasses.dataclass(frozen=True)
class Line:
    """One answer, what is right about it, and what was seen of it."""

    id: str
    level: int
    kind: str
    shift: str
    correct: bool
    evidence_right: tuple[bool, ...]  # of each claim of the response
    seen: Observed
    never: bool = False  # whether the answer is that what is asked for never appears, see `search_on`

    @staticmethod
    def of(values: dict[str, Any]) -> Line:
        """Returns the line that `dataclasses.asdict` made these values of."""
        seen = values["seen"]
        estimates = tuple(
            Grounding(
                time_s=e["time_s"],
                interval=tuple(e["interval"]),
                boxes=tuple(map(tuple, e["boxes"])),
                confidence=e["confidence"],
            )
            for e in seen.pop("estimates")
        )
        tuples = {name: _tuple(value) for name, value in seen.items()}
        right = tuple(values.pop("evidence_right"))
        return Line(**values | {"evidence_right": right, "seen": Observed(**tuples, estimates=estimates)})


def lines_of(
    model: Model, part: Part, folder: Path, on_answer: Callable[[int], None] = lambda n: None
) -> list[Line]:
    """Returns the answers to a part's questions; those that are in the folder's file already are read.

    Args:
        folder: of the lines, `NAME.jsonl`, and of the clips, `clips/`.
    """
    file = folder / f"{part.name}.jsonl"
    there = list(_read(file))[: part.count]
    on_answer(len(there))
    if len(there) == part.count:
        return there
    done = {line.id for line in there}
    clips = write_clips(folder / "clips", part.shift, part.split, part.count, part.level, part.seed)
    rest = [clip for clip in clips if clip[0].sample.id not in done]
    folder.mkdir(parents=True, exist_ok=True)
    size = _BATCH[part.level]
    for begin in range(0, len(rest), size):
        some = rest[begin : begin + size]
        for line in _answered(model, part, some):
            append_line(file, dataclasses.asdict(line))
            there.append(line)
        on_answer(len(some))
    return there


def _answered(model: Model, part: Part, clips: list[tuple[Question, Path]]) -> Iterator[Line]:
    asked = [(path, question.sample.question) for question, path in clips]
    for (question, _), (response, seen) in zip(
        clips, answered(model, asked, _BATCH[part.level]), strict=True
    ):
        yield Line(
            id=question.sample.id,
            level=part.level,
            kind=question.sample.kind,
            shift=part.shift,
            correct=score(question, response.text, response.estimates).correct,
            evidence_right=() if response.never else tuple(_right(question, seen)),
            seen=seen,
            never=response.never is not None,
        )


def answered(
    model: Model, asked: Sequence[tuple[Path, str]], size: int
) -> Iterator[tuple[Response, Observed]]:
    """Yields how the model answers up to `size` questions about videos, and what was seen of each answer."""
    respond = in_batches(model, size, MAX_NEW_TOKENS)
    read = [model.request(path, question) for path, question in asked]
    responses, requests, shown = zip(*model.respond_searching(respond, read), strict=True)
    again = model.ask_again(respond, requests, responses)
    for (_, question), clip, response, passes in zip(asked, shown, responses, again, strict=True):
        yield response, model.observe(response, question, clip, passes)


def claimed(seen: Observed) -> list[Grounding]:
    """Returns the evidence of each claim of a response, the decoder's word where there is one."""
    claims = grammar.parse(seen.text).claims
    numbers = claim_numbers(seen.text, [claim.span for claim in claims])
    return [
        seen.estimates[number] if number < len(seen.estimates) else claim
        for claim, number in zip(claims, numbers, strict=True)
    ]


def _right(question: Question, seen: Observed) -> Iterator[bool]:
    """Yields whether each claim's evidence is right: its time is one at which an object that answers is
    visible, and its box has IoU >= 0.5 with that object's at this time."""
    truth = [question.thing(mention.object) for mention in question.sample.mentions]
    for found in claimed(seen):
        yield any(
            _shows(thing, interval, found)
            for thing, interval in zip(truth, question.sample.intervals, strict=True)
        )


def _shows(thing: Object, interval: tuple[float, float], found: Grounding) -> bool:
    return found.time_s is not None and is_right(found, interval, thing.box(found.time_s))


def is_right(found: Grounding, interval: tuple[float, float], box: Box | None) -> bool:
    """Returns whether evidence lies in an interval, and its box has IoU >= 0.5 with the right one."""
    there = found.time_s is not None and interval[0] <= found.time_s <= interval[1]
    return there and found.box is not None and box is not None and box_iou(found.box, box) >= _MIN_IOU


def _read(file: Path) -> Iterator[Line]:
    """Yields each answer once: two processes may have given it."""
    found = {values["id"]: values for values in lines(file)}
    yield from map(Line.of, found.values())


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
