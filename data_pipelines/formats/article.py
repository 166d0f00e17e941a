"""Between `Sample` and the article's JSON records."""

from __future__ import annotations

from typing import Any

from data_pipelines.formats import published
from data_pipelines.formats.fields import (
    Record,
    RecordError,
    _candidate,
    _preference,
    box_of,
    check_four_numbers,
    clock_stretch,
    interval_of,
    known,
    language_of,
    read_field,
    size_of,
    span_of,
    within,
)
from data_pipelines.formats.sample import Candidate, Sample
from o3jax.grounding import Box, Grounding, Interval
from o3jax.prompts import coords, grammar
from o3jax.tasks import SPATIO_TEMPORAL, TEMPORAL

_EVIDENCE_FIELDS = ("answer", "timestamps", "bboxes", "reasoning", "objects", "intervals")


_ARTICLE_FIELDS = ("video_path", "question", *_EVIDENCE_FIELDS, "image_size", "candidates")


def to_article(sample: Sample) -> Record:
    """Returns the sample as a record of the article's format: one timestamp and box for each claim.

    A mention without a time has no place in it and is left out, as are source, task and kind.
    """
    record: Record = {"video_path": sample.video_path, "question": sample.question}
    record |= _claims_record(sample)
    if sample.candidates:
        record["candidates"] = [_claims_record(c) | {"preference": c.preference} for c in sample.candidates]
    return record


def _claims_record(told: Sample | Candidate) -> Record:
    claims = [
        (mention.interval or mention.time_s, list(box) if box else None, mention.object)
        for mention in told.mentions
        if mention.time_s is not None
        for box in (mention.boxes or (None,))
    ]
    record = {
        "answer": told.answer,
        "timestamps": [list(time) if isinstance(time, tuple) else time for time, _, _ in claims],
        "bboxes": [box for _, box, _ in claims],
        "objects": [name for _, _, name in claims],
        "reasoning": told.reasoning,
    }
    stretches = tuple(time for time, _, _ in claims if isinstance(time, tuple))
    if told.intervals != (stretches or grammar.parse(told.answer, coords.NORMALISED).intervals):
        record["intervals"] = [list(interval) for interval in told.intervals]
    return record


def from_article(record: Record, sample_id: str) -> Sample:
    """Returns the sample that a record of the article's format describes.

    An answer that only tells times, also as a bare [start, end] or "00:03:21-00:03:25", makes it a temporal
    question, any other one spatio-temporal. Intervals are the field's, else the stretches among the
    timestamps, else the answer's.

    Args:
        sample_id: the record has none of its own.

    Raises:
        RecordError: if a field is missing, unknown or is not what the format asks for.
    """
    known(record, _ARTICLE_FIELDS)
    question = read_field(record, "question", str)
    language, size = language_of(record, question), size_of(record)
    candidates = []
    for item in read_field(record, "candidates", list, []):
        item = _candidate(item, (*_EVIDENCE_FIELDS, "preference"))
        answer, mentions, intervals, reasoning = _read_claims(item, size, language, "candidates")
        candidates.append(Candidate(answer, _preference(item), reasoning, mentions, intervals))
    if candidates and not any(name in record for name in _EVIDENCE_FIELDS):
        best = max(candidates, key=lambda c: c.preference)
        answer, mentions, intervals, reasoning = best.answer, best.mentions, best.intervals, best.reasoning
    else:
        answer, mentions, intervals, reasoning = _read_claims(record, size, language)
    said = grammar.parse(answer, coords.NORMALISED)
    return Sample(
        id=sample_id,
        source="article",
        task=TEMPORAL if said.times and not said.claims else SPATIO_TEMPORAL,
        question=question,
        answer=answer,
        video_path=read_field(record, "video_path", str),
        image_size=size,
        reasoning=reasoning,
        mentions=mentions,
        intervals=intervals,
        candidates=tuple(candidates),
        language=language,
    )


def _read_claims(
    record: Record, size: tuple[int, int] | None, language: str, inside: str = ""
) -> tuple[str, tuple[Grounding, ...], tuple[Interval, ...], str]:
    """Returns answer, mentions, intervals and reasoning of an article's record or candidate."""
    spans = [span_of(t, "timestamps", inside) for t in read_field(record, "timestamps", list, inside=inside)]
    given = read_field(record, "bboxes", list, inside=inside)
    boxes = [b if b is None else _article_box(b, size, inside) for b in given]
    names = read_field(record, "objects", list, ["object"] * len(spans), inside=inside)
    for field, values in (("bboxes", boxes), ("objects", names)):
        if len(values) != len(spans):
            raise RecordError(
                inside or field,
                f"{within(inside)}field {field!r} must have one entry for each of the {len(spans)} "
                f"timestamps, but has {len(values)}",
            )
    if not all(isinstance(name, str) for name in names):
        raise RecordError(
            inside or "objects", f"{within(inside)}field 'objects' must be a list of names, not {names!r:.80}"
        )
    answer = read_field(record, "answer", str, inside=inside).strip()
    stretch = clock_stretch(answer)
    answer, told = published.read_answer(
        f"[{stretch[0]}, {stretch[1]}]" if stretch else answer, TEMPORAL, language
    )
    mentions = tuple(
        _article_mention(name, span, () if box is None else (box,))
        for name, span, box in zip(names, spans, boxes, strict=True)
    )
    listed = read_field(record, "intervals", list, None, inside=inside)
    stretches = tuple(span for span in spans if not isinstance(span, float))
    if listed is None:
        intervals = stretches or told
    else:
        intervals = tuple(interval_of(i, inside or "intervals") for i in listed)
    return answer, mentions, intervals, read_field(record, "reasoning", str, "", inside=inside)


def _article_mention(name: str, span: float | Interval, boxes: tuple[Box, ...]) -> Grounding:
    if isinstance(span, float):
        return Grounding(name, span, boxes=boxes)
    return Grounding(name, (span[0] + span[1]) / 2, span, boxes)


def _article_box(value: Any, size: tuple[int, int] | None, inside: str) -> Box:
    """Returns a box in 0-1; it was in pixels where the record has the size of the picture."""
    field = inside or "bboxes"
    if size is None:
        return box_of(value, field)
    check_four_numbers(value, field)
    published.check_pixels(value, size, field)
    return coords.convert(value, coords.Space(*size), coords.NORMALISED)
