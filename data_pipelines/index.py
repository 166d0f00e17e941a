"""Which records of a dataset folder can be used, and what is wrong with the others.

`stgr.py` says whether a record is what its format asks for; here it is judged against its video too.
The texts are judged like the fields: they are what a model is trained to write.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from data_pipelines.sample import TEMPORAL_MCQ_TASK, TEMPORAL_TASK, VISUAL_TASK, Sample
from data_pipelines.stgr import Record, RecordError, check_box, from_article, from_stgr, read_list
from o3jax.errors import UserError
from o3jax.prompts import coords
from o3jax.video import VideoError, probe

# How a file of this name is read, and which fields hold the times, boxes and reasoning of a sample.
_FORMATS = {
    "stgr.json": (lambda record, _: from_stgr(record), ("key_frames", "key_items", "reasoning_process")),
    "annotations.json": (from_article, ("timestamps", "bboxes", "reasoning")),
}

# Texts tell times in tenths of a second, so one that is right may lie this far behind the end.
END_TOLERANCE_S = 0.1

_TIME = re.compile(r"<t>([^<]*)</t>")
_BOX = re.compile(r"<box>([^<]*)</box>")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL_TOKEN = re.compile(r"<\|\w{1,40}\|>")
# What the published data write an interval as: between tags, or as the bare answer `[start, end]`.
_INTERVAL = re.compile(r"<t>([^<]*)</t>\s{0,4}(?:s|秒)?\s{0,4}(?:to|-|到|至)\s{0,4}<t>([^<]*)</t>")
_BARE_INTERVAL = re.compile(r"\[([^][,]*),([^][,]*)\]")


@dataclasses.dataclass(frozen=True)
class Reject:
    """A record that cannot be used.

    `id` is the record's own, or "<file>-<number>" where it has none; `field` is the one to mend, empty
    where the record is no object; `task` and `source` are empty where the record does not tell.
    """

    id: str
    reason: str
    field: str
    task: str
    source: str


def index_folder(folder: str | Path) -> tuple[list[Sample], list[Reject]]:
    """Returns the usable samples of a dataset folder, and what is wrong with its other records, in order.

    The folder holds `stgr.json` (published records) or `annotations.json` (the article's). A record is
    rejected if it has unknown, missing or wrong fields, reversed or empty boxes or intervals, a box
    outside the frame, a time outside the video, or no readable video. Each video is opened once, for
    its duration.

    Raises:
        UserError: if there is no annotation file, or it is no JSON list.
    """
    folder = Path(folder)
    path = next((p for name in _FORMATS if (p := folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} has neither {' nor '.join(_FORMATS)}: make one with experiments.data")
    videos = _Videos(folder)
    samples, rejects = [], []
    for number, record in enumerate(read_list(path)):
        name = f"{path.stem}-{number}"
        try:
            samples.append(_read(record, name, path.name, videos))
        except RecordError as error:
            rejects.append(_reject(record, name, error))
    return samples, rejects


class _Videos:
    """The durations of a folder's videos, each file opened once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.known: dict[str, float | VideoError] = {}

    def duration(self, path: str) -> float:
        """Returns the seconds of a video; RecordError if it cannot be read."""
        if path not in self.known:
            try:
                self.known[path] = probe(self.folder / path).duration_s
            except VideoError as error:
                self.known[path] = error
        found = self.known[path]
        if isinstance(found, VideoError):
            raise RecordError("video_path", f"field 'video_path': {found}")
        return found


def _read(record: Any, name: str, file: str, videos: _Videos) -> Sample:
    """Returns the sample of a record; RecordError if it cannot be used."""
    if not isinstance(record, dict):
        raise RecordError("", f"the record must be an object with fields, not {record!r:.80}")
    _check_characters(record)
    read, (times, boxes, reasoning) = _FORMATS[file]
    sample = read(record, name)
    if "mentions" in record:
        times = boxes = "mentions"
    for field in ("question", "answer"):
        if not getattr(sample, field).strip():
            raise RecordError(field, f"field {field!r} is empty; fill it")
    if sample.task == VISUAL_TASK:
        raise RecordError("task", "field 'task': questions about an image cannot be used yet, only videos")

    end = _end(sample, videos)
    for mention in sample.mentions:
        if mention.time is not None:
            _check_time(mention.time, end, times)
        for box in mention.boxes:
            _check_area(box, boxes)
    # The article's record has no field of intervals; the reader takes them from the answer's text.
    for start, stop in sample.intervals if "intervals" in record else ():
        _check_interval(start, stop, end, "intervals")
    bare = sample.task in (TEMPORAL_TASK, TEMPORAL_MCQ_TASK)
    _check_text(sample.reasoning, end, reasoning, _INTERVAL)
    _check_text(sample.answer, end, "answer", _INTERVAL, *[_BARE_INTERVAL] * bare)
    return sample


def _check_characters(record: Record) -> None:
    """RecordError if a field holds what no tokenizer may see: halves of characters, tokens of the chat."""
    for name, value in record.items():
        text = json.dumps(value, ensure_ascii=False)
        if half := _SURROGATE.search(text):
            raise RecordError(
                name, f"field {name!r:.80} holds half a character ({half.group()!r}); mend its text"
            )
        if token := _CONTROL_TOKEN.search(text):
            raise RecordError(
                name, f"field {name!r:.80} holds the control token {token.group()}; take it out of the text"
            )


def _end(sample: Sample, videos: _Videos) -> float:
    """Returns the seconds at which the video ends: by its file, and by the record if that is earlier."""
    end = videos.duration(sample.video_path)
    if sample.duration is None:
        return end
    if sample.duration == 0:
        raise RecordError("duration", "field 'duration' must be more than 0 s")
    return min(end, sample.duration)


def _check_text(text: str, end: float, field: str, *intervals: re.Pattern[str]) -> None:
    """RecordError if the text tells a wrong box, interval or time; what cannot be read is not a claim."""
    for content in _BOX.findall(text):
        if (box := coords.parse_box(content)) is not None:
            _check_area(check_box(box, field), field)
    for pattern in intervals:
        for pair in pattern.findall(text):
            start, stop = map(coords.parse_number, pair)
            if start is not None and stop is not None:
                _check_interval(start, stop, end, field)
    for content in _TIME.findall(text):
        if (time := coords.parse_number(content)) is not None:
            _check_time(time, end, field)


def _check_time(time: float, end: float, field: str) -> None:
    if not 0 <= time <= end + END_TOLERANCE_S:
        raise RecordError(
            field, f"field {field!r} tells the time {time:g} s, but the video goes from 0 to {end:.2f} s"
        )


def _check_interval(start: float, stop: float, end: float, field: str) -> None:
    _check_time(start, end, field)
    _check_time(stop, end, field)
    if start > stop:
        raise RecordError(
            field, f"field {field!r} tells an interval that ends before it starts: {start:g} to {stop:g} s"
        )
    if start == stop:
        raise RecordError(field, f"field {field!r} tells an interval without length: {start:g} to {stop:g} s")


def _check_area(box: coords.Box, field: str) -> None:
    if box[0] == box[2] or box[1] == box[3]:
        raise RecordError(field, f"field {field!r} has the box {list(box)}, which has no area")


def _reject(record: Any, name: str, error: RecordError) -> Reject:
    def told(field: str) -> str:
        value = record.get(field) if isinstance(record, dict) else None
        return _printable(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else ""

    return Reject(told("id") or name, str(error), _printable(error.field), told("task"), told("source"))


def _printable(text: str) -> str:
    """Returns the text with a question mark for every half of a character, so that it can be written."""
    return text.encode("utf-8", "replace").decode()
