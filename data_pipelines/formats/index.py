"""Which records of a dataset folder can be used, and what is wrong with the others.

`stgr.py` and `article.py` say whether a record is what its format asks for; here it is judged against its
video too. The texts are judged like the fields: they are what a model is trained to write.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.formats.article import from_article
from data_pipelines.formats.fields import Record, RecordError, check_box, check_name, wrong
from data_pipelines.formats.published import checked_size
from data_pipelines.formats.sample import Candidate, Sample
from data_pipelines.formats.stgr import from_stgr
from data_pipelines.reading.guarded import GuardedReader, inside, read_image
from o3jax.errors import UserError
from o3jax.files import read_json
from o3jax.grounding import Box
from o3jax.prompts import coords, templates
from o3jax.tasks import VISUAL
from o3jax.video import VideoInfo, probe
from o3jax.video.files import MissingFileError


class _Fields(NamedTuple):
    """Which fields of a record hold the times, boxes, texts and intervals that a sample or candidate has."""

    times: str
    boxes: str
    reasoning: str
    intervals: str
    answer: str = "answer"


class _Format(NamedTuple):
    """How a record becomes a sample, what its fields are called, and its source where it tells none."""

    read: Callable[[Any, str], Sample]
    fields: _Fields
    source: str = ""


_STGR = _Format(
    lambda record, _: from_stgr(record), _Fields("key_frames", "key_items", "reasoning_process", "answer")
)
_PUBLISHED = _STGR._replace(read=lambda record, _: from_stgr(record, in_published_tree=True))
_ARTICLE = _Format(from_article, _Fields("timestamps", "bboxes", "reasoning", "timestamps"), "article")
_BUILT = _Format(lambda sample, _: sample, _Fields("mentions", "mentions", "reasoning", "intervals"))
_CANDIDATES = _Fields(*["candidates"] * 5)
# Where a folder has its annotations, the first of these that is there.
_PLACES = ("stgr.json", "annotations.json", "json_data/STGR-SFT.json")

# Texts tell times in tenths of a second, so one that is right may lie this far behind the end.
END_TOLERANCE_S = 0.1

_TIME = re.compile(r"<t>([^<]*)</t>")
_SECTION = re.compile("</?(?:think|answer)>")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL_TOKEN = re.compile(r"<\|\w{1,40}\|>")
_INTERVAL = re.compile(r"<t>([^<]*)</t>\s{0,4}(?:s|秒)?\s{0,4}(?:to|-|到|至)\s{0,4}<t>([^<]*)</t>")


@dataclasses.dataclass(frozen=True)
class Reject:
    """A record that cannot be used.

    `id` is the record's own, or "<file>-<number>" where it has none; `field` is the one to mend, empty
    where the record is no object; `task` and `source` are empty where neither record nor format tells;
    `evidence` is how many times and boxes it annotates, as far as can be seen.
    """

    id: str
    reason: str
    field: str
    task: str
    source: str
    missing: bool = False  # a file that the record names does not exist
    evidence: int = 0


@dataclasses.dataclass(frozen=True)
class Index:
    """What `read_index` found: usable samples and unusable records, both in order, and the videos.

    `root` is the folder that the samples' paths are relative to; `media` holds what was probed of each
    readable video, by its path as the samples have it.
    """

    root: Path
    samples: list[Sample]
    rejects: list[Reject]
    media: dict[str, VideoInfo]


def index_folder(path: str | Path) -> tuple[list[Sample], list[Reject]]:
    """Returns the samples and rejects of `read_index`."""
    index = read_index(path)
    return index.samples, index.rejects


def read_index(path: str | Path, reader: GuardedReader | None = None) -> Index:
    """Returns the usable samples of a data set, and what is wrong with its other records, in order.

    A record is rejected if it has unknown, missing or wrong fields, reversed or empty boxes or intervals,
    a box outside the frame, a time outside the video, or names a video, image or key frame that is not
    readable inside the folder and the reader's limits. Each file is opened once, in a process that may
    crash.

    Args:
        path: one annotation file, or the folder that holds it: `stgr.json` (our own), `annotations.json`
            (the article's), `json_data/STGR-SFT.json` (published; name `json_data/STGR-RL.json` for the
            other one), or what `tfds_builders.write` made of any. Files that begin with `stgr` or
            `annotations` are read as these.
        reader: opens the files; by default one of its own, for this call alone.

    Raises:
        UserError: if there is no annotation file, or it is no JSON list.
    """
    path = Path(path)
    if any(path.glob("o3_*/*/dataset_info.json")):
        from data_pipelines.formats import tfds as tfds_builders

        return judge_samples(tfds_builders.read(path), path, reader)
    file = path if path.is_file() else next((p for name in _PLACES if (p := path / name).is_file()), None)
    if file is None:
        raise UserError(f"{path} has neither {' nor '.join(_PLACES)}: make one with experiments.data")
    with _reading(reader) as opened:
        return _judged(read_json(file, list), file.stem, _format(file), data_root(path), opened)


def judge_samples(samples: Iterable[Sample], root: Path, reader: GuardedReader | None = None) -> Index:
    """Returns the index of samples that were built, perhaps elsewhere: nothing is trusted.

    Args:
        root: the folder that their paths are relative to.
        reader: as for `read_index`.
    """
    with _reading(reader) as opened:
        return _judged(samples, root.name, _BUILT, root, opened)


def _reading(reader: GuardedReader | None) -> AbstractContextManager[GuardedReader]:
    return closing(GuardedReader()) if reader is None else nullcontext(reader)


def _judged(records: Iterable[Any], stem: str, form: _Format, root: Path, reader: GuardedReader) -> Index:
    """Returns the index of records, or of samples."""
    samples, rejects, media = [], [], _Media(root, reader)
    for number, record in enumerate(records):
        name = f"{stem}-{number}"
        values = dataclasses.asdict(record) if isinstance(record, Sample) else record
        try:
            if not isinstance(values, dict):
                raise RecordError("", f"the record must be an object with fields, not {record!r:.80}")
            _check_characters(values)
            sample = form.read(record, name)
            samples.append(_checked(sample, _fields(form, sample, values), media))
        except RecordError as error:
            rejects.append(_reject(values, name, error, form))
    return Index(root, samples, rejects, media.videos)


def data_root(path: str | Path) -> Path:
    """Returns the folder that the paths of a data set's samples are relative to, for its folder or file."""
    path = Path(path)
    if not path.is_file():
        return path
    folder = path.resolve().parent
    return folder.parent if folder.name == "json_data" else path.parent


def _format(file: Path) -> _Format:
    if file.resolve().parent.name == "json_data":
        return _PUBLISHED
    for start, form in (("stgr", _STGR), ("annotations", _ARTICLE)):
        if file.name.startswith(start) and file.suffix == ".json":
            return form
    raise UserError(
        f"{file}: its name does not tell what its records are; call it stgr*.json or annotations*.json, or "
        "put published files into a folder json_data"
    )


class _Media:
    """What a folder's media files are, each opened once."""

    def __init__(self, folder: Path, reader: GuardedReader):
        self.folder = folder
        self.videos: dict[str, VideoInfo] = {}
        self._known: dict[tuple[Callable, str], Any] = {}
        self._reader = reader

    def video(self, path: str) -> VideoInfo:
        """Returns what a video says about itself; RecordError if it cannot be read."""
        self.videos[path] = found = self._open(probe, path, "video_path")
        return found

    def image_size(self, path: str, field: str) -> tuple[int, int]:
        """Returns the (width, height) of a picture; RecordError if it cannot be read."""
        return self._open(_picture_size, path, field)

    def _open(self, function: Callable[..., Any], path: str, field: str) -> Any:
        key = function, path
        if key not in self._known:
            try:
                self._known[key] = self._reader.run(function, inside(self.folder, path))
            except UserError as error:
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, UserError):
            missing = isinstance(found, MissingFileError)
            raise RecordError(field, f"field {field!r}: {found}", missing=missing)
        return found


def _picture_size(path: Path) -> tuple[int, int]:
    height, width, _ = read_image(path).shape
    return width, height


def _fields(form: _Format, sample: Sample, record: Record) -> _Fields:
    """Returns which fields of this record the sample's evidence stands in."""
    fields = form.fields
    if "mentions" in record:
        fields = fields._replace(times="mentions", boxes="mentions")
    elif sample.task == VISUAL:  # its mentions are those of its texts
        fields = fields._replace(times="answer", boxes="answer")
    return fields._replace(intervals="intervals") if "intervals" in record else fields


def _checked(sample: Sample, fields: _Fields, media: _Media) -> Sample:
    """Returns the sample, with its video's duration if it has none; RecordError if it cannot be true."""
    for field in ("question", "answer"):
        if not getattr(sample, field).strip():
            raise wrong(field, "is empty; fill it")
    if sample.task == VISUAL:
        _check_image(sample, media)
        end = None
    else:
        end = _end(sample, media)
    _check_evidence(sample, fields, end)
    for candidate in sample.candidates:
        _check_evidence(candidate, _CANDIDATES, end)
    for frame in sample.key_frames:
        _check_time(frame.time, end, "key_frames")
        if frame.path is not None:
            media.image_size(frame.path, "key_frames")
    return sample if sample.duration is not None else dataclasses.replace(sample, duration=end)


def _check_evidence(answered: Sample | Candidate, fields: _Fields, end: float | None) -> None:
    """RecordError if times, boxes or texts of a sample or candidate are wrong."""
    for mention in answered.mentions:
        check_name(mention.object, fields.boxes)
        for time in (mention.time_s, *(mention.interval or ())):
            if time is not None:
                _check_time(time, end, fields.times)
        for box in mention.boxes:
            _check_area(check_box(box, fields.boxes), fields.boxes)
    if fields.intervals == "intervals":  # else they are the mentions' or the answer's, which come first
        _check_intervals(answered, end, fields.intervals)
    _check_text(answered.reasoning, end, fields.reasoning)
    _check_text(answered.answer, end, fields.answer)
    _check_intervals(answered, end, fields.intervals)


def _check_intervals(answered: Sample | Candidate, end: float | None, field: str) -> None:
    for start, stop in answered.intervals:
        _check_interval(start, stop, end, field)


def _check_image(sample: Sample, media: _Media) -> None:
    """RecordError if the image of visual QA cannot be read or has another size than the record says."""
    if sample.image_path is None:
        raise wrong("image_path", "is missing; add it")
    checked_size(sample.image_size)
    size = media.image_size(sample.image_path, "image_path")
    if size != sample.image_size:
        raise wrong(
            "image_size",
            f"is {list(sample.image_size)}, but the image is {size[0]} pixels wide and {size[1]} high; write "
            "the size of the original and its pixels in the boxes",
        )


def _check_characters(record: Record) -> None:
    """RecordError if a field holds what no tokenizer may see: halves of characters, tokens of the chat."""
    for name, value in record.items():
        text = json.dumps(value, ensure_ascii=False)
        if half := _SURROGATE.search(text):
            raise wrong(name, f"holds half a character ({half.group()!r}); mend its text")
        if token := _CONTROL_TOKEN.search(text):
            raise wrong(name, f"holds the control token {token.group()}; take it out of the text")


def _end(sample: Sample, media: _Media) -> float:
    """Returns the seconds at which the video ends: by its file, and by the record if that is earlier."""
    if sample.video_path is None:
        raise wrong("video_path", "is missing; add it")
    info = media.video(sample.video_path)
    if sample.image_size not in (None, (info.width, info.height)):
        raise wrong(
            "image_size",
            f"is {list(sample.image_size)}, but the video is {info.width} pixels wide and {info.height} "
            "high; write its size and boxes in its pixels, or leave it out and write 0-1",
        )
    end = info.duration_s
    if sample.duration is None:
        return end
    if sample.duration == 0:
        raise wrong("duration", "must be more than 0 s")
    return min(end, sample.duration)


def _check_text(text: str, end: float | None, field: str) -> None:
    """RecordError if the text tells a wrong box, interval or time; what cannot be read is not a claim."""
    if tag := _SECTION.search(templates.bare(templates.bare(text, "think"), "answer")):
        raise wrong(field, f"holds the tag {tag.group()}, which is written around it; take it out")
    for box in coords.boxes_in(text):
        _check_area(check_box(box, field), field)
    for pair in _INTERVAL.findall(text):
        start, stop = map(coords.parse_number, pair)
        if start is not None and stop is not None:
            _check_interval(start, stop, end, field)
    for content in _TIME.findall(text):
        if (time := coords.parse_number(content)) is not None:
            _check_time(time, end, field)


def _check_time(time: float, end: float | None, field: str) -> None:
    if end is None:
        raise wrong(field, f"tells the time {time:g} s, but an image has no time")
    if not 0 <= time <= end + END_TOLERANCE_S:
        raise wrong(field, f"tells the time {time:g} s, but the video goes from 0 to {end:.2f} s")


def _check_interval(start: float, stop: float, end: float | None, field: str) -> None:
    _check_time(start, end, field)
    _check_time(stop, end, field)
    if start >= stop:
        fault = "without length" if start == stop else "that ends before it starts"
        raise wrong(field, f"tells an interval {fault}: {start:g} to {stop:g} s")


def _check_area(box: Box, field: str) -> None:
    if box[0] == box[2] or box[1] == box[3]:
        raise wrong(field, f"has the box {list(box)}, which has no area")


def _reject(record: Any, name: str, error: RecordError, form: _Format) -> Reject:
    def own(field: str) -> str:
        value = record.get(field) if isinstance(record, dict) else None
        return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""

    texts = (own("id") or name, str(error), error.field, own("task"), own("source") or form.source)
    # A half of a character cannot be written; everything else is cleaned where it is printed.
    whole = [_SURROGATE.sub("?", text) for text in texts]
    return Reject(*whole, error.missing, _evidence_in(record))


def _evidence_in(record: Any) -> int:
    """Returns how many pieces of evidence a record seems to annotate, whatever is wrong with it."""
    record = record if isinstance(record, dict) else {}
    for field in ("mentions", "timestamps"):
        if isinstance(found := record.get(field), list | tuple):
            return len(found)
    items = record.get("key_items")
    frames = items.values() if isinstance(items, dict) else ()
    return sum(len(names) for names in frames if isinstance(names, dict))
