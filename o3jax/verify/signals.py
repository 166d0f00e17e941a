"""What tells a right answer from a wrong one: numbers taken from how an answer was made, and from what
becomes of it when only its evidence is shown, or all but its evidence.

`Observed` is what was seen of one answer being made; `answer_signals` and `evidence_signals` make numbers of
it, the same ones where a calibration is fit (`o3jax evaluate --calibrate`) and where an answer is given. A
signal that an answer has not has the value of the worst one, so that what is missing never counts as good.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from o3jax.grounding import Grounding, Interval
from o3jax.metrics.boxes import box_iou, interval_iou
from o3jax.notes import Note
from o3jax.prompts import grammar
from o3jax.prompts.mentions import claim_numbers

VERSION = 1  # of the signals: a calibration of others is refused
FAR_S = 10.0  # differences of times count up to this
_FLOOR = 1e-4  # of probabilities


@dataclasses.dataclass(frozen=True)
class Observed:
    """What was seen of one answer being made."""

    question: str
    text: str  # the response as generated; what its prompt had begun is not there
    ends: tuple[int, ...]  # the character of it at which each token ends
    probabilities: tuple[float, ...]  # of each token
    duration_s: float  # of the video
    faults: tuple[Note, ...] = ()  # what `reasons.reasons` found
    finished: bool = True  # whether the model ended the text
    estimates: tuple[Grounding, ...] = ()  # the evidence decoder's, one for each `</obj>` of the text
    spreads_s: tuple[float, ...] = ()  # standard deviation of the time of each
    proposed: tuple[float, ...] = ()  # confidence of what was proposed before any text, the best first
    curve: tuple[tuple[float, float], ...] = ()  # (seconds, relevance)
    candidates: tuple[Interval, ...] = ()  # seconds that were searched; nothing means everything
    kept: str | None = None  # the answer where only the evidence is shown; None: not asked
    hidden: str | None = None  # the answer where the evidence is hidden; None: not asked

    def probabilities_of(self, start: int, end: int) -> tuple[float, ...]:
        """Returns the probabilities of the tokens that hold the characters from start to end."""
        first, last = np.searchsorted(self.ends, [start, max(end - 1, start)], side="right")
        return self.probabilities[first : last + 1]


@dataclasses.dataclass(frozen=True)
class EvidenceSignals:
    """What speaks for and against one piece of evidence."""

    likelihood: float  # mean log probability of the claim's tokens
    least: float  # log probability of the least likely of them
    stated: float  # 1 if the text gives it a time and a box, 0.5 one of them, 0 none
    relevance: float  # of the frames at its time, 0-1
    time_gap_s: float  # between the text's time and the decoder's
    box_overlap: float  # IoU of the text's box and the decoder's
    inside: float  # 1 if the text's time lies in the decoder's interval
    spread_s: float  # standard deviation of the decoder's time
    score: float  # the decoder's logit of being right
    length_s: float  # of the decoder's interval


@dataclasses.dataclass(frozen=True)
class AnswerSignals:
    """What speaks for and against an answer: of its evidence the mean and the worst, and its own."""

    answer_likelihood: float  # mean log probability of the answer's tokens
    answer_least: float  # log probability of the least likely of them
    likelihood: float  # mean log probability of all tokens
    least: float  # log probability of the least likely of all
    sound: float  # 0 if the text is cut off or has other faults
    claims: float  # pieces of evidence, up to 8
    log_duration: float  # of the video
    log_tokens: float
    best_relevance: float  # of all frames, 0-1
    searched: float  # share of the video in the candidates
    answer_gap_s: float  # the answer's times to the nearest of the decoder's times and ends
    answer_overlap: float  # IoU of the answer's interval or box with the decoder's; 0.5 where it has none
    fits: float  # 1 if the answer has the form that is asked for: a time, a box, a number, an option
    named: float  # share of the evidence whose object the question names
    told: float  # 1 if the answer's words are in the name of an object of the evidence; 0.5 if it has none
    asks_when: float  # what is asked for, as far as words of the question tell: 1 or 0
    asks_where: float
    asks_count: float
    asks_choice: float
    proposed: float  # logit of the best proposal
    margin: float  # and how far it is above the next
    likelihood_evidence: float  # of the evidence: means
    least_evidence: float
    stated: float
    relevance: float
    time_gap_s: float
    box_overlap: float
    inside: float
    spread_s: float
    score: float
    length_s: float
    worst_gap_s: float  # of the evidence: the worst
    worst_overlap: float
    worst_score: float


@dataclasses.dataclass(frozen=True)
class HiddenSignals:
    """What two more passes say, see `o3jax.inference.hidden`."""

    kept: float  # 0-1: how far the answer stays when only its evidence is shown
    without: float  # 0-1: how far it stays when its evidence is hidden


# Which way each signal may move a confidence, so that what contradicts an answer never raises it; the others
# describe the question, and may move it either way.
RISING = frozenset(
    (
        "answer_likelihood",
        "answer_least",
        "likelihood",
        "least",
        "sound",
        "stated",
        "relevance",
        "best_relevance",
    )
    + ("likelihood_evidence", "least_evidence", "answer_overlap", "box_overlap", "worst_overlap", "inside")
    + ("score", "worst_score", "kept", "fits", "told", "proposed")
)
FALLING = frozenset(("time_gap_s", "worst_gap_s", "answer_gap_s", "spread_s", "without"))


def names(full: bool) -> tuple[str, ...]:
    """Returns the names of an answer's signals, with or without those of the two more passes."""
    kinds = (AnswerSignals, HiddenSignals) if full else (AnswerSignals,)
    return tuple(field.name for kind in kinds for field in dataclasses.fields(kind))


def evidence_names() -> tuple[str, ...]:
    """Returns the names of the signals of one piece of evidence."""
    return tuple(field.name for field in dataclasses.fields(EvidenceSignals))


def evidence_signals(seen: Observed, claims: Sequence[grammar.Claim] | None = None) -> list[EvidenceSignals]:
    """Returns the signals of each claim of the response that has a time or an estimate, in order.

    Args:
        claims: some of the response's; all of them by default.
    """
    claims = grammar.parse(seen.text).claims if claims is None else claims
    numbers = claim_numbers(seen.text, [claim.span for claim in claims])
    return [_evidence(seen, claim, number) for claim, number in zip(claims, numbers, strict=True)]


def answer_signals(seen: Observed, full: bool) -> dict[str, float]:
    """Returns the signals of an answer by name, see `names`."""
    parsed = grammar.parse(seen.text)
    evidence = evidence_signals(seen, parsed.claims)
    mean = {name: _mean([getattr(one, name) for one in evidence]) for name in evidence_names()}
    if not evidence:
        mean = dataclasses.asdict(_NOTHING)
    logs = _logs(seen.probabilities)
    begin = seen.text.rfind("<answer>")
    own = _logs(seen.probabilities_of(begin + len("<answer>"), len(seen.text))) if begin >= 0 else _logs(())
    relevance = [value for _, value in seen.curve]
    said = grammar.parse(parsed.answer)
    proposed = [*map(_logit, seen.proposed), _logit(0.0), _logit(0.0)]
    answer = AnswerSignals(
        answer_likelihood=_mean(own),
        answer_least=min(own),
        likelihood=_mean(logs),
        least=min(logs),
        sound=float(seen.finished and not seen.faults),
        claims=float(min(len(evidence), 8)),
        log_duration=math.log(max(seen.duration_s, 0.1)),
        log_tokens=math.log(max(len(seen.probabilities), 1)),
        best_relevance=max(relevance, default=0.0),
        searched=_share(seen),
        answer_gap_s=_answer_gap(said, seen.estimates),
        answer_overlap=_answer_overlap(said, seen.estimates),
        **_semantics(seen.question, said, parsed.answer, [claim.object for claim in parsed.claims]),
        proposed=proposed[0],
        margin=proposed[0] - proposed[1],
        likelihood_evidence=mean.pop("likelihood"),
        least_evidence=mean.pop("least"),
        **mean,
        worst_gap_s=max((one.time_gap_s for one in evidence), default=FAR_S),
        worst_overlap=min((one.box_overlap for one in evidence), default=0.0),
        worst_score=min((one.score for one in evidence), default=_NOTHING.score),
    )
    values = dataclasses.asdict(answer)
    if full:
        # Where there was nothing to hide, hiding it proves nothing: as bad as an answer that stays.
        kept = 0.0 if seen.kept is None else sameness(parsed.answer, seen.kept)
        without = 1.0 if seen.hidden is None else sameness(parsed.answer, seen.hidden)
        values |= dataclasses.asdict(HiddenSignals(kept, without))
    return values


def sameness(one: str, other: str) -> float:
    """Returns how far two answers are the same, from 0 to 1: the IoU of intervals or boxes that both state, 1
    less the seconds between times, or whether the words are equal."""
    a, b = grammar.parse(one), grammar.parse(other)
    if a.intervals and b.intervals:
        return interval_iou(a.intervals[0], b.intervals[0])
    boxes = [next((claim.box for claim in parsed.claims if claim.box), None) for parsed in (a, b)]
    if all(boxes):
        return box_iou(*boxes)
    if a.times and b.times:
        return max(0.0, 1 - abs(a.times[0] - b.times[0]))
    folded = ["".join(text.split()).casefold() for text in (one, other)]
    return float(bool(folded[0]) and folded[0] == folded[1])


_NOTHING = EvidenceSignals(
    likelihood=math.log(_FLOOR),
    least=math.log(_FLOOR),
    stated=0.0,
    relevance=0.0,
    time_gap_s=FAR_S,
    box_overlap=0.0,
    inside=0.0,
    spread_s=FAR_S,
    score=-10.0,
    length_s=0.0,
)


def _evidence(seen: Observed, claim: grammar.Claim, number: int) -> EvidenceSignals:
    logs = _logs(seen.probabilities_of(*claim.span))
    found = dataclasses.replace(
        _NOTHING,
        likelihood=_mean(logs),
        least=min(logs),
        stated=((claim.time_s is not None) + bool(claim.boxes)) / 2,
        relevance=relevance_at(seen.curve, claim.time_s),
    )
    if number >= len(seen.estimates):
        return found
    decoded, time = seen.estimates[number], claim.time_s
    start, end = decoded.interval or (decoded.time_s, decoded.time_s)
    return dataclasses.replace(
        found,
        relevance=relevance_at(seen.curve, decoded.time_s),
        time_gap_s=FAR_S if time is None else min(abs(time - decoded.time_s), FAR_S),
        box_overlap=max((box_iou(box, decoded.box) for box in claim.boxes), default=0.0),
        inside=float(time is not None and start <= time <= end),
        spread_s=min(seen.spreads_s[number], FAR_S),
        score=_logit(decoded.confidence),
        length_s=min(end - start, FAR_S),
    )


def relevance_at(curve: Sequence[tuple[float, float]], time_s: float | None) -> float:
    """Returns the relevance at the time nearest to one; 0 where there is neither."""
    if not curve or time_s is None:
        return 0.0
    times, values = np.transpose(curve)
    return float(values[np.abs(times - time_s).argmin()])


def _answer_gap(said: grammar.Parsed, estimates: Sequence[Grounding]) -> float:
    """Returns the mean distance of the answer's times from the nearest that the decoder names, seconds."""
    named = [t for e in estimates for t in (e.time_s, *(e.interval or ()))]
    if not said.times or not named:
        return 0.0 if not said.times and estimates else FAR_S
    return min(_mean([min(abs(time - other) for other in named) for time in said.times]), FAR_S)


def _answer_overlap(said: grammar.Parsed, estimates: Sequence[Grounding]) -> float:
    boxes = [box for claim in said.claims for box in claim.boxes]
    if said.intervals:
        overlaps = [interval_iou(said.intervals[0], e.interval) for e in estimates if e.interval]
    elif boxes:
        overlaps = [box_iou(boxes[0], e.box) for e in estimates if e.box]
    else:
        return 0.5
    return max(overlaps, default=0.0)


# Words of a question that tell what is asked for; "the time when .." asks for no more than a time.
_ASKS = {
    "count": re.compile(r"how many|number of|几个|多少|数量", re.IGNORECASE),
    "choice": re.compile(r"(?:^|\n)\s*[(（]?A[.)）:：、]"),
    "where": re.compile(r"\bwhere\b|position|which box|bounding box|哪里|位置|边界框", re.IGNORECASE),
    "when": re.compile(
        r"\bwhen\b|what time|which second|which time|which interval|什么时候|何时|第几秒|时间段",
        re.IGNORECASE,
    ),
}


def asks(question: str) -> str | None:
    """Returns what a question asks for, as far as its words tell: "count", "choice", "where" or "when"."""
    return next((kind for kind, words in _ASKS.items() if words.search(question)), None)


def _semantics(question: str, said: grammar.Parsed, answer: str, objects: Sequence[str]) -> dict[str, float]:
    """Returns whether answer, evidence and question are about the same, as far as words tell."""
    asked = asks(question)
    words = _plain(re.sub(r"<box>[^<]*</box>|<t>[^<]*</t>|<[^<>]*>", "", answer))
    fits = {
        "count": words.isdigit() or words in _NUMBERS,
        "choice": bool(words),
        "where": any(claim.boxes for claim in said.claims),
        "when": bool(said.times),
        None: bool(words) and not said.times and not said.claims,
    }[asked]
    folded, names = _plain(question), [_plain(name) for name in objects]
    told = any(words in name or name in words for name in names if name)
    bare = asked == "when" or not words or words.isdigit() or asked == "choice"
    return {
        "fits": float(fits),
        "named": _mean([float(name in folded) for name in names]),
        "told": 0.5 if bare else float(told),
        **{f"asks_{kind}": float(kind == asked) for kind in _ASKS},
    }


_NUMBERS = frozenset("zero one two three four five six seven eight nine ten 零 一 二 两 三 四 五 六".split())


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()


def _logit(probability: float) -> float:
    sure = min(max(probability, _FLOOR), 1 - _FLOOR)
    return math.log(sure / (1 - sure))


def _share(seen: Observed) -> float:
    """Returns the share of the video that was searched."""
    inside = sum(end - start for start, end in seen.candidates)
    return min(inside / max(seen.duration_s, 1e-3), 1.0) if seen.candidates else 1.0


def _logs(probabilities: Sequence[float]) -> list[float]:
    return [math.log(max(p, _FLOOR)) for p in probabilities] or [math.log(_FLOOR)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
