"""Several questions about one piece of a video: only those are put whose subject seems to be there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from experiments.library.windows import put
from o3jax.api import Model
from o3jax.inference.matching import match
from o3jax.inference.respond import Request, add_evidence_inputs, encode_visuals, pad_inputs
from o3jax.inference.together import asked_of
from o3jax.report.answer import Answer
from o3jax.report.moments import Moment, moments_of
from o3jax.video import Clip


@dataclasses.dataclass(frozen=True)
class Question:
    """What is looked for in every piece of every video."""

    name: str  # of the event, or of the tag
    question: str
    object: str = ""  # what evidence must name; findings that name something else alone are left out
    min_confidence: float = 0.0  # less sure findings are left out
    min_s: float = 0.0  # shorter ones too


def answers(
    model: Model,
    piece: Request,
    clip: Clip,
    path: str,
    questions: Sequence[str],
    max_new_tokens: int,
    *,
    anyway: bool = False,
) -> list[Answer | None]:
    """Returns the answer to each question about a piece; None where nothing in it is relevant to one.

    A model without evidence modules is asked everything. Each is generated alone, so that it is the same
    whatever else is asked.

    Args:
        anyway: everything is asked, whether relevant or not.
    """
    requests = [put(model, piece, question) for question in questions]
    found: list[Answer | None] = []
    wanted = [True] * len(requests) if anyway else relevant(model, requests)
    for request, there in zip(requests, wanted, strict=True):
        if there:
            response = model.respond([request], max_new_tokens=max_new_tokens)[0]
            found.append(model.concluded(response, request.question, clip, path, model.settings.fps))
        else:
            found.append(None)
    return found


def relevant(model: Model, requests: Sequence[Request]) -> list[bool]:
    """Returns for each question about one video whether the evidence modules would search any of it."""
    if model.config.evidence is None or not requests:
        return [True] * len(requests)
    first, processor = requests[0], model.processor
    inputs = processor(
        text=[first.prompt], videos=[first.frames], video_metadata=[first.metadata], padding_side="right"
    )
    batch = pad_inputs(inputs, model.backbone)
    batch = add_evidence_inputs(model.backbone, processor, [first], inputs["video_grid_thw"], batch)
    visuals = encode_visuals(model.backbone, batch)
    found = match(model.backbone, asked_of(processor, requests, batch), visuals)
    return [bool(intervals) for intervals in found.intervals]


def moments(question: Question, answer: Answer | None, start_s: float) -> list[Moment]:
    """Returns the moments of a piece that starts at `start_s`, with the video's times."""
    found = moments_of(answer, question.name) if answer else []
    wanted, kept = question.object.casefold(), []
    for moment in found:
        named = [e.object.casefold() for e in moment.evidence if e.object]
        if moment.confidence >= question.min_confidence and (not named or any(wanted in n for n in named)):
            kept.append(moment.later(start_s))
    return kept
