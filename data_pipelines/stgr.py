"""Between `Sample` and two kinds of JSON records: the published STGR format and the article's.

STGR record: `id, source, task, question, answer, video_path | image_path, image_size, key_frames
[{idx, time, path}], key_items {str(idx): {name: [[x1, y1, x2, y2], ..]}}, reasoning_process`, boxes in
0-1 of the frame, in the texts of visual QA in pixels of `image_size`. Where media lie and how answers are
spelled: `published.py`. Our own `stgr.json` adds `duration`, `intervals`, `language`, `kind`,
`candidates` and, only where key items cannot express the evidence, `mentions`; its paths are relative to
its folder, those of key frames to `kfs/` (or to the folder, behind `./`), and `idx` counts 25 a second.

The article's record: `video_path, question, answer, timestamps, bboxes`, one box (or null) for each
timestamp, in 0-1 of the frame or, where the record has `image_size` [width, height], in pixels of it.
A timestamp is 12.3, "00:03:21", or a stretch of time: [201, 205] or "00:03:21-00:03:25", whose middle
becomes the mention's time and which becomes its interval, and one of the answer's. Optional: `reasoning`,
`objects` (one name for each timestamp), `intervals`, and for reinforcement learning `candidates`: a list of
{answer, timestamps, bboxes, preference, reasoning, objects, intervals}, the last three optional. `preference`
is a number, higher is better. A record with candidates may leave out answer, timestamps, bboxes and so on: it
has those of the most preferred one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipelines import published
from data_pipelines.fields import (
    Record,
    RecordError,
    box_of,
    boxes_of,
    check_four_numbers,
    clock_stretch,
    interval_of,
    known,
    language_of,
    read_field,
    read_mention,
    size_of,
    span_of,
    time_of,
    within,
)
from data_pipelines.sample import (
    ST_TASK,
    TASKS,
    TEMPORAL_TASK,
    VISUAL_TASK,
    Box,
    Candidate,
    Interval,
    KeyFrame,
    Mention,
    Sample,
)
from o3jax.errors import UserError
from o3jax.prompts import coords, grammar

_PUBLISHED_FIELDS = (
    *("id", "source", "task", "question", "answer", "video_path", "image_path", "image_size"),
    *("key_frames", "key_items", "reasoning_process"),
)
_STGR_FIELDS = (*_PUBLISHED_FIELDS, "duration", "intervals", "language", "kind", "mentions", "candidates")
_EVIDENCE_FIELDS = ("answer", "timestamps", "bboxes", "reasoning", "objects", "intervals")
_ARTICLE_FIELDS = ("video_path", "question", *_EVIDENCE_FIELDS, "image_size", "candidates")


def to_stgr(sample: Sample) -> Record:
    """Returns the sample as a record of our own `stgr.json`; `from_stgr` gives it back unchanged.

    Only boxes in the texts of visual QA are rounded, to whole pixels.
    """
    record = _published_fields(sample, published.OWN)
    record |= {
        "answer": _written(sample.answer, sample),
        "reasoning_process": _written(sample.reasoning, sample),
    }
    for field in ("video_path", "image_path", "duration"):
        if getattr(sample, field) is not None:
            record[field] = getattr(sample, field)
    record |= {"intervals": [list(i) for i in sample.intervals], "language": sample.language}
    record["kind"] = sample.kind
    if _mentions(record, sample.reasoning, sample.answer) != sample.mentions:
        record["mentions"] = [_mention_record(m) for m in sample.mentions]
    if sample.candidates:
        record["candidates"] = [
            {
                "answer": _written(c.answer, sample),
                "preference": c.preference,
                "reasoning_process": _written(c.reasoning, sample),
                "mentions": [_mention_record(m) for m in c.mentions],
                "intervals": [list(i) for i in c.intervals],
            }
            for c in sample.candidates
        ]
    return record


def to_published(sample: Sample, stage: published.Stage) -> Record:
    """Returns the sample as a record of the published SFT or RL file, which has no reasoning.

    Duration, kind, candidates and intervals beside the answer's have no place in it and are left out, as
    are mentions that are on no key frame.

    Raises:
        RecordError: if a path is not where the published tree has that source's media.
    """
    roots = published.roots(sample.source, sample.task)
    record = _published_fields(sample, roots)
    record["answer"] = _written(published.write_answer(sample, stage), sample)
    name = "image_path" if sample.task == VISUAL_TASK else "video_path"
    record[name] = _below(getattr(sample, name) or "", roots.media, name)
    if stage == "sft":
        record["reasoning_process"] = _written(sample.reasoning, sample)
    if sample.task == VISUAL_TASK:
        del record["key_frames"], record["key_items"]
    return record


def _published_fields(sample: Sample, roots: published.Roots) -> Record:
    """Returns what both kinds of STGR records have in common; texts with boxes are not among it."""
    key_items: dict[str, dict[str, list]] = {}
    for mention in sample.mentions:
        if (frame := next((k for k in sample.key_frames if k.time == mention.time), None)) is not None:
            names = key_items.setdefault(str(frame.index), {})
            names.setdefault(mention.object, []).extend(list(box) for box in mention.boxes)
    record: Record = {"id": sample.id, "source": sample.source, "task": sample.task}
    record |= {"question": sample.question, "answer": ""}
    if sample.image_size is not None:
        record["image_size"] = list(sample.image_size)
    record["key_frames"] = []
    for frame in sample.key_frames:
        entry = {"idx": frame.index, "time": frame.time}
        if frame.path is not None and roots is published.OWN:
            rest = frame.path.removeprefix(roots.key_frames)
            own = frame.path.startswith(roots.key_frames) and not rest.startswith("./")
            entry["path"] = rest if own else "./" + frame.path
        elif frame.path is not None:
            entry["path"] = _below(frame.path, roots.key_frames, "key_frames")
        record["key_frames"].append(entry)
    return record | {"key_items": key_items}


def _below(path: str, folder: str, field: str) -> str:
    if not path.startswith(folder):
        raise RecordError(
            field, f"field {field!r}: the published tree has it in {folder}, not at {path!r:.200}"
        )
    return path.removeprefix(folder)


def _written(text: str, sample: Sample) -> str:
    """Returns a text of the sample as records have it."""
    return published.to_pixels(text, sample.image_size) if sample.task == VISUAL_TASK else text


def _mention_record(mention: Mention) -> Record:
    record = {"object": mention.object, "time": mention.time, "boxes": [list(box) for box in mention.boxes]}
    return record if mention.interval is None else record | {"interval": list(mention.interval)}


def from_stgr(record: Record, in_published_tree: bool = False) -> Sample:
    """Returns the sample that a published record, or one of `to_stgr`, describes.

    Args:
        in_published_tree: the record's paths are relative to the folders of its source, it has only the
            published fields, and its key frames must have pictures, its temporal answers an interval.

    Raises:
        RecordError: if a field is missing, unknown or is not what the format asks for.
    """
    known(record, _PUBLISHED_FIELDS if in_published_tree else _STGR_FIELDS)
    task, source = read_field(record, "task", str), read_field(record, "source", str)
    if task not in TASKS:
        raise RecordError("task", f"field 'task' must be one of {', '.join(TASKS)}, not {task!r:.80}")
    roots = published.roots(source, task) if in_published_tree else published.OWN
    visual = task == VISUAL_TASK
    read_field(record, "image_path" if visual else "video_path", str)
    question = read_field(record, "question", str)
    language = language_of(record, question)
    size = size_of(record)
    if visual and in_published_tree:
        published.checked_size(size)

    def text(value: str, field: str) -> str:
        return published.from_pixels(value, size, field) if visual else value

    answer, told = published.read_answer(text(read_field(record, "answer", str), "answer"), task, language)
    if in_published_tree and task.startswith(TEMPORAL_TASK) and not told:
        raise RecordError(
            "answer",
            "field 'answer' of a temporal question needs an interval, [start, end] in seconds (behind the "
            f"letter and a new line in multiple choice), not {answer!r:.80}",
        )
    reasoning = text(read_field(record, "reasoning_process", str, ""), "reasoning_process")
    if "mentions" in record:
        mentions = tuple(read_mention(item) for item in read_field(record, "mentions", list))
    else:
        mentions = _mentions(record, reasoning, answer)
    key_frames = tuple(_key_frame(frame, roots) for frame in read_field(record, "key_frames", list, []))
    if in_published_tree and any(frame.path is None for frame in key_frames):
        raise RecordError("key_frames", "field 'key_frames': field 'path' is missing; add it")
    duration = record.get("duration")
    intervals = read_field(record, "intervals", list, None)
    paths = {
        name: None if (path := read_field(record, name, str, None)) is None else roots.media + path
        for name in ("video_path", "image_path")
    }
    return Sample(
        id=str(read_field(record, "id", (str, int))),
        source=source,
        task=task,
        question=question,
        answer=answer,
        **paths,
        image_size=size,
        duration=None if duration is None else time_of(duration, "duration"),
        reasoning=reasoning,
        mentions=mentions,
        intervals=told if intervals is None else tuple(interval_of(i) for i in intervals),
        key_frames=key_frames,
        candidates=tuple(_read_candidate(item, text) for item in read_field(record, "candidates", list, [])),
        language=language,
        kind=read_field(record, "kind", str, ""),
    )


def _key_frame(frame: Record, roots: published.Roots) -> KeyFrame:
    """Returns a key frame whose fields `_mentions` or this has checked."""
    index, time, path = _key_frame_fields(frame)
    if path is not None:
        rooted = roots is not published.OWN or not path.startswith("./")
        path = roots.key_frames + path if rooted else path[2:]
    return KeyFrame(index, time, path)


def _read_candidate(item: Any, text: Callable[[str, str], str]) -> Candidate:
    """Returns a candidate of our own record; `text` gives its texts with boxes in 0-1."""
    item = _candidate(item, ("answer", "preference", "reasoning_process", "mentions", "intervals"))
    return Candidate(
        answer=text(read_field(item, "answer", str, inside="candidates"), "candidates"),
        preference=_preference(item),
        reasoning=text(read_field(item, "reasoning_process", str, "", inside="candidates"), "candidates"),
        mentions=tuple(
            read_mention(mention, "candidates")
            for mention in read_field(item, "mentions", list, [], inside="candidates")
        ),
        intervals=tuple(
            interval_of(i, "candidates") for i in read_field(item, "intervals", list, [], inside="candidates")
        ),
    )


def _candidate(item: Any, fields: Sequence[str]) -> Record:
    if not isinstance(item, dict):
        raise RecordError(
            "candidates", "field 'candidates' must be a list of objects with answer and preference"
        )
    known(item, fields, "candidates")
    return item


def _preference(item: Record) -> float:
    value = read_field(item, "preference", (int, float), inside="candidates")
    if not abs(value) <= sys.float_info.max:
        raise RecordError(
            "candidates", f"field 'candidates': field 'preference' is {value!r:.40}; write a number"
        )
    return float(value)


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
        (mention.interval or mention.time, list(box) if box else None, mention.object)
        for mention in told.mentions
        if mention.time is not None
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
        task=TEMPORAL_TASK if said.times and not said.claims else ST_TASK,
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
) -> tuple[str, tuple[Mention, ...], tuple[Interval, ...], str]:
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
        f"[{stretch[0]}, {stretch[1]}]" if stretch else answer, TEMPORAL_TASK, language
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


def _article_mention(name: str, span: float | Interval, boxes: tuple[Box, ...]) -> Mention:
    if isinstance(span, float):
        return Mention(name, span, boxes)
    return Mention(name, (span[0] + span[1]) / 2, boxes, span)


def _article_box(value: Any, size: tuple[int, int] | None, inside: str) -> Box:
    """Returns a box in 0-1; it was in pixels where the record has the size of the picture."""
    field = inside or "bboxes"
    if size is None:
        return box_of(value, field)
    check_four_numbers(value, field)
    published.check_pixels(value, size, field)
    return coords.convert(value, coords.Space(*size), coords.NORMALISED)


def load_stgr(path: str | os.PathLike) -> list[Sample]:
    """Returns the samples of a JSON file of published records, all of which must be right.

    Raises:
        UserError: if the file is unreadable or a record is wrong; it names the file, record and field.
    """
    return _load(Path(path), lambda record, _: from_stgr(record))


def load_article(path: str | os.PathLike) -> list[Sample]:
    """Returns the samples of a JSON file of the article's records, with ids "<file>-<number>".

    Raises:
        UserError: if the file is unreadable or a record is wrong; it names the file, record and field.
    """
    return _load(Path(path), from_article)


def read_list(path: Path) -> list[Any]:
    """Returns the list that a JSON file holds; what its entries are is not checked.

    Raises:
        UserError: if the file is unreadable, no JSON or no list.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); repair or replace it") from error
    if not isinstance(records, list):
        raise UserError(f"{path} must hold a JSON list of objects, one for each question")
    return records


def save_records(path: str | os.PathLike, records: Sequence[Record]) -> None:
    """Writes records as a JSON list, one a line; the file appears only when it is complete."""
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    write_text(path, f"[\n{lines}\n]\n")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file that appears under its name only when it is complete."""
    partial = Path(f"{os.fspath(path)}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _load(path: Path, read: Callable[[Record, str], Sample]) -> list[Sample]:
    samples = []
    for i, record in enumerate(read_list(path)):
        if not isinstance(record, dict):
            raise UserError(f"{path} must hold a JSON list of objects, one for each question")
        try:
            samples.append(read(record, f"{path.stem}-{i}"))
        except RecordError as error:
            raise UserError(f"{path} record {i}: {error}") from error
    return samples


def _mentions(record: Record, reasoning: str, answer: str) -> tuple[Mention, ...]:
    """Returns the mentions that key frames and their items describe, in their order.

    Of visual QA, those that its texts make, with boxes in 0-1: nothing reads its key items.
    """
    items = read_field(record, "key_items", dict, {})
    if record.get("task") == VISUAL_TASK:
        claims = [c for text in (reasoning, answer) for c in grammar.parse(text, coords.NORMALISED).claims]
        return tuple(dict.fromkeys(Mention(c.object, None, c.boxes) for c in claims))
    mentions, seen = [], set()
    for frame in read_field(record, "key_frames", list, []):
        index, time, _ = _key_frame_fields(frame)
        idx = str(index)
        seen.add(idx)
        for name, boxes in read_field(items, idx, dict, {}, inside="key_items").items():
            mentions.append(Mention(name, time, boxes_of(boxes, "key_items")))
    if lost := [idx for idx in items if idx not in seen]:
        raise RecordError(
            "key_items", f"field 'key_items' has boxes for frame {lost[0]!r:.80}, which 'key_frames' lacks"
        )
    return tuple(mentions)


def _key_frame_fields(frame: Any) -> tuple[int, float, str | None]:
    """Returns idx, time and path of a key frame."""
    if not isinstance(frame, dict):
        raise RecordError("key_frames", "field 'key_frames' must be a list of objects with idx and time")
    known(frame, ("idx", "time", "path"), "key_frames")
    time = time_of(read_field(frame, "time", (int, float), inside="key_frames"), "time", "key_frames")
    index = read_field(frame, "idx", int, inside="key_frames")
    return index, time, read_field(frame, "path", str, None, inside="key_frames")
