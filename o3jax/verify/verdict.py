"""How sure an answer may be, and why: its confidence and the reasons, with a calibration and without one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from o3jax.grounding import Grounding
from o3jax.notes import Note
from o3jax.prompts import grammar
from o3jax.verify import reasons
from o3jax.verify.confidence_model import Calibration
from o3jax.verify.risk import Bound
from o3jax.verify.signals import Observed, evidence_signals, sameness

VERIFY = ("full", "cheap")  # with the two more passes of `o3jax.inference.hidden`, and without
# What a confidence is.
CALIBRATED, UNCALIBRATED, ABSENT = "calibrated", "mean token probability", "as sure as absence may be"

_CLOSE_S, _FAR_S = 0.5, 1.0  # of the times of text and decoder
OVERLAP, _APART = 0.5, 0.3  # of their boxes
_UNSURE_S = 1.5  # spread of the decoder's time
_UNLIKELY = 0.5  # probability of the least likely token of an answer
_SAME = 0.5  # of two answers


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How sure an answer may be."""

    confidence: float
    kind: str  # `CALIBRATED`, `UNCALIBRATED` or `ABSENT`
    claims: tuple[float, ...] | None  # calibrated confidence of each claim's evidence
    reasons: tuple[Note, ...]  # what speaks against it, then what speaks for it
    bound: Bound | None  # the lowest promised share of wrong answers among those as sure


def absent(why: Note) -> Verdict:
    """Returns the verdict on "it never appears": for a person to check, as no search looks at everything."""
    return Verdict(reasons.MOST, ABSENT, None, (why,), None)


def verdict(seen: Observed, calibration: Calibration | None, full: bool = False) -> Verdict:
    """Returns the verdict on what was seen of a response.

    Without a calibration the confidence is the mean probability of the tokens, and the reasons are its
    faults. With either, a response with faults is not sure enough to pass without a review.

    Args:
        full: whether the two more passes were made.
    """
    faults, likely = seen.faults, seen.probabilities
    if calibration is None:
        confidence = sum(likely) / len(likely) if likely else 0.0
        return Verdict(_capped(confidence, faults), UNCALIBRATED, None, tuple(faults), None)
    confidence = _capped(calibration.answer(seen, full), faults)
    predictor = calibration.full if full else calibration.cheap
    passed = [b for b in predictor.bounds if b.threshold is not None and confidence >= b.threshold]
    return Verdict(
        confidence,
        CALIBRATED,
        tuple(calibration.claims(seen)),
        (*faults, *explain(seen, full)),
        min(passed, key=lambda b: b.rate, default=None),
    )


def _capped(confidence: float, faults: Sequence[Note]) -> float:
    return min(confidence, reasons.MOST) if faults else confidence


def explain(seen: Observed, full: bool) -> list[Note]:
    """Returns what speaks against an answer and then what speaks for it, each thing once."""
    parsed = grammar.parse(seen.text)
    against, support = _evidence_reasons(parsed, seen.estimates, evidence_signals(seen, parsed.claims))
    begin = seen.text.rfind("<answer>")
    own = seen.probabilities_of(begin + len("<answer>"), len(seen.text)) if begin >= 0 else ()
    if own and min(own) < _UNLIKELY:
        against.append(Note("unlikely answer", min(own)))
    if full and seen.kept is not None:
        kept = sameness(parsed.answer, seen.kept) >= _SAME
        (support if kept else against).append(Note("kept" if kept else "not kept"))
    if full and seen.hidden is not None:
        stays = sameness(parsed.answer, seen.hidden) >= _SAME
        (against if stays else support).append(Note("not needed" if stays else "needed"))
    return against + support


def _evidence_reasons(
    parsed: grammar.Parsed, estimates: Sequence[Grounding], found: Sequence
) -> tuple[list, list]:
    """Returns the reasons against and for an answer that its evidence gives, by its worst piece."""
    timed = [one for claim, one in zip(parsed.claims, found, strict=True) if claim.time_s is not None]
    if not timed:
        return [Note("no evidence")], []
    if not estimates:
        return [], []
    against, support = [], []
    gap, overlap = max(one.time_gap_s for one in timed), min(one.box_overlap for one in timed)
    spread = max(one.spread_s for one in timed)
    if gap >= _FAR_S:
        against.append(Note("times apart", gap))
    elif gap <= _CLOSE_S:
        support.append(Note("times agree", max(gap, 0.1)))
    boxed = all(claim.boxes for claim in parsed.claims if claim.time_s is not None)
    if boxed and overlap < _APART:
        against.append(Note("boxes apart", overlap))
    elif boxed and overlap >= OVERLAP:
        support.append(Note("boxes agree", overlap))
    if spread >= _UNSURE_S:
        against.append(Note("decoder unsure", spread))
    return against, support
