"""What one generation about a clip of the synthetic world is worth.

One greedy generation per question gives what, when and where, so both of V-STaR's chains hold the same
prediction here and every metric of chain 1 equals that of chain 2. A generation is scored like this:

- **Answer** (`accuracy`). "interval": the answer's first interval has IoU >= 0.5 with the truth.
  "appears": its first time is off by at most 0.5 s. "where": the box of its first `<obj>` claim has IoU
  >= 0.5 with the object's at the asked time. Colour, shape, which first, number, letter: the same text,
  after removing surrounding space, case and full-width forms.
- **When** (`m_tIoU`): IoU of the first interval that the reasoning states with the one in which the
  object that answers is visible. None stated: 0.
- **Where** (`m_vIoU`): IoU of the box of the reasoning's first claim with the exact box, at the claimed
  time, of the object that the claim names; of the object that answers if the claim's name is none in the
  clip. No box, no time, or the object is not visible then: 0. `m_vIoU_answer` is stricter: the box must be
  that of the object that answers, whatever the claim calls it.
- **It never appears** ("never"): the answer says so and tells no time. There is no evidence to find, so
  that these questions count in the accuracy alone.
- `mAM`, `mLGM` and the rest of V-STaR follow from these (o3jax.metrics.vstar), and TVGBench's metrics from
  the answers to the "interval" questions (o3jax.metrics.tvg).

A model with evidence modules has a second estimate for each claim. `decoded` holds its figures beside the
text's: m_tIoU of its interval, m_vIoU of its box at its time, the errors of the interval's ends and of the
time itself (against the annotated moment), and how the two estimates' errors correlate.

Truth is exact (frames of 0.04 s, boxes in fractions of a pixel), while text has 0.1 s and o3-tiny boxes
on a grid of 1/100: `ceiling` is what a perfect writer of such text gets.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence
from typing import Any

from data_pipelines.formats.sample import Sample
from data_pipelines.synthetic.scenes import Object, Scene
from o3jax.inference.locate import DecoderEstimate
from o3jax.metrics import vstar
from o3jax.metrics.boxes import box_iou, interval_iou
from o3jax.prompts import grammar
from o3jax.prompts.mentions import claim_numbers

_APPEARS_TOLERANCE_S = 0.5


_MIN_IOU = 0.5  # of a right interval or box
_NEVER = ("never", "从未")


@dataclasses.dataclass(frozen=True)
class Question:
    """A sample with the scene that it is about, which knows where everything is at any time."""

    sample: Sample
    scene: Scene

    @property
    def target(self) -> Object:
        """The object that answers (the first one, where a question counts several)."""
        return self.thing(self.sample.mentions[0].object)

    def thing(self, name: str) -> Object | None:
        """Returns the scene's object of a name in either language, None if there is none."""
        folded = _fold(name)
        named = {
            _fold(thing.name(language)): thing for thing in self.scene.objects for language in ("en", "zh")
        }
        return named.get(folded)


@dataclasses.dataclass(frozen=True)
class DecoderScore:
    """What the evidence decoder's estimate for the first claim is worth."""

    t_iou: float
    v_iou: float
    end_errors_s: tuple[float, float]  # signed: of the interval's start and end
    point_error_s: float  # signed: of the time, against the annotated one
    confidence: float


@dataclasses.dataclass(frozen=True)
class Scored:
    """One generation and what it is worth."""

    question: Question
    text: str
    parsed: grammar.Parsed
    item: dict[str, Any]  # as V-STaR's published result file has it
    correct: bool
    t_iou: float
    v_iou: float
    v_iou_answer: float
    signed_end_errors_s: tuple[float, ...]  # of the stated interval's start and end; empty where none is
    point_error_s: float | None  # signed: of the first claim's time, against the annotated one
    time_off_s: float | None  # the largest of these and of the first claim's distance from the true interval
    decoded: DecoderScore | None = None  # of the first claim's estimate; None without one

    def to_json(self) -> dict[str, Any]:
        """Returns the row of the result file."""
        sample = self.question.sample
        return {
            "id": sample.id,
            "kind": sample.kind,
            "language": sample.language,
            "question": sample.question,
            "truth": sample.answer,
            "answer": self.parsed.answer,
            "correct": self.correct,
            "tIoU": self.t_iou,
            "vIoU": self.v_iou,
            "time_off_s": self.time_off_s,
            "well_formed": self.parsed.well_formed,
            "text": self.text,
            **({"decoder": dataclasses.asdict(self.decoded)} if self.decoded else {}),
        }


def score(question: Question, text: str, estimates: Sequence[DecoderEstimate] = ()) -> Scored:
    """Returns what a generation is worth, for any text; see the module's docstring.

    Args:
        heads: the evidence decoder's estimates, one for each `</obj>` of the text.
    """
    sample, scene = question.sample, question.scene
    parsed = grammar.parse(text)
    reasoning = grammar.parse(parsed.think)
    interval = reasoning.intervals[0] if reasoning.intervals else None
    claim = reasoning.claims[0] if reasoning.claims else None
    correct = _is_correct(sample, parsed.answer)
    if not sample.intervals:
        same = float(correct)
        return Scored(question, text, parsed, {}, correct, same, same, same, (), None, None)
    truth = sample.intervals[0]

    box_at = (
        {str(claim.time_s): list(claim.boxes[0])}
        if claim and claim.boxes and claim.time_s is not None
        else {}
    )
    named = (claim and question.thing(claim.object)) or question.target
    item = {
        "vid": scene.id,
        "domain": sample.kind,
        "fps": scene.fps,
        "frame_count": scene.frame_count,
        "question": sample.question,
        "answer": sample.answer,
        # The published mean leaves out empty replies; here silence must not raise a score.
        "answer_vqa": text if text.strip() else "(nothing)",
        "VQA_score": 3 if correct else 0,
        "timestamps": list(truth),
        "bboxes": [_box_entry(question, named, claim)],
    }
    for suffix in ("", "_2"):
        item[f"answer_temporal{suffix}"] = None if interval is None else list(interval)
        item[f"answer_spatial{suffix}"] = box_at
    ious = vstar.score_item(item)
    strict = vstar.score_item(item | {"bboxes": [_box_entry(question, question.target, claim)]})

    ends = () if interval is None else tuple(p - t for p, t in zip(interval, truth, strict=True))
    off = [abs(error) for error in ends]
    if claim and claim.time_s is not None:
        off.append(max(truth[0] - claim.time_s, claim.time_s - truth[1], 0.0))
    moment = sample.mentions[0].time_s
    return Scored(
        question=question,
        text=text,
        parsed=parsed,
        item=item,
        correct=correct,
        t_iou=ious["temporal_IoU"],
        v_iou=ious["spatial_mIoU"],
        v_iou_answer=strict["spatial_mIoU"],
        signed_end_errors_s=ends,
        point_error_s=None if claim is None or claim.time_s is None else claim.time_s - moment,
        time_off_s=max(off, default=None),
        decoded=_decoder_score(question, named, parsed, text, estimates) if claim else None,
    )


def _decoder_score(
    question: Question, thing: Object, parsed: grammar.Parsed, text: str, estimates: Sequence[DecoderEstimate]
) -> DecoderScore | None:
    """Returns what the estimate for the text's first claim is worth, None where there is none."""
    if not (estimates and parsed.claims):
        return None
    decoded = estimates[claim_numbers(text, [parsed.claims[0].span])[0]]
    truth, box = question.sample.intervals[0], thing.box(decoded.time_s)
    return DecoderScore(
        t_iou=interval_iou(decoded.interval, truth),
        v_iou=box_iou(decoded.box, box) if box else 0.0,
        end_errors_s=tuple(p - t for p, t in zip(decoded.interval, truth, strict=True)),
        point_error_s=decoded.time_s - question.sample.mentions[0].time_s,
        confidence=decoded.confidence,
    )


def _is_correct(sample: Sample, answer: str) -> bool:
    said = grammar.parse(answer)
    if not sample.intervals:
        return not said.times and any(word in _fold(answer) for word in _NEVER)
    start, end = sample.intervals[0]
    if sample.kind == "interval":
        stated = _first(said.intervals)
        return stated is not None and interval_iou(stated, (start, end)) >= _MIN_IOU
    if sample.kind == "appears":
        time = _first(said.times)
        # Times are decimal fractions: what is 0.5 apart on paper may be a hair more as floats.
        return time is not None and abs(time - start) <= _APPEARS_TOLERANCE_S + 1e-9
    if sample.kind == "where":
        box = said.claims[0].boxes[0] if said.claims and said.claims[0].boxes else None
        return box is not None and box_iou(box, sample.mentions[0].boxes[0]) >= _MIN_IOU
    return _fold(answer) == _fold(sample.answer)


def _box_entry(question: Question, thing: Object, claim: grammar.Claim | None) -> dict[str, float | None]:
    """Returns V-STaR's truth box: of the thing at the claimed time, or where it is not visible then the
    annotated one without a time, so that no claim is compared with it, not even at the annotated moment."""
    box = None if claim is None or claim.time_s is None else thing.box(claim.time_s)
    time = claim.time_s if box else None
    box = box or question.sample.mentions[0].boxes[0]
    return {"timestamp": time, **dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))}


def _first(values: Sequence[Any]) -> Any:
    return values[0] if values else None


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().casefold()
