"""What the evidence modules propose before any text exists, as lines behind the question."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from o3jax.grounding import Grounding
from o3jax.prompts import coords, grammar

FEEDBACK = ("none", "prompt")  # of EvidenceConfig.feedback

# How far proposals of a trained model are off, about (standard deviations), and how often altogether.
_TIME_S, _INTERVAL_S, _BOX = 0.2, 0.1, 0.02
_WRONG = 0.1
_SILENT = 0.25  # of the questions come without any: the text can be written without them, too


def with_proposals(question: str, proposals: Sequence[Grounding], box_step: int = 1) -> str:
    """Returns the question with a line for each proposal, in the words that a response uses.

    Args:
        proposals: when, and perhaps where, something is that may answer the question.
        box_step: see `coords.per_mille`.
    """
    return "\n".join([question, *(_line(proposal, box_step) for proposal in proposals)])


def _line(proposal: Grounding, box_step: int) -> str:
    space, text = coords.per_mille(box_step), ""
    if proposal.box is not None:
        corners = coords.convert(proposal.box, coords.NORMALISED, space)
        text = f"<box>{coords.format_box(corners, space)}</box>"
    text += f"at{grammar.render_time(proposal.time_s)}"
    if proposal.interval is not None:
        start, end = map(grammar.render_time, proposal.interval)
        text += f", visible from {start} to {end}"
    return text + "."


def made_up(
    truth: Sequence[Grounding], sample_id: str, duration: float, *, anyway: bool = False
) -> list[Grounding]:
    """Returns proposals for training: the truth as far off as proposals are, the same ones for the same id.

    One in ten is somewhere else altogether, and one question in four gets none, so that the language
    model keeps looking for itself.

    Args:
        anyway: something is proposed where nothing is true.
    """
    rng = np.random.default_rng(zlib.crc32(sample_id.encode()))
    if rng.random() < _SILENT:
        return []
    found = []
    if anyway and not truth:
        start, end = np.sort(rng.uniform(0, duration, 2)).tolist()
        corners = np.sort(rng.uniform(0, 1, (2, 2)), axis=0).ravel().tolist()
        truth = [Grounding("", rng.uniform(start, end), (start, end), (tuple(corners),))]
    for proposal in truth:
        time, interval, box = proposal.time_s, proposal.interval, proposal.box
        if rng.random() < _WRONG:
            time = rng.uniform(0, duration)
            interval = interval and tuple(np.sort(rng.uniform(0, duration, 2)))
            box = box and tuple(np.sort(rng.uniform(0, 1, (2, 2)), axis=0).ravel())
        time = float(np.clip(time + rng.normal(0, _TIME_S), 0, duration))
        if interval is not None:
            ends = np.clip(interval + rng.normal(0, _INTERVAL_S, 2), 0, duration)
            interval = tuple(np.sort(ends).tolist())
        if box is not None:
            corners = np.clip(box + rng.normal(0, _BOX, 4), 0, 1).reshape(2, 2)
            box = tuple(np.sort(corners, axis=0).ravel().tolist())
        found.append(Grounding("", time, interval, () if box is None else (box,)))
    return found
