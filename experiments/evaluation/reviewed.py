"""Answers that people looked at, to fit a calibration on: `o3jax evaluate --calibrate --reviews DIR`.

What was seen of an answer is not kept beside it, so its question is asked again. A review says what the
answer that it is of is worth: where the model says something else now, it says nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

from experiments.data.reviews import Reviewed, find, right_answer
from experiments.evaluation.observing import Line, answered, claimed, is_right
from o3jax.api import Model
from o3jax.errors import UserError
from o3jax.prompts import coords, grammar
from o3jax.verify.signals import Observed

SPAN_S = 0.5  # on both sides of a time that a person gave no interval


def lines_of_reviews(model: Model, folder: Path) -> list[Line]:
    """Returns a line for each reviewed answer below a folder that the model gives again.

    Raises:
        UserError: if there is none, or a review, its answer or its video cannot be read.
    """
    reviews = list(find(folder))
    found = []
    for one in reviews:
        [(response, seen)] = answered(model, [(Path(one.video), one.question)], 1)
        said = coords.rewrite_boxes(grammar.parse(seen.text).answer, coords.PER_MILLE, coords.NORMALISED)
        if response.never or said != one.said.answer:
            continue
        right = right_answer(one)
        found.append(
            Line(
                id=f"review-{zlib.crc32(one.video.encode(errors='replace')):08x}-{len(found)}",
                level=0,
                kind="review",
                shift="none",
                correct=right is not None and right.answer == said,
                evidence_right=tuple(_right(one, seen)),
                seen=seen,
            )
        )
    if not found:
        raise UserError(
            f"--reviews={folder}: of {len(reviews)} reviewed answers this model gives none again: name the "
            "folder with reviews of its own answers"
        )
    return found


def _right(one: Reviewed, seen: Observed) -> Iterator[bool]:
    """Yields whether each claim's evidence is what a person says; all of it, or none, where nobody says."""
    for found in claimed(seen):
        if one.review.evidence is None:
            yield one.review.verdict != "wrong"
        else:
            yield any(
                is_right(found, true.interval or (true.time_s - SPAN_S, true.time_s + SPAN_S), true.box)
                for true in one.review.evidence
            )
