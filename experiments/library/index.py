"""A library of videos that can be searched: what a model says of each part, and its features from afar.

Both are made once. records*.jsonl holds the descriptions; features/ is the folder of kept features of
`o3jax.inference.coarse`, for models with evidence modules. New and changed files are added the next time.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.library.asking import Question, answers, moments
from experiments.library.beam import load_once
from experiments.library.records import Record, RunFolder
from experiments.library.windows import Facts, Readers, cut, read_facts, read_piece
from o3jax.api import Model
from o3jax.errors import UserError
from o3jax.grounding import Interval
from o3jax.inference.coarse import coarse_features, relevance
from o3jax.report.moments import Moment
from o3jax.video import PRESENTED_FPS

QUESTIONS = ("What happens in the video, and when?", "视频里发生了什么?什么时候?")
_MOST_TOKENS = 256  # of a description
_TEXT = 4000  # characters of it that are kept
_WORDS = re.compile(r"[a-z0-9]+|[\u3400-\u9fff\uf900-\ufaff]+")


class Found(NamedTuple):
    """A moment that may answer the question, the best first."""

    file: str
    moment: Moment
    score: float
    record: Record  # of its video


class Library(RunFolder):
    """The index of a library."""

    flag = "--index_dir"

    def __init__(self, folder: Path, suffix: str, model: Model, readers: Readers):
        super().__init__(folder, suffix)
        self.model, self.readers = model, readers
        self.length_s, self.overlap_s = model.settings.clip_s, model.settings.clip_s / 3
        self.known: dict[str, Record] = {}
        self._curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # of the question that is asked

    def waiting(self, videos: Sequence[str]) -> list[str]:
        """Returns the videos that are not in the index as they are now."""
        self.known = self.records()
        return [path for path in videos if self.known.get(path, {}).get("file_is") != _stamp(path)]

    def add_videos(self, videos: Sequence[str]) -> Iterator[tuple[str, Record]]:
        """Yields each video with its record, which is on the disk by then, after reading it."""
        pieces: list[Record] = []
        for (path, facts, piece), read in self.readers.ahead(self._tasks(videos), self._read):
            if piece is not None:
                record: Record = {"id": f"{path}#{len(pieces)}", "file": path, "span": list(piece)}
                try:
                    if isinstance(read, UserError):
                        raise read
                    said = answers(self.model, *read, path, QUESTIONS, _MOST_TOKENS, anyway=True)
                    record["text"] = " ".join(answer.raw[:_TEXT] for answer in said)
                except UserError as error:
                    record["error"] = str(error)
                pieces.append(record)
                continue
            record = self._video(path, facts, pieces)
            self.add([*pieces, record])
            self.known |= {one["id"]: one for one in (*pieces, record)}
            pieces = []
            yield path, record

    def _tasks(self, videos: Sequence[str]) -> Iterator[tuple[str, Facts | UserError, Interval | None]]:
        for path in videos:
            try:
                facts = self.readers.run(read_facts, path)
                for piece in cut(facts.info.duration_s, self.length_s, self.overlap_s):
                    yield path, facts, piece
            except UserError as error:
                facts = error
            yield path, facts, None

    def _read(self, task: tuple[str, Facts, Interval | None]):
        path, facts, piece = task
        return None if piece is None else read_piece(self.model, path, facts.info, piece, self.readers)

    def _video(self, path: str, facts: Facts | UserError, pieces: Sequence[Record]) -> Record:
        """Returns the record of a video whose parts are described; its features are made."""
        record: Record = {"id": path, "file": path}
        try:
            if isinstance(facts, UserError):
                raise facts
            if errors := [one["error"] for one in pieces if "error" in one]:
                if len(errors) == len(pieces):
                    raise UserError(errors[0])
            if self.model.config.evidence is not None:
                coarse_features(self.model, path, cache=self.folder / "features")
        except UserError as error:
            return record | {"error": str(error)}
        info = facts.info
        record |= {"size": [info.width, info.height], "duration_s": round(info.duration_s, 3)}
        record |= {"fps": info.fps or PRESENTED_FPS, "pieces": len(pieces), "created": facts.created}
        return record | {"file_is": _stamp(path)}

    def find(self, question: str, videos: Sequence[str], confirm: int, max_new_tokens: int) -> list[Found]:
        """Returns the moments of the likeliest parts, which are asked the question, the best first.

        Args:
            confirm: how many parts are asked.
        """
        parts = [
            (path, self.known[f"{path}#{number}"])
            for path in videos
            for number in range(self.known.get(path, {}).get("pieces", 0))
        ]
        scores = matches(question, [part.get("text", "") for _, part in parts])
        ranked: list[tuple[float, str, Interval]] = []
        self._curves.clear()
        for score, (path, part) in sorted(zip(scores, parts, strict=True), key=lambda one: -one[0]):
            # Relevance adds at most 1: what cannot reach the likeliest any more is not looked at.
            if len(ranked) >= confirm and score + 1 <= sorted(one[0] for one in ranked)[-confirm]:
                break
            ranked.append((score + self._relevance(path, part["span"], question), path, tuple(part["span"])))
        ranked.sort(key=lambda one: (-one[0], one[1], one[2]))
        found = []
        for score, path, piece in ranked[:confirm]:
            info = self.readers.run(read_facts, path).info
            read = read_piece(self.model, path, info, piece, self.readers)
            [answer] = answers(self.model, *read, path, [question], max_new_tokens, anyway=True)
            named = max((matches(question, [e.object])[0] for e in answer.evidence), default=0.0)
            for moment in moments(Question(question, question), answer, piece[0]):
                found.append(Found(path, moment, score + named, self.known[path]))
        return sorted(found, key=lambda one: (-one.score, -one.moment.confidence, one.file))

    def _relevance(self, path: str, span: Interval, question: str) -> float:
        """Returns the greatest relevance that a part of a video has for a question; 0 where none is known."""
        if self.model.config.evidence is None:
            return 0.0
        if path not in self._curves:
            features = coarse_features(self.model, path, cache=self.folder / "features")
            curve = np.asarray(relevance(self.model, features, question))
            self._curves[path] = features.times_s, curve
        times, curve = self._curves[path]
        inside = curve[(times >= span[0]) & (times <= span[1])]
        return float(inside.max()) if len(inside) else 0.0


@dataclasses.dataclass(frozen=True)
class LibraryWork:
    """What a worker of a pipeline does: it adds a video to the index."""

    folder: str
    model_path: str

    def open(self, name: str) -> Callable[[str], None]:
        """Returns what adds a video."""
        library = Library(Path(self.folder), name, load_once(self.model_path), Readers(1))
        library.waiting([])

        def add(path: str) -> None:
            for _ in library.add_videos([path]):
                pass

        return add


def matches(question: str, texts: Sequence[str]) -> list[float]:
    """Returns how much of a question each text says, 0 to 1: rare words and phrases count for more.

    Phrases are two words, or two to four Chinese characters. What no text says counts nothing.
    """
    docs = [_terms(text) for text in texts]
    count = Counter(term for doc in docs for term in doc)
    weights = {term: math.log(1 + len(docs) / count[term]) for term in _terms(question) if count[term]}
    total = sum(weights.values())
    return [sum(w for term, w in weights.items() if term in doc) / total if total else 0.0 for doc in docs]


def _terms(text: str) -> set[str]:
    words, found = _WORDS.findall(text.lower()), set()
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.isascii():
            found.add(word)
            if following.isascii() and following:
                found.add(f"{word} {following}")
        else:
            found |= {word[i : i + n] for n in (2, 3, 4) for i in range(len(word) - n + 1)}
    return found


def _stamp(path: str) -> list[int]:
    try:
        found = os.stat(path)
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]
