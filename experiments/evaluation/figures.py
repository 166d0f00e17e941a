"""The figures of many scored generations: metrics, the error analysis and groups."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.evaluation.scores import Scored, _first
from o3jax.metrics import tvg, vstar
from o3jax.prompts import grammar

_FAR_S = 3.0
_WORST_CASES = 10
_OF_EVIDENCE = ("m_tIoU", "m_vIoU", "m_vIoU_answer", "mAM", "mLGM", "tvg", "vstar")


def metrics(scored: Sequence[Scored]) -> dict[str, Any]:
    """Returns every metric over some generations; times are None where no text states any, and what there is
    evidence for where no question has any."""
    everything, scored = scored, with_evidence(scored)
    accuracy = statistics.fmean(s.correct for s in everything)
    if not scored:
        return {"N": len(everything), "accuracy": accuracy} | dict.fromkeys(_OF_EVIDENCE)
    overall = vstar.score([s.item for s in scored])
    pairs = [
        (_first(grammar.parse(s.parsed.answer).intervals), s.question.sample.intervals[0])
        for s in scored
        if s.question.sample.kind == "interval"
    ]
    errors = [abs(error) for s in scored for error in s.signed_end_errors_s]
    points = [abs(s.point_error_s) for s in scored if s.point_error_s is not None]
    estimates = {"decoder": decoder_metrics(scored)} if any(s.decoded for s in scored) else {}
    return {
        "N": len(everything),
        "accuracy": accuracy,
        "m_tIoU": overall["m_tIoU_c1"],
        "m_vIoU": overall["m_vIoU_c1"],
        "m_vIoU_answer": float(np.mean([s.v_iou_answer for s in scored])),
        "mAM": overall["mAM"],
        "mLGM": overall["mLGM"],
        "time_error_mean_s": statistics.fmean(errors) if errors else None,
        "time_error_median_s": statistics.median(errors) if errors else None,
        "point_error_mean_s": statistics.fmean(points) if points else None,
        "point_error_median_s": statistics.median(points) if points else None,
        **estimates,
        "tvg": tvg.score(pairs) | {"N": len(pairs)},
        "vstar": overall,
    }


def with_evidence(scored: Sequence[Scored]) -> list[Scored]:
    """Returns those whose question has evidence in its video."""
    return [s for s in scored if s.question.sample.intervals]


def decoder_metrics(scored: Sequence[Scored]) -> dict[str, Any]:
    """Returns the evidence decoder's figures; a text without a claim counts as 0 in the means of IoU.

    `error_correlation` is Pearson's, over the signed errors that both estimates have: of the interval's
    ends, and of the time. `right_object` has the means where the text claims the object that answers, about
    which the decoder is asked: what is missing there to 1 is its own error, the rest is the text's.
    """
    estimates = [s.decoded for s in scored if s.decoded]
    right = [
        s.decoded
        for s in scored
        if s.decoded and s.question.thing(s.parsed.claims[0].object) is s.question.target
    ]
    ends = [abs(error) for h in estimates for error in h.end_errors_s]
    points = [abs(h.point_error_s) for h in estimates]
    both = [
        (s.point_error_s, s.decoded.point_error_s)
        for s in scored
        if s.decoded and s.point_error_s is not None
    ]
    stated = [
        pair
        for s in scored
        if s.decoded
        for pair in zip(s.signed_end_errors_s, s.decoded.end_errors_s, strict=False)
    ]
    return {
        "N": len(estimates),
        "m_tIoU": sum(h.t_iou for h in estimates) / len(scored),
        "m_vIoU": sum(h.v_iou for h in estimates) / len(scored),
        "time_error_mean_s": statistics.fmean(ends),
        "time_error_median_s": statistics.median(ends),
        "point_error_mean_s": statistics.fmean(points),
        "point_error_median_s": statistics.median(points),
        "error_correlation": {"interval": _correlation(stated), "time": _correlation(both)},
        "confidence_mean": statistics.fmean(h.confidence for h in estimates),
        "right_object": {
            "N": len(right),
            "m_tIoU": statistics.fmean(h.t_iou for h in right) if right else None,
            "m_vIoU": statistics.fmean(h.v_iou for h in right) if right else None,
        },
    }


def _correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Returns Pearson's correlation, None where it is not defined."""
    if len(pairs) < 2 or min(np.std(pairs, axis=0)) == 0:
        return None
    return float(np.corrcoef(np.transpose(pairs))[0, 1])


def error_analysis(scored: Sequence[Scored]) -> dict[str, Any]:
    """Returns which shares of the generations go wrong in which way, and the worst ones with their ids."""

    everything, scored = scored, with_evidence(scored)

    def share(flags: list[bool]) -> float:
        return sum(flags) / max(len(flags), 1)

    worst = sorted(everything, key=lambda s: (s.correct + s.t_iou + s.v_iou, s.question.sample.id))
    return {
        "wrong_answer": share([not s.correct for s in everything]),
        "time_off_more_than_3s": share([s.time_off_s is not None and s.time_off_s > _FAR_S for s in scored]),
        "no_time": share([s.time_off_s is None for s in scored]),
        "no_claim": share([not s.parsed.claims for s in scored]),
        "malformed": share([not s.parsed.well_formed for s in everything]),
        "wrong_object_claimed": share(
            [
                bool(s.parsed.claims) and s.question.thing(s.parsed.claims[0].object) is not s.question.target
                for s in scored
            ]
        ),
        "worst": [s.to_json() for s in worst[:_WORST_CASES]],
    }


def report(scored: Sequence[Scored]) -> dict[str, Any]:
    """Returns the metrics over all generations, per kind and per language, and the error analysis."""

    def by(field: str) -> dict[str, Any]:
        groups = sorted({getattr(s.question.sample, field) for s in scored})
        return {g: metrics([s for s in scored if getattr(s.question.sample, field) == g]) for g in groups}

    return {
        "metrics": metrics(scored),
        "by_kind": by("kind"),
        "by_language": by("language"),
        "errors": error_analysis(scored),
    }
