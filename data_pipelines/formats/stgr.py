"""Between `Sample` and JSON records of the published STGR format, also as our own `stgr.json` extends it.

Published: `id, source, task, question, answer, video_path | image_path, image_size, key_frames [{idx, time,
path}], key_items {str(idx): {name: [[x1, y1, x2, y2], ..]}}, reasoning_process`, boxes in 0-1 of the frame,
in the texts of visual QA in pixels of `image_size`. Where media lie and how answers are spelled:
`published.py`. Our own adds `duration`, `intervals`, `language`, `kind`, `candidates` and, only where key
items cannot express the evidence, `mentions`; its paths are relative to its folder, those of key frames to
`kfs/` (or to the folder, behind `./`), and `idx` counts 25 a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from data_pipelines.formats import published
from data_pipelines.formats.fields import (
    NUMBER,
    Record,
    check_names,
    mention_record,
    read_candidates,
    read_field,
    read_language,
    read_mention,
    read_size,
    to_boxes,
    to_interval,
    to_time,
    wrong,
)
from data_pipelines.formats.sample import Candidate, KeyFrame, Sample
from o3jax.grounding import Grounding
from o3jax.prompts import coords, grammar
from o3jax.tasks import TASKS, TEMPORAL, VISUAL

_PUBLISHED_FIELDS = (
    *("id", "source", "task", "question", "answer", "video_path", "image_path", "image_size"),
    *("key_frames", "key_items", "reasoning_process"),
)
_OWN_FIELDS = (*_PUBLISHED_FIELDS, "duration", "intervals", "language", "kind", "mentions", "candidates")
_CANDIDATE_FIELDS = ("answer", "reasoning_process", "mentions", "intervals")


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
    if sample.task == VISUAL:
        expressed = _mentions_in(sample.reasoning, sample.answer)
    else:
        expressed = _mentions_on(sample.key_frames, record["key_items"])
    if expressed != sample.mentions:
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
        raise wrong(field, f"names {path!r:.200}, but the published tree has such media in {folder}")
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
    check_names(record, _PUBLISHED_FIELDS if in_published_tree else _OWN_FIELDS)
    task, source = read_field(record, "task", str), read_field(record, "source", str)
    if task not in TASKS:
        raise wrong("task", f"must be one of {', '.join(TASKS)}, not {task!r:.80}")
    roots = published.roots(source, task) if in_published_tree else published.OWN
    visual = task == VISUAL
    read_field(record, "image_path" if visual else "video_path", str)
    question = read_field(record, "question", str)
    size = read_size(record)
    if visual and in_published_tree:
        published.checked_size(size)

    def text(part: Record, name: str, default: str | None = None, inside: str = "") -> str:
        """Returns a text with boxes in 0-1."""
        value = read_field(part, name, str, *(() if default is None else (default,)), inside=inside)
        return published.from_pixels(value, size, inside or name) if visual else value

    language = read_language(record, question)
    answer, intervals = published.read_answer(text(record, "answer"), task, language)
    if in_published_tree and task.startswith(TEMPORAL) and not intervals:
        raise wrong(
            "answer",
            "of a temporal question needs an interval, [start, end] in seconds (behind the letter and a new "
            f"line in multiple choice), not {answer!r:.80}",
        )
    reasoning = text(record, "reasoning_process", "")
    key_frames = tuple(_key_frame(frame, roots) for frame in read_field(record, "key_frames", list, []))
    if "mentions" in record:
        mentions = tuple(map(read_mention, read_field(record, "mentions", list)))
    else:
        items = read_field(record, "key_items", dict, {})
        mentions = _mentions_in(reasoning, answer) if visual else _mentions_on(key_frames, items)
    if in_published_tree and any(frame.path is None for frame in key_frames):
        raise wrong("path", "is missing; add it", "key_frames")
    if (listed := read_field(record, "intervals", list, None)) is not None:
        intervals = tuple(map(to_interval, listed))
    paths = {
        name: None if (path := read_field(record, name, str, None)) is None else roots.media + path
        for name in ("video_path", "image_path")
    }
    duration = record.get("duration")
    return Sample(
        id=str(read_field(record, "id", (str, int))),
        source=source,
        task=task,
        question=question,
        answer=answer,
        **paths,
        image_size=size,
        duration=None if duration is None else to_time(duration, "duration"),
        reasoning=reasoning,
        mentions=mentions,
        intervals=intervals,
        key_frames=key_frames,
        candidates=tuple(
            _candidate(item, preference, text)
            for item, preference in read_candidates(record, _CANDIDATE_FIELDS)
        ),
        language=language,
        kind=read_field(record, "kind", str, ""),
    )


def _key_frame(frame: Any, roots: published.Roots) -> KeyFrame:
    inside = "key_frames"
    if not isinstance(frame, dict):
        raise wrong(inside, "must be a list of objects with idx and time")
    check_names(frame, ("idx", "time", "path"), inside)
    time = to_time(read_field(frame, "time", NUMBER, inside=inside), "time", inside)
    path = read_field(frame, "path", str, None, inside)
    if path is not None:
        rooted = roots is not published.OWN or not path.startswith("./")
        path = roots.key_frames + path if rooted else path[2:]
    return KeyFrame(read_field(frame, "idx", int, inside=inside), time, path)


def _candidate(item: Record, preference: float, text: Callable[..., str]) -> Candidate:
    """Returns a candidate of our own record; `text` reads its texts."""
    inside = "candidates"
    return Candidate(
        answer=text(item, "answer", inside=inside),
        preference=preference,
        reasoning=text(item, "reasoning_process", "", inside),
        mentions=tuple(read_mention(m, inside) for m in read_field(item, "mentions", list, [], inside)),
        intervals=tuple(to_interval(i, inside) for i in read_field(item, "intervals", list, [], inside)),
    )


def _mentions_in(*texts: str) -> tuple[Grounding, ...]:
    """Returns the mentions that the texts of visual QA make, whose key items nothing reads."""
    claims = [claim for text in texts for claim in grammar.parse(text, coords.NORMALISED).claims]
    return tuple(dict.fromkeys(Grounding(claim.object, boxes=claim.boxes) for claim in claims))


def _mentions_on(key_frames: Sequence[KeyFrame], items: Record) -> tuple[Grounding, ...]:
    """Returns the mentions that key frames and their items describe, in their order."""
    numbers = [str(frame.index) for frame in key_frames]
    if lost := [number for number in items if number not in numbers]:
        raise wrong("key_items", f"has boxes for frame {lost[0]!r:.80}, which 'key_frames' lacks")
    return tuple(
        Grounding(name, frame.time, boxes=to_boxes(boxes, "key_items"))
        for number, frame in zip(numbers, key_frames, strict=True)
        for name, boxes in read_field(items, number, dict, {}, "key_items").items()
    )
