"""A run of `watch` or `label` over videos: pieces are read ahead, asked about, recorded, and joined.

records*.jsonl  a line for each piece and for each video that is done
alerts*.jsonl   what was found, a line each, as it is found; the last line of an id counts
thumbs/ clips/  pictures, and if wanted the evidence as mp4 with the hash of its source
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from experiments.library import chapters
from experiments.library.asking import Question, answers, moments
from experiments.library.beam import load_once
from experiments.library.records import Record, RunFolder, append_line
from experiments.library.windows import Facts, Readers, cut, read_facts, read_piece
from o3jax.api import Model
from o3jax.errors import UserError
from o3jax.files import write_text, writing
from o3jax.grounding import Interval
from o3jax.inference.respond import Request
from o3jax.report.clip import write_clip, write_thumbnail
from o3jax.report.moments import Moment, claimed, joined
from o3jax.video import PRESENTED_FPS, Clip


@dataclasses.dataclass(frozen=True)
class Job:
    """What is asked of every video, and how; another job does not go on in the same folder."""

    command: str
    questions: tuple[Question, ...]
    length_s: float  # of a piece
    overlap_s: float
    join_s: float = 1.0  # findings that are no further apart are one
    describe: str = ""  # asked of every piece: its answer is a chapter, what it names are tags
    chapters: bool = False  # begin and end where what is found comes and goes
    max_new_tokens: int = 768


@dataclasses.dataclass(frozen=True)
class Extras:
    """What may differ from one run of a job to the next."""

    clips: bool = False
    camera: str | None = None  # None: the name of the file's folder
    starts_at: datetime | None = None  # the clock's time of the first frame; None: as the file says


@dataclasses.dataclass(frozen=True)
class Follow:
    """How files that are still written are read."""

    idle_s: float  # one that has not grown for so long is complete
    poll_s: float = 0.5


class Task(NamedTuple):
    """A piece to ask about, or without one the end of a video."""

    path: str
    facts: Facts | None
    number: int = 0
    piece: Interval | None = None


class Session(RunFolder):
    """The folder of a run, and how videos become records in it."""

    flag = "--out"

    def __init__(self, folder: Path, suffix: str, job: Job, extras: Extras, readers: Readers):
        super().__init__(folder, suffix)
        self.job, self.extras, self.readers = job, extras, readers
        self.known: dict[str, Record] = {}
        self._alerts = folder / f"alerts{suffix}.jsonl"
        self._so_far: dict[str, list[Moment]] = {}  # of a video that is followed
        self._raised: dict[str, list[tuple[str, Moment]]] = {}  # alerts by their ids
        self._hashes: dict[str, str] = {}

    def start(self, videos: Sequence[str]) -> list[str]:
        """Returns the videos that are not done, and puts the file of alerts in order."""
        self.known = self.records()
        shown, waiting = [], []
        for path in videos:
            done = self.known.get(path)
            if done and "error" not in done:
                shown += done["moments"]
                continue
            waiting.append(path)
            for window in self._windows(path):
                shown += self._new_alerts(path, None, window)
        write_text(self._alerts, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in shown))
        return waiting

    def add(self, records: Sequence[Record]) -> None:
        super().add(records)
        self.known |= {record["id"]: record for record in records}

    def work(
        self, model: Model, videos: Sequence[str], follow: Follow | None = None
    ) -> Iterator[tuple[Task, Record, list[Record]]]:
        """Yields each task with its record, which is on the disk by then, and the alerts that it raises."""
        for task, read in self.readers.ahead(self._tasks(videos, follow), lambda t: self._read(model, t)):
            if task.piece is None:
                record = self._finished(task)
                yield task, record, record.get("moments", [])
                continue
            record = {"id": f"{task.path}#{task.number}", "file": task.path, "span": list(task.piece)}
            try:
                if isinstance(read, UserError):
                    raise read
                record |= self._asked(model, task, *read)
            except UserError as error:
                record["error"] = str(error)
            self.add([record])
            alerts = self._new_alerts(task.path, task.facts, record) if follow else []
            for alert in alerts:
                append_line(self._alerts, alert)
            yield task, record, alerts

    def _tasks(self, videos: Sequence[str], follow: Follow | None) -> Iterator[Task | None]:
        """Yields what is to be done; None where more must be waited for."""
        grown: dict[str, tuple[int, float]] = {}
        asked: dict[str, int] = {}
        waiting = list(videos)
        while waiting:
            looked = 0.0
            for path in list(waiting):
                ended = follow is None or not _grows(path, grown, follow.idle_s)
                begun = time.monotonic()
                try:
                    facts = self.readers.run(read_facts, path)
                    looked += time.monotonic() - begun
                except UserError as error:
                    if ended:
                        waiting.remove(path)
                        self.add([{"id": path, "file": path, "error": str(error)}])
                        yield Task(path, None)
                    continue
                pieces = cut(facts.info.duration_s, self.job.length_s, self.job.overlap_s, ended=ended)
                for number in range(asked.get(path, 0), len(pieces)):
                    record = self.known.get(f"{path}#{number}")
                    if record is None or "error" in record or record["span"] != list(pieces[number]):
                        yield Task(path, facts, number, pieces[number])
                asked[path] = max(asked.get(path, 0), len(pieces))
                if ended:
                    waiting.remove(path)
                    yield Task(path, facts)
            if follow and waiting:
                yield None
                # A long file takes a while to be looked at: twice as long it is left alone.
                time.sleep(max(follow.poll_s, 2 * looked))

    def _read(self, model: Model, task: Task) -> tuple[Request, Clip] | None:
        if task.piece is None:
            return None
        return read_piece(model, task.path, task.facts.info, task.piece, self.readers)

    def _asked(self, model: Model, task: Task, piece: Request, clip: Clip) -> Record:
        job, start = self.job, task.piece[0]
        found: list[Moment] = []
        said = answers(model, piece, clip, task.path, [q.question for q in job.questions], job.max_new_tokens)
        for question, answer in zip(job.questions, said, strict=True):
            found += moments(question, answer, start)
        record: Record = {}
        if job.describe:
            said = answers(model, piece, clip, task.path, [job.describe], job.max_new_tokens, anyway=True)[0]
            found += [moment.later(start) for moment in claimed(said)]
            title = " ".join(said.text.split())[:200]
            chapter = Moment(title, *task.piece, said.confidence, (), said.text, said.needs_review)
            record["chapter"] = chapter.to_dict()
        return record | {"moments": [moment.to_dict() for moment in found]}

    def _windows(self, path: str) -> list[Record]:
        """Returns the records of a video's pieces, as far as there is one after the other."""
        found: list[Record] = []
        while (record := self.known.get(f"{path}#{len(found)}")) is not None:
            found.append(record)
        return found

    def _long_enough(self, found: Sequence[Moment]) -> list[Moment]:
        least = {question.name: question.min_s for question in self.job.questions}
        return [m for m in found if m.end_s - m.start_s >= least.get(m.label, 0.0)]

    def _new_alerts(self, path: str, facts: Facts | None, window: Record) -> list[Record]:
        """Returns the alerts that a piece brings; of an event that was alerted already, none."""
        found = map(Moment.from_dict, window.get("moments", ()))
        so_far = joined([*self._so_far.get(path, ()), *found], self.job.join_s)
        self._so_far[path] = so_far
        return [
            self._alert(path, facts, moment) | {"open": True}
            for moment in self._long_enough(so_far)
            if self._id(path, moment) is None
        ]

    def _id(self, path: str, moment: Moment) -> str | None:
        """Returns the id of the alert that an event has had, None where it has had none."""
        for name, raised in self._raised.get(path, ()):
            apart = max(raised.start_s - moment.end_s, moment.start_s - raised.end_s)
            if raised.label == moment.label and apart <= self.job.join_s:
                return name
        return None

    def _alert(self, path: str, facts: Facts | None, moment: Moment) -> Record:
        """Returns a moment as a line of the alerts."""
        name = self._id(path, moment)
        if name is None:
            name = f"{path}#{moment.label}@{moment.start_s:.2f}"
            self._raised.setdefault(path, []).append((name, moment))
        camera = self.extras.camera or os.path.basename(os.path.dirname(path))
        alert = {"id": name, "file": path, "camera": camera, **moment.to_dict()}
        begin = self.extras.starts_at
        if begin is None and facts and facts.created:
            begin = datetime.fromisoformat(facts.created)
        if begin is not None:
            alert["start_at"] = (begin + timedelta(seconds=moment.start_s)).isoformat()
            alert["end_at"] = (begin + timedelta(seconds=moment.end_s)).isoformat()
        return alert

    def _finished(self, task: Task) -> Record:
        """Returns the record of a video whose pieces are done."""
        path = task.path
        if task.facts is None:
            return self.known[path]
        windows, info = self._windows(path), task.facts.info
        errors = [window["error"] for window in windows if "error" in window]
        about = {"size": [info.width, info.height], "duration_s": round(info.duration_s, 3)}
        record = {"id": path, "file": path, **about, "fps": info.fps or PRESENTED_FPS}
        if errors and len(errors) == len(windows):
            record["error"] = errors[0]
            self.add([record])
            return record
        found = [Moment.from_dict(one) for window in windows for one in window.get("moments", ())]
        record["moments"] = [
            self._pictured(self._alert(path, task.facts, moment), moment)
            for moment in self._long_enough(joined(found, self.job.join_s))
        ]
        listed = [Moment.from_dict(alert) for alert in record["moments"]]
        titled = chapters.of_tags(listed, info.duration_s) if self.job.chapters else chapters.of(windows)
        record["chapters"] = [chapter.to_dict() for chapter in titled]
        if errors:
            record["notes"] = [f"{len(errors)} of {len(windows)} pieces could not be read: {errors[0]}"]
        self.add([record])
        for alert in record["moments"]:
            append_line(self._alerts, alert)
        return record

    def _pictured(self, alert: Record, moment: Moment) -> Record:
        """Returns the alert with its pictures, which are written."""
        stem = hashlib.sha256(alert["id"].encode(errors="surrogateescape")).hexdigest()[:16]
        video, thumbnail, clip = alert["file"], f"thumbs/{stem}.jpg", f"clips/{stem}.mp4"
        try:
            self.readers.run(write_thumbnail, video, moment, self.folder / thumbnail)
            alert["thumbnail"] = thumbnail
            if self.extras.clips:
                about = alert | {"source": {"path": video, "sha256": self._hash(video)}}
                self.readers.run(write_clip, video, moment, about, self.folder / clip)
                alert["clip"] = clip
        except UserError as error:
            alert["notes"] = [str(error)]
        return alert

    def _hash(self, path: str) -> str:
        """Returns the SHA-256 of a file."""
        if path not in self._hashes:
            with writing(path), open(path, "rb") as file:
                self._hashes = {path: hashlib.file_digest(file, "sha256").hexdigest()}
        return self._hashes[path]


@dataclasses.dataclass(frozen=True)
class SessionWork:
    """What a worker of a pipeline does: it puts the questions of a job to a video."""

    folder: str
    model_path: str
    job: Job
    extras: Extras

    def open(self, name: str) -> Callable[[str], None]:
        """Returns what does a video."""
        session = Session(Path(self.folder), name, self.job, self.extras, Readers(1))
        model = load_once(self.model_path)
        session.start([])

        def do(path: str) -> None:
            for _ in session.work(model, [path]):
                pass

        return do


def _grows(path: str, seen: dict[str, tuple[int, float]], idle_s: float) -> bool:
    """Returns whether a file has grown lately; `seen` holds its size and since when it has had it."""
    now = time.monotonic()
    try:
        size = os.stat(path).st_size
    except OSError:
        return False
    if path not in seen or seen[path][0] != size:
        seen[path] = size, now
    return now - seen[path][1] < idle_s
