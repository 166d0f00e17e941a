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

from collections.abc import Callable
from typing import Any

from data_pipelines.formats import published
from data_pipelines.formats.fields import (
    Record,
    RecordError,
    _candidate,
    _preference,
    boxes_of,
    interval_of,
    known,
    language_of,
    mention_record,
    read_field,
    read_mention,
    size_of,
    time_of,
)
from data_pipelines.formats.sample import Candidate, KeyFrame, Sample
from o3jax.grounding import Grounding
from o3jax.prompts import coords, grammar
from o3jax.tasks import TASKS, TEMPORAL, VISUAL

_PUBLISHED_FIELDS = (
    *("id", "source", "task", "question", "answer", "video_path", "image_path", "image_size"),
    *("key_frames", "key_items", "reasoning_process"),
)
_STGR_FIELDS = (*_PUBLISHED_FIELDS, "duration", "intervals", "language", "kind", "mentions", "candidates")


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
        record["mentions"] = [mention_record(m) for m in sample.mentions]
    if sample.candidates:
        record["candidates"] = [
            {
                "answer": _written(c.answer, sample),
                "preference": c.preference,
                "reasoning_process": _written(c.reasoning, sample),
                "mentions": [mention_record(m) for m in c.mentions],
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
    name = "image_path" if sample.task == VISUAL else "video_path"
    record[name] = _below(getattr(sample, name) or "", roots.media, name)
    if stage == "sft":
        record["reasoning_process"] = _written(sample.reasoning, sample)
    if sample.task == VISUAL:
        del record["key_frames"], record["key_items"]
    return record


def _published_fields(sample: Sample, roots: published.Roots) -> Record:
    """Returns what both kinds of STGR records have in common; texts with boxes are not among it."""
    key_items: dict[str, dict[str, list]] = {}
    for mention in sample.mentions:
        if (frame := next((k for k in sample.key_frames if k.time == mention.time_s), None)) is not None:
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
    return published.to_pixels(text, sample.image_size) if sample.task == VISUAL else text


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
    visual = task == VISUAL
    read_field(record, "image_path" if visual else "video_path", str)
    question = read_field(record, "question", str)
    language = language_of(record, question)
    size = size_of(record)
    if visual and in_published_tree:
        published.checked_size(size)

    def text(value: str, field: str) -> str:
        return published.from_pixels(value, size, field) if visual else value

    answer, told = published.read_answer(text(read_field(record, "answer", str), "answer"), task, language)
    if in_published_tree and task.startswith(TEMPORAL) and not told:
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


def _mentions(record: Record, reasoning: str, answer: str) -> tuple[Grounding, ...]:
    """Returns the mentions that key frames and their items describe, in their order.

    Of visual QA, those that its texts make, with boxes in 0-1: nothing reads its key items.
    """
    items = read_field(record, "key_items", dict, {})
    if record.get("task") == VISUAL:
        claims = [c for text in (reasoning, answer) for c in grammar.parse(text, coords.NORMALISED).claims]
        return tuple(dict.fromkeys(Grounding(c.object, boxes=c.boxes) for c in claims))
    mentions, seen = [], set()
    for frame in read_field(record, "key_frames", list, []):
        index, time, _ = _key_frame_fields(frame)
        idx = str(index)
        seen.add(idx)
        for name, boxes in read_field(items, idx, dict, {}, inside="key_items").items():
            mentions.append(Grounding(name, time, boxes=boxes_of(boxes, "key_items")))
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
