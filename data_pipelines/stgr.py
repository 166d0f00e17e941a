"""Between `Sample` and two kinds of JSON records: the published STGR format and the article's.

STGR record: `id, source, task, question, answer, video_path | image_path, image_size, key_frames
[{idx, time, path}], key_items {str(idx): {name: [[x1, y1, x2, y2], ..]}}, reasoning_process`, boxes in
0-1 of the frame, `idx` the frame number at 25 fps. Ours add `duration`, `intervals`, `language`, `kind`
and, only where key frames cannot express the evidence, `mentions`; records without them are read too.

The article's record: `video_path, question, answer, timestamps, bboxes`, one box in 0-1 of the frame
(or null) for each timestamp; optional `reasoning` and `objects`, one name for each timestamp.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.sample import ST_TASK, TASKS, TEMPORAL_TASK, VISUAL_TASK, Box, Interval, Mention, Sample
from o3jax.errors import UserError
from o3jax.prompts import coords, grammar

Record = dict[str, Any]

_FPS = 25.0  # what `idx` of a key frame counts
_CHINESE = re.compile("[\u4e00-\u9fff]")
_ARTICLE_FIELDS = ("video_path", "question", "answer", "timestamps", "bboxes", "reasoning", "objects")
_ANY = object()  # as a default: the field must be there
_WORDS = {str: "a string", list: "a list", dict: "an object", int: "an integer"}


def to_stgr(sample: Sample) -> Record:
    """Returns the sample as a record of the published format; `from_stgr` gives it back unchanged."""
    key_frames, key_items = [], {}
    stem = Path(sample.video_path or sample.image_path or sample.id).stem
    for mention in sample.mentions:
        if mention.time is not None:
            idx = coords.frame_index(mention.time, _FPS)
            frame = {"idx": idx, "time": mention.time, "path": f"{stem}_{idx}.jpg"}
            if frame not in key_frames:
                key_frames.append(frame)
            names = key_items.setdefault(str(idx), {})
            names.setdefault(mention.object, []).extend(list(box) for box in mention.boxes)
    record: Record = {"id": sample.id, "source": sample.source, "task": sample.task}
    record |= {"question": sample.question, "answer": sample.answer}
    for field in ("video_path", "image_path", "duration"):
        if getattr(sample, field) is not None:
            record[field] = getattr(sample, field)
    if sample.image_size is not None:
        record["image_size"] = list(sample.image_size)
    record |= {"key_frames": key_frames, "key_items": key_items, "reasoning_process": sample.reasoning}
    record |= {"intervals": [list(i) for i in sample.intervals], "language": sample.language}
    record["kind"] = sample.kind
    if _read_key_items(record, "record") != sample.mentions:
        record["mentions"] = [
            {"object": m.object, "time": m.time, "boxes": [list(box) for box in m.boxes]}
            for m in sample.mentions
        ]
    return record


def from_stgr(record: Record, where: str = "record") -> Sample:
    """Returns the sample that a published record, or one of `to_stgr`, describes.

    Args:
        where: names the record in errors, such as "stgr.json record 3".

    Raises:
        UserError: if a field is missing or is not what the format asks for.
    """
    task = _field(record, "task", str, where)
    if task not in TASKS:
        raise UserError(f"{where}: field 'task' must be one of {', '.join(TASKS)}, not {task!r}")
    media = "image_path" if task == VISUAL_TASK else "video_path"
    _field(record, media, str, where)
    question = _field(record, "question", str, where)
    size = _field(record, "image_size", list, where, None)
    if size is not None and not (len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise UserError(f"{where}: field 'image_size' must be [width, height] in pixels, not {size}")
    if "mentions" in record:
        mentions = tuple(_read_mention(item, where) for item in _field(record, "mentions", list, where))
    else:
        mentions = _read_key_items(record, where)
    duration = record.get("duration")
    return Sample(
        id=str(_field(record, "id", (str, int), where)),
        source=_field(record, "source", str, where),
        task=task,
        question=question,
        answer=_field(record, "answer", str, where),
        video_path=_field(record, "video_path", str, where, None),
        image_path=_field(record, "image_path", str, where, None),
        image_size=None if size is None else tuple(size),
        duration=None if duration is None else _time(duration, "duration", where),
        reasoning=_field(record, "reasoning_process", str, where, ""),
        mentions=mentions,
        intervals=tuple(_interval(i, where) for i in _field(record, "intervals", list, where, [])),
        language=_language(record, question, where),
        kind=_field(record, "kind", str, where, ""),
    )


def to_article(sample: Sample) -> Record:
    """Returns the sample as a record of the article's format: one timestamp and box for each claim.

    A mention without a time has no place in it and is left out, as are source, task and kind.
    """
    claims = [
        (mention.time, list(box) if box else None, mention.object)
        for mention in sample.mentions
        if mention.time is not None
        for box in (mention.boxes or (None,))
    ]
    return {
        "video_path": sample.video_path,
        "question": sample.question,
        "answer": sample.answer,
        "timestamps": [time for time, _, _ in claims],
        "bboxes": [box for _, box, _ in claims],
        "objects": [name for _, _, name in claims],
        "reasoning": sample.reasoning,
    }


def from_article(record: Record, sample_id: str, where: str = "record") -> Sample:
    """Returns the sample that a record of the article's format describes.

    An answer that only tells times makes it a temporal question, any other one spatio-temporal.

    Args:
        sample_id: the record has none of its own.
        where: names the record in errors.

    Raises:
        UserError: if a field is missing, unknown or is not what the format asks for.
    """
    if unknown := [name for name in record if name not in _ARTICLE_FIELDS]:
        raise UserError(f"{where}: unknown field {unknown[0]!r}; the fields are {', '.join(_ARTICLE_FIELDS)}")
    times = [_time(t, "timestamps", where) for t in _field(record, "timestamps", list, where)]
    boxes = [b if b is None else _box(b, "bboxes", where) for b in _field(record, "bboxes", list, where)]
    names = _field(record, "objects", list, where, ["object"] * len(times))
    for field, values in (("bboxes", boxes), ("objects", names)):
        if len(values) != len(times):
            raise UserError(
                f"{where}: field {field!r} must have one entry for each of the {len(times)} timestamps, "
                f"but has {len(values)}"
            )
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: field 'objects' must be a list of names, not {names}")
    question, answer = _field(record, "question", str, where), _field(record, "answer", str, where)
    said = grammar.parse(answer, coords.NORMALISED)
    return Sample(
        id=sample_id,
        source="article",
        task=TEMPORAL_TASK if said.times and not said.claims else ST_TASK,
        question=question,
        answer=answer,
        video_path=_field(record, "video_path", str, where),
        reasoning=_field(record, "reasoning", str, where, ""),
        mentions=tuple(
            Mention(name, time, () if box is None else (box,))
            for name, time, box in zip(names, times, boxes, strict=True)
        ),
        intervals=said.intervals,
        language=_language(record, question, where),
    )


def load_stgr(path: str | os.PathLike) -> list[Sample]:
    """Returns the samples of a JSON file of published records.

    Raises:
        UserError: if the file is unreadable or a record is wrong; it names the file, record and field.
    """
    return _load(Path(path), lambda record, _, where: from_stgr(record, where))


def load_article(path: str | os.PathLike) -> list[Sample]:
    """Returns the samples of a JSON file of the article's records, with ids "<file>-<number>".

    Raises:
        UserError: if the file is unreadable or a record is wrong; it names the file, record and field.
    """
    return _load(Path(path), from_article)


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


def _load(path: Path, read: Callable[[Record, str, str], Sample]) -> list[Sample]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); repair or replace it") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path} must hold a JSON list of objects, one for each question")
    return [read(r, f"{path.stem}-{i}", f"{path} record {i}") for i, r in enumerate(records)]


def _read_key_items(record: Record, where: str) -> tuple[Mention, ...]:
    """Returns the mentions that key frames and their items describe, in their order."""
    items = _field(record, "key_items", dict, where, {})
    mentions = []
    for frame in _field(record, "key_frames", list, where, []):
        if not isinstance(frame, dict):
            raise UserError(f"{where}: field 'key_frames' must be a list of objects with idx and time")
        time = _time(_field(frame, "time", (int, float), f"{where} key frame"), "time", where)
        idx = _field(frame, "idx", int, f"{where} key frame")
        for name, boxes in _field(items, str(idx), dict, f"{where} field 'key_items'", {}).items():
            mentions.append(Mention(name, time, _boxes(boxes, "key_items", where)))
    return tuple(mentions)


def _read_mention(item: Any, where: str) -> Mention:
    if not isinstance(item, dict):
        raise UserError(f"{where}: field 'mentions' must be a list of objects with object, time and boxes")
    time = item.get("time")
    return Mention(
        _field(item, "object", str, f"{where} field 'mentions'"),
        None if time is None else _time(time, "mentions", where),
        _boxes(item.get("boxes", []), "mentions", where),
    )


def _field(record: Record, name: str, kind: type | tuple[type, ...], where: str, default: Any = _ANY) -> Any:
    """Returns a field of the right type; a missing one, or null where optional, gives the default."""
    value = record.get(name)
    if value is None and default is not _ANY:
        return default
    if value is None:
        raise UserError(f"{where}: field {name!r} is missing; add it")
    if not isinstance(value, kind) or isinstance(value, bool):
        words = _WORDS[kind] if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        raise UserError(f"{where}: field {name!r} must be {words}, not {value!r:.80}")
    return value


def _language(record: Record, question: str, where: str) -> str:
    language = _field(record, "language", str, where, "zh" if _CHINESE.search(question) else "en")
    if language not in ("en", "zh"):
        raise UserError(f"{where}: field 'language' must be en or zh, not {language!r}")
    return language


def _time(value: Any, field: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f"{where}: field {field!r} needs times in seconds from 0 on, not {value!r:.80}")
    return float(value)


def _interval(value: Any, where: str) -> Interval:
    if not isinstance(value, list) or len(value) != 2:
        raise UserError(f"{where}: field 'intervals' must hold pairs [start, end], not {value!r:.80}")
    start, end = (_time(v, "intervals", where) for v in value)
    if start > end:
        raise UserError(f"{where}: field 'intervals' has an interval that ends before it starts: {value}")
    return start, end


def _boxes(values: Any, field: str, where: str) -> tuple[Box, ...]:
    if not isinstance(values, list):
        raise UserError(f"{where}: field {field!r} must hold lists of boxes, not {values!r:.80}")
    return tuple(_box(value, field, where) for value in values)


def _box(value: Any, field: str, where: str) -> Box:
    numbers = isinstance(value, list) and len(value) == 4 and all(type(v) in (int, float) for v in value)
    if not numbers or not (0 <= value[0] <= value[2] <= 1 and 0 <= value[1] <= value[3] <= 1):
        raise UserError(
            f"{where}: field {field!r} needs boxes [x1, y1, x2, y2] in 0-1 of the frame, not {value!r:.80}; "
            "divide pixels by the width and height of the video"
        )
    return tuple(float(v) for v in value)
