"""The fields of a JSON record, read strictly: one clear sentence for whatever is wrong with one."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from o3jax.errors import UserError
from o3jax.files import write_text
from o3jax.grounding import Box, Grounding, Interval

Record = dict[str, Any]

_CHINESE = re.compile("[\u4e00-\u9fff]")
_CLOCK = re.compile(r"(?:(\d{1,3}):)?(\d{1,2}):(\d{2}(?:\.\d{1,6})?)")
_ANY = object()  # as a default: the field must be there
_WORDS = {str: "a string", list: "a list", dict: "an object", int: "an integer"}


class RecordError(UserError):
    """What is wrong with one record, in one sentence.

    `field` is the field of the record to mend; `missing` says that the file which it names does not exist.
    """

    def __init__(self, field: str, sentence: str, *, missing: bool = False):
        super().__init__(sentence)
        self.field, self.missing = field, missing


def read_mention(item: Any, field: str = "mentions") -> Grounding:
    """Returns a mention from an object with object, time, boxes and perhaps interval, which is in `field`."""
    if not isinstance(item, dict):
        raise RecordError(field, f"field {field!r} must have mentions, objects with object, time and boxes")
    known(item, ("object", "time", "boxes", "interval"), field)
    time, interval = item.get("time"), item.get("interval")
    return Grounding(
        read_field(item, "object", str, inside=field),
        None if time is None else time_of(time, field),
        None if interval is None else interval_of(interval, field),
        boxes_of(item.get("boxes", []), field),
    )


def mention_record(mention: Grounding) -> Record:
    """Returns a mention as `read_mention` reads it."""
    record = {"object": mention.object, "time": mention.time_s, "boxes": [list(box) for box in mention.boxes]}
    return record if mention.interval is None else record | {"interval": list(mention.interval)}


def known(record: Record, names: Sequence[str], inside: str = "") -> None:
    """RecordError if a record, or the part of it in field `inside`, has other fields than these."""
    if unknown := [name for name in record if name not in names]:
        raise RecordError(
            inside or unknown[0],
            f"{within(inside)}unknown field {unknown[0]!r:.80}; the fields are {', '.join(names)}",
        )


def read_field(
    record: Record, name: str, kind: type | tuple[type, ...], default: Any = _ANY, inside: str = ""
) -> Any:
    """Returns a field of the right type; a missing one, or null where optional, gives the default.

    `inside` is the field of the whole record that `record` is a part of.
    """
    value = record.get(name)
    if value is None and default is not _ANY:
        return default
    if value is None:
        raise RecordError(inside or name, f"{within(inside)}field {name!r} is missing; add it")
    if not isinstance(value, kind) or isinstance(value, bool):
        words = _WORDS[kind] if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        raise RecordError(
            inside or name, f"{within(inside)}field {name!r} must be {words}, not {value!r:.80}"
        )
    return value


def within(inside: str) -> str:
    """Returns how a sentence about a part of field `inside` begins."""
    return f"field {inside!r}: " if inside else ""


def language_of(record: Record, question: str) -> str:
    """Returns the record's language, by default that of its question: "zh" if it has Chinese characters."""
    language = read_field(record, "language", str, "zh" if _CHINESE.search(question) else "en")
    if language not in ("en", "zh"):
        raise RecordError("language", f"field 'language' must be en or zh, not {language!r:.80}")
    return language


def time_of(value: Any, field: str, inside: str = "") -> float:
    """Returns a number of seconds from 0 on; RecordError for anything else."""
    # Integers in JSON have any length; this one no longer fits into a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise RecordError(
            inside or field,
            f"{within(inside)}field {field!r} needs times in seconds from 0 on, not {value!r:.80}",
        )
    return float(value)


def interval_of(value: Any, field: str = "intervals") -> Interval:
    """Returns a pair of seconds in order; RecordError for anything else."""
    if not isinstance(value, list) or len(value) != 2:
        raise RecordError(field, f"field {field!r} must hold pairs [start, end], not {value!r:.80}")
    start, end = (time_of(v, field) for v in value)
    if start > end:
        raise RecordError(field, f"field {field!r} has an interval that ends before it starts: {value!r:.80}")
    return start, end


def span_of(value: Any, field: str, inside: str) -> float | Interval:
    """Returns the time, or the stretch of it, that an entry of `timestamps` tells."""
    if isinstance(value, list):
        return interval_of(value, inside or field)
    if isinstance(value, str):
        found = clock_stretch(value) or _clock(value)
        if found is None:
            raise RecordError(
                inside or field,
                f"{within(inside)}field {field!r} needs times in seconds, as 12.3, [201, 205], "
                f'"00:03:21" or "00:03:21-00:03:25", not {value!r:.80}',
            )
        return found if isinstance(found, float) else interval_of(list(found), inside or field)
    return time_of(value, field, inside)


def clock_stretch(text: str) -> Interval | None:
    """Returns the seconds of "00:03:21-00:03:25"; None where the text is anything else."""
    parts = [_clock(part) for part in text.split("-")] if len(text) <= 60 else []
    return tuple(parts) if len(parts) == 2 and None not in parts else None


def _clock(text: str) -> float | None:
    """Returns the seconds of "00:03:21", "3:21" or "0:03:21.5"; None where the text is anything else."""
    found = _CLOCK.fullmatch(text.strip())
    if found is None:
        return None
    hours, minutes, seconds = int(found[1] or 0), int(found[2]), float(found[3])
    return 3600.0 * hours + 60 * minutes + seconds if minutes < 60 and seconds < 60 else None


def size_of(record: Record) -> tuple[int, int] | None:
    """Returns `image_size`, (width, height) in pixels, None where the record has none."""
    size = read_field(record, "image_size", list, None)
    if size is not None and not (len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise RecordError(
            "image_size", f"field 'image_size' must be [width, height] in pixels, not {size!r:.80}"
        )
    return None if size is None else tuple(size)


def boxes_of(values: Any, field: str) -> tuple[Box, ...]:
    """Returns a list of boxes in 0-1; RecordError for anything else."""
    if not isinstance(values, list):
        raise RecordError(field, f"field {field!r} must hold lists of boxes, not {values!r:.80}")
    return tuple(box_of(value, field) for value in values)


def box_of(value: Any, field: str) -> Box:
    """Returns one box in 0-1; RecordError for anything else."""
    check_four_numbers(value, field)
    return check_box(value, field)


def check_four_numbers(value: Any, field: str) -> None:
    """RecordError unless the value is a list of four numbers."""
    if not (isinstance(value, list) and len(value) == 4 and all(type(v) in (int, float) for v in value)):
        raise RecordError(field, f"field {field!r} needs boxes [x1, y1, x2, y2], not {value!r:.80}")


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


def save_records(path: str | os.PathLike, records: Sequence[Record]) -> None:
    """Writes records as a JSON list, one a line; the file appears only when it is complete."""
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    write_text(path, f"[\n{lines}\n]\n")
