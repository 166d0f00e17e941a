"""What was seen of an answer being made, and whether it rests on its evidence: two more passes, in which only
the evidence is shown, or all but the evidence.

What is not shown is left out of both streams before anything reads it, so nothing of it can leak through the
temporal encoder or through keys and values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool

from o3jax.grounding import Interval
from o3jax.inference.respond import Request, Response, size_of
from o3jax.inputs.processor import Processor
from o3jax.notes import Note
from o3jax.prompts import grammar
from o3jax.verify.signals import Observed

_MARGIN_S = 0.3  # around the evidence that is shown with it
_MOMENT_S = 0.5  # of a moment without an interval, to each side

# What is answered where only the evidence is shown, and where it is hidden; None: not asked.
Answers = tuple[str | None, str | None]


def observe(
    processor: Processor,
    question: str,
    response: Response,
    duration_s: float,
    faults: Sequence[Note],
    finished: bool,
    passes: Answers | None = None,
) -> Observed:
    """Returns what was seen of a response being made: all that its signals are taken from.

    Args:
        duration_s: of the video.
        faults: the reasons that its text gives to check it, see `o3jax.verify.reasons`.
        finished: whether the model ended the text.
        passes: of `ask_again`.
    """
    decode = processor.decode
    kept, hidden = passes or (None, None)
    text = decode(response.tokens)
    ends = [len(decode(response.tokens[: i + 1])) for i in range(len(response.tokens))]
    if response.clock is not None:
        text, ends = response.clock.said(text, ends)
    return Observed(
        question=question,
        text=text,
        ends=tuple(ends),
        probabilities=tuple(response.probabilities.tolist()),
        duration_s=float(duration_s),
        faults=tuple(faults),
        finished=finished,
        estimates=response.estimates,
        spreads_s=tuple(estimate.spread_s for estimate in response.estimates),
        proposed=tuple(proposal.confidence for proposal in response.proposals),
        curve=response.curve(),
        candidates=tuple(response.candidates),
        kept=kept,
        hidden=hidden,
    )


def ask_again(
    respond: Callable[[list[Request]], list[Response]],
    requests: Sequence[Request],
    responses: Sequence[Response],
    padded: bool = False,
) -> list[Answers]:
    """Returns what is answered to each request with only its evidence, and with all but its evidence.

    Args:
        respond: answers requests, as `Model.respond`; it is called once with only the evidence, and once
            without it.
        responses: what was answered to the whole requests.
        padded: whether what is shown is padded to the whole requests, so that their programs serve.
    """
    passes = []
    for change in (only, without):
        said: list[str | None] = [None] * len(requests)
        shown = [change(*pair) for pair in zip(requests, map(evidence_of, responses), strict=True)]
        rows = [number for number, request in enumerate(shown) if request is not None]
        if padded:
            room = [tuple(count for count, _ in size_of(request)) for request in requests]
            shown = [
                request and dataclasses.replace(request, room=room[n]) for n, request in enumerate(shown)
            ]
        if rows:
            for number, response in zip(rows, respond([shown[number] for number in rows]), strict=True):
                said[number] = grammar.parse(response.text).answer
        passes.append(said)
    return list(zip(*passes, strict=True))


def evidence_of(response: Response) -> list[Interval]:
    """Returns the seconds that a response rests on: the decoder's intervals, or around what the text
    names."""
    found = [e.interval for e in response.estimates if e.interval is not None]
    if not response.estimates:
        parsed = grammar.parse(response.text)
        found = [*parsed.intervals]
        found += [(c.time_s, c.time_s) for c in parsed.claims if c.time_s is not None]
    return [
        (min(start, (start + end) / 2 - _MOMENT_S), max(end, (start + end) / 2 + _MOMENT_S))
        for start, end in found
    ]


def only(request: Request, evidence: Sequence[Interval]) -> Request | None:
    """Returns the request with the frames of the evidence and nothing else; None where it has none."""
    near = [(start - _MARGIN_S, end + _MARGIN_S) for start, end in evidence]
    return _shown(request, near, True)


def without(request: Request, evidence: Sequence[Interval]) -> Request | None:
    """Returns the request without the frames of its evidence; None where nothing else is there."""
    return _shown(request, evidence, False)


def _shown(request: Request, intervals: Sequence[Interval], inside: bool) -> Request | None:
    indices = np.asarray(request.metadata["frames_indices"])
    times = indices / request.metadata["fps"]
    shown = _pairs(times, intervals, inside)
    if not shown.any():
        return None
    metadata = {**request.metadata, "frames_indices": indices[shown]}
    result = dataclasses.replace(request, frames=request.frames[shown], metadata=metadata)
    if request.dense_frames is None:
        return result
    dense = _pairs(request.dense_times, intervals, inside)
    if not dense.any():
        return None
    return dataclasses.replace(
        result, dense_frames=request.dense_frames[dense], dense_times=request.dense_times[dense]
    )


def _pairs(times: np.ndarray, intervals: Sequence[Interval], inside: bool) -> Bool[np.ndarray, " n"]:
    """Returns which frames are shown: whole pairs, of which a shown one lies on the right side altogether."""
    there = np.zeros(len(times), bool)
    for start, end in intervals:
        there |= (times >= start) & (times <= end)
    keep = there if inside else ~there
    by_pair = np.append(keep, keep[-1:] if len(keep) % 2 else keep[:0]).reshape(-1, 2)
    whole = by_pair.any(-1) if inside else by_pair.all(-1)
    return np.repeat(whole, 2)[: len(times)]
