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
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.sample import ST_TASK, TASKS, TEMPORAL_TASK, VISUAL_TASK, Box, Interval, Mention, Sample
from o3jax.errors import UserError
from o3jax.prompts import coords, grammar

Record = dict[str, Any]

_FPS = 25.0  # what `idx` of a key frame counts
_CHINESE = re.compile("[\u4e00-\u9fff]")
_STGR_FIELDS = (
    *("id", "source", "task", "question", "answer", "video_path", "image_path", "image_size"),
    *("key_frames", "key_items", "reasoning_process"),  # so far the published fields, then ours
    *("duration", "intervals", "language", "kind", "mentions"),
)
_ARTICLE_FIELDS = ("video_path", "question", "answer", "timestamps", "bboxes", "reasoning", "objects")
_ANY = object()  # as a default: the field must be there
_WORDS = {str: "a string", list: "a list", dict: "an object", int: "an integer"}


class RecordError(UserError):
    """What is wrong with one record, in one sentence; `field` is the field of the record to mend."""

    def __init__(self, field: str, sentence: str):
        super().__init__(sentence)
        self.field = field


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
    if _read_key_items(record) != sample.mentions:
        record["mentions"] = [
            {"object": m.object, "time": m.time, "boxes": [list(box) for box in m.boxes]}
            for m in sample.mentions
        ]
    return record


def from_stgr(record: Record) -> Sample:
    """Returns the sample that a published record, or one of `to_stgr`, describes.

    Raises:
        RecordError: if a field is missing, unknown or is not what the format asks for.
    """
    _known(record, _STGR_FIELDS)
    task = _field(record, "task", str)
    if task not in TASKS:
        raise RecordError("task", f"field 'task' must be one of {', '.join(TASKS)}, not {task!r:.80}")
    _field(record, "image_path" if task == VISUAL_TASK else "video_path", str)
    question = _field(record, "question", str)
    size = _field(record, "image_size", list, None)
    if size is not None and not (len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise RecordError(
            "image_size", f"field 'image_size' must be [width, height] in pixels, not {size!r:.80}"
        )
    if "mentions" in record:
        mentions = tuple(_read_mention(item) for item in _field(record, "mentions", list))
    else:
        mentions = _read_key_items(record)
    duration = record.get("duration")
    return Sample(
        id=str(_field(record, "id", (str, int))),
        source=_field(record, "source", str),
        task=task,
        question=question,
        answer=_field(record, "answer", str),
        video_path=_field(record, "video_path", str, None),
        image_path=_field(record, "image_path", str, None),
        image_size=None if size is None else tuple(size),
        duration=None if duration is None else _time(duration, "duration"),
        reasoning=_field(record, "reasoning_process", str, ""),
        mentions=mentions,
        intervals=tuple(_interval(i) for i in _field(record, "intervals", list, [])),
        language=_language(record, question),
        kind=_field(record, "kind", str, ""),
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


def from_article(record: Record, sample_id: str) -> Sample:
    """Returns the sample that a record of the article's format describes.

    An answer that only tells times makes it a temporal question, any other one spatio-temporal.

    Args:
        sample_id: the record has none of its own.

    Raises:
        RecordError: if a field is missing, unknown or is not what the format asks for.
    """
    _known(record, _ARTICLE_FIELDS)
    times = [_time(t, "timestamps") for t in _field(record, "timestamps", list)]
    boxes = [b if b is None else _box(b, "bboxes") for b in _field(record, "bboxes", list)]
    names = _field(record, "objects", list, ["object"] * len(times))
    for field, values in (("bboxes", boxes), ("objects", names)):
        if len(values) != len(times):
            raise RecordError(
                field,
                f"field {field!r} must have one entry for each of the {len(times)} timestamps, "
                f"but has {len(values)}",
            )
    if not all(isinstance(name, str) for name in names):
        raise RecordError("objects", f"field 'objects' must be a list of names, not {names!r:.80}")
    question, answer = _field(record, "question", str), _field(record, "answer", str)
    said = grammar.parse(answer, coords.NORMALISED)
    return Sample(
        id=sample_id,
        source="article",
        task=TEMPORAL_TASK if said.times and not said.claims else ST_TASK,
        question=question,
        answer=answer,
        video_path=_field(record, "video_path", str),
        reasoning=_field(record, "reasoning", str, ""),
        mentions=tuple(
            Mention(name, time, () if box is None else (box,))
            for name, time, box in zip(names, times, boxes, strict=True)
        ),
        intervals=said.intervals,
        language=_language(record, question),
    )


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


def _read_key_items(record: Record) -> tuple[Mention, ...]:
    """Returns the mentions that key frames and their items describe, in their order."""
    items = _field(record, "key_items", dict, {})
    mentions, seen = [], set()
    for frame in _field(record, "key_frames", list, []):
        if not isinstance(frame, dict):
            raise RecordError("key_frames", "field 'key_frames' must be a list of objects with idx and time")
        _known(frame, ("idx", "time", "path"), "key_frames")
        time = _time(_field(frame, "time", (int, float), inside="key_frames"), "time", "key_frames")
        idx = str(_field(frame, "idx", int, inside="key_frames"))
        _field(frame, "path", str, None, inside="key_frames")
        seen.add(idx)
        for name, boxes in _field(items, idx, dict, {}, inside="key_items").items():
            mentions.append(Mention(name, time, _boxes(boxes, "key_items")))
    # Published questions about an image have items without key frames; nothing reads them.
    if record.get("task") != VISUAL_TASK and (lost := [idx for idx in items if idx not in seen]):
        raise RecordError(
            "key_items", f"field 'key_items' has boxes for frame {lost[0]!r:.80}, which 'key_frames' lacks"
        )
    return tuple(mentions)


def _read_mention(item: Any) -> Mention:
    if not isinstance(item, dict):
        raise RecordError(
            "mentions", "field 'mentions' must be a list of objects with object, time and boxes"
        )
    _known(item, ("object", "time", "boxes"), "mentions")
    time = item.get("time")
    return Mention(
        _field(item, "object", str, inside="mentions"),
        None if time is None else _time(time, "mentions"),
        _boxes(item.get("boxes", []), "mentions"),
    )


def _known(record: Record, names: Sequence[str], inside: str = "") -> None:
    if unknown := [name for name in record if name not in names]:
        raise RecordError(
            inside or unknown[0],
            f"{_at(inside)}unknown field {unknown[0]!r:.80}; the fields are {', '.join(names)}",
        )


def _field(
    record: Record, name: str, kind: type | tuple[type, ...], default: Any = _ANY, inside: str = ""
) -> Any:
    """Returns a field of the right type; a missing one, or null where optional, gives the default.

    `inside` is the field of the whole record that `record` is a part of.
    """
    value = record.get(name)
    if value is None and default is not _ANY:
        return default
    if value is None:
        raise RecordError(inside or name, f"{_at(inside)}field {name!r} is missing; add it")
    if not isinstance(value, kind) or isinstance(value, bool):
        words = _WORDS[kind] if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        raise RecordError(inside or name, f"{_at(inside)}field {name!r} must be {words}, not {value!r:.80}")
    return value


def _at(inside: str) -> str:
    return f"field {inside!r}: " if inside else ""


def _language(record: Record, question: str) -> str:
    language = _field(record, "language", str, "zh" if _CHINESE.search(question) else "en")
    if language not in ("en", "zh"):
        raise RecordError("language", f"field 'language' must be en or zh, not {language!r:.80}")
    return language


def _time(value: Any, field: str, inside: str = "") -> float:
    # Integers in JSON have any length; this one no longer fits into a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise RecordError(
            inside or field,
            f"{_at(inside)}field {field!r} needs times in seconds from 0 on, not {value!r:.80}",
        )
    return float(value)


def _interval(value: Any) -> Interval:
    if not isinstance(value, list) or len(value) != 2:
        raise RecordError("intervals", f"field 'intervals' must hold pairs [start, end], not {value!r:.80}")
    start, end = (_time(v, "intervals") for v in value)
    if start > end:
        raise RecordError(
            "intervals", f"field 'intervals' has an interval that ends before it starts: {value!r:.80}"
        )
    return start, end


def _boxes(values: Any, field: str) -> tuple[Box, ...]:
    if not isinstance(values, list):
        raise RecordError(field, f"field {field!r} must hold lists of boxes, not {values!r:.80}")
    return tuple(_box(value, field) for value in values)


def _box(value: Any, field: str) -> Box:
    if not (isinstance(value, list) and len(value) == 4 and all(type(v) in (int, float) for v in value)):
        raise RecordError(field, f"field {field!r} needs boxes [x1, y1, x2, y2], not {value!r:.80}")
    return check_box(value, field)


def check_box(value: Sequence[float], field: str) -> Box:
    """Returns four numbers as a box.

    Raises:
        RecordError: if it is reversed, or not inside the frame (0-1).
    """
    if not all(0 <= v <= 1 for v in value):
        raise RecordError(
            field,
            f"field {field!r} needs boxes [x1, y1, x2, y2] in 0-1 of the frame, not {list(value)!r:.80}; "
            "divide pixels by the width and height of the video",
        )
    if value[0] > value[2] or value[1] > value[3]:
        raise RecordError(
            field,
            f"field {field!r} needs boxes [x1, y1, x2, y2] with x1 <= x2 and y1 <= y2, "
            f"but {list(value)!r:.80} is reversed",
        )
    return tuple(float(v) for v in value)
