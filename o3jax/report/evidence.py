"""What was seen of a response -> the evidence that its answer shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from o3jax.grounding import Grounding
from o3jax.notes import Note
from o3jax.prompts import coords, grammar
from o3jax.prompts.mentions import claim_numbers
from o3jax.report.answer import Evidence
from o3jax.verify.signals import Observed


def evidence_of(
    seen: Observed, sure: Sequence[float] | None, size: tuple[int, int], fps: float
) -> tuple[tuple[Evidence, ...], list[Note]]:
    """Returns what the response rests on, and what was left out of it.

    With evidence modules one Evidence per claim, theirs with the text's beside it; without them one per box
    of the text (or per claim without a box).

    Args:
        sure: the calibrated confidence of each claim; None: the decoder's, or the mean probability of the
            claim's tokens.
        size: height and width of the video.
        fps: of the frame numbers.
    """
    claims, found, outside, known = grammar.parse(seen.text).claims, [], 0, set()
    numbers = claim_numbers(seen.text, [claim.span for claim in claims])
    for place, (claim, number) in enumerate(zip(claims, numbers, strict=True)):
        what = claim.object, claim.time_s, claim.boxes
        if claim.time_s is None or what in known:  # a loop says the same again and again
            continue
        known.add(what)
        if claim.time_s > seen.duration_s:
            outside += 1
            continue
        likely = seen.probabilities_of(*claim.span)
        confidence = sum(likely) / len(likely) if likely else 0.0
        if sure is not None and not seen.estimates:
            confidence = sure[place]
        stated = [
            _evidence(claim.object, Grounding("", claim.time_s, None, boxes, confidence), size, fps)
            for boxes in [(box,) for box in claim.boxes] or [()]
        ]
        if seen.estimates:
            decoded = seen.estimates[number]
            if sure is not None:
                decoded = dataclasses.replace(decoded, confidence=sure[place])
            own = _evidence(claim.object, decoded, size, fps)
            found.append(dataclasses.replace(own, spread_s=seen.spreads_s[number], text=stated[0]))
        else:
            found += stated
    notes = [Note("claims outside", outside)] if outside else []
    return tuple(found), notes


def _evidence(name: str, found: Grounding, size: tuple[int, int], fps: float) -> Evidence:
    """Returns a grounding of what `name` names, with its frame and its pixels in the video."""
    height, width = size
    px = coords.convert(found.box, coords.NORMALISED, coords.pixels(width, height)) if found.box else None
    return Evidence(
        name,
        found.time_s,
        found.interval,
        found.boxes,
        found.confidence,
        frame=coords.frame_index(found.time_s, fps),
        box_px=tuple(int(c) for c in px) if px else None,
    )
