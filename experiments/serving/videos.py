"""Videos and pictures of strangers, read in processes with limits; what is read of one is shared.

A picture is read as a video of one frame.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.reading.guarded import GuardedReader, Limits, read_image
from experiments.serving.shared import Shared
from o3jax.notes import Note
from o3jax.report import Answer, annotate, write_report
from o3jax.video import PRESENTED_FPS, Clip, OpenVideo, VideoError, VideoInfo, Wanted, probe
from o3jax.video.sparse import SparseReader, StillFrame

PICTURE = "picture"  # the codec of what is no video
_SPARSE, _STILLS = 32, 16  # files open at a time, and frames that are read at a time


class Videos:
    """Opens files as `o3jax.Model.open_video` wants it.

    Args:
        limits: what a file may ask for.
        processes: that read at the same time.
        most_bytes: of frames that are kept for the next question.
    """

    def __init__(self, limits: Limits, processes: int = 2, most_bytes: int = 2**30):
        self.shared = Shared(most_bytes)
        self._all = [GuardedReader(limits) for _ in range(processes)]
        self._turns = itertools.cycle(self._all)

    def run(self, function: Callable[..., Any], path: Path, *arguments: Any) -> Any:
        """Returns `function(path, *arguments)`, evaluated in a process with limits; VideoError otherwise."""
        return self.reader().run(function, path, *arguments)

    def reader(self) -> GuardedReader:
        """Returns one of the processes, each in its turn."""
        return next(self._turns)

    def info(self, path: Path) -> VideoInfo:
        """Returns what a file says about itself; VideoError if it is neither a video nor a picture."""
        return self.shared.get(("info", _key(path)), lambda: self.run(_info, path), lambda _: 0)

    def open(self, path: Path, threads: Any = 1, keep_bytes: int = 0, measure: bool = True) -> GuardedVideo:
        """Returns what has the methods of an `OpenVideo`."""
        return GuardedVideo(self, Path(path))

    def open_sparse(self, path: Path) -> GuardedSparse:
        """Returns a `SparseReader` that reads in a process with limits."""
        return GuardedSparse(self.reader(), Path(path))

    def report(self, path: Path, answer: Answer, out: Path) -> None:
        """Writes the report page of an answer about a file."""
        self.run(_report, path, answer, out)

    def close(self) -> None:
        """Ends the processes."""
        for reader in self._all:
            reader.close()


@dataclasses.dataclass(frozen=True)
class GuardedVideo:
    """A file in place of an `OpenVideo`, read in a process with limits."""

    videos: Videos
    path: Path

    def __enter__(self) -> GuardedVideo:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def info(self) -> VideoInfo:
        """Returns what the file says about itself."""
        return self.videos.info(self.path)

    def read(self, *wanted: Wanted) -> list[Clip]:
        """Returns a clip for each of the arguments."""
        key = "read", _key(self.path), tuple(map(_wanted_key, wanted))
        return self.videos.shared.get(
            key,
            lambda: self.videos.run(_read, self.path, wanted),
            lambda clips: sum(clip.frames.nbytes for clip in clips),
        )

    def frames_at(self, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the frames shown at some times, of full size, and the times without those that are lost."""
        key = "frames", _key(self.path), times_s.tobytes()
        return self.videos.shared.get(
            key, lambda: self.videos.run(_frames_at, self.path, times_s), lambda found: found[0].nbytes
        )


class GuardedSparse(SparseReader):
    """A `SparseReader` whose file is open in a process with limits."""

    def __init__(self, reader: GuardedReader, path: Path):
        self._ask = functools.partial(reader.run, _sparse, path, secrets.token_hex(8))
        self.cues, self.duration_s, self.size = self._tell("open")

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(VideoError):
            self._ask("close")

    @property
    def decoded(self) -> int:
        """How many frames went through the decoder."""
        return self._so_far

    def notes(self) -> tuple[Note, ...]:
        """Returns what a user should know about what was read so far."""
        return self._tell("notes")

    def frames(self, times_s: Iterable[float], size: tuple[int, int]) -> Iterator[StillFrame]:
        """Yields a frame near each of some times."""
        self._tell("frames", list(times_s), size)
        while some := self._tell("next"):
            yield from some

    def _tell(self, what: str, *arguments: Any) -> Any:
        found, self.lost, self._so_far, self.forward = self._ask(what, *arguments)
        return found


def _key(path: Path) -> tuple[str, int, int]:
    found = os.stat(path)
    return str(path), found.st_size, found.st_mtime_ns


def _wanted_key(wanted: Wanted) -> tuple:
    times = None if wanted.times_s is None else np.asarray(wanted.times_s).tobytes()
    return (
        dataclasses.astuple(dataclasses.replace(wanted, times_s=None))
        if times is None
        else (times, wanted.size)
    )


# What runs in the process that reads.


def _info(path: Path) -> VideoInfo:
    try:
        return probe(path)
    except VideoError as error:
        with contextlib.suppress(VideoError):
            height, width = read_image(path).shape[:2]
            return VideoInfo(1 / PRESENTED_FPS, PRESENTED_FPS, 1, width, height, PICTURE, 0)
        raise error


def _read(path: Path, wanted: tuple[Wanted, ...]) -> list[Clip]:
    if _info(path).codec != PICTURE:
        with OpenVideo(path, "auto") as video:
            return video.read(*wanted)
    picture = read_image(path)
    return [_still(picture, one) for one in wanted]


def _still(picture: np.ndarray, wanted: Wanted) -> Clip:
    size = wanted.size or picture.shape[:2]
    frame = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC))
    return Clip(
        frames=frame[None],
        times_s=np.zeros(1),
        duration_s=1 / PRESENTED_FPS,
        duration_measured=True,
        source_fps=PRESENTED_FPS,
        size=picture.shape[:2],
        status="complete",
        notes=(),
        decoded_frames=1,
    )


def _frames_at(path: Path, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if _info(path).codec == PICTURE:
        return np.repeat(read_image(path)[None], len(times_s), axis=0), times_s
    with OpenVideo(path, "auto") as video:
        return video.frames_at(times_s)


_sparse_files: dict[str, tuple[SparseReader, Iterator[StillFrame]]] = {}


def _sparse(path: Path, token: str, what: str, *arguments: Any) -> tuple[Any, list, int, Note | None]:
    """Returns what an open file says, and the state that it is in."""
    found: Any = None
    if what == "open":
        for old in list(_sparse_files)[:-_SPARSE]:  # whose owner has gone without a word
            _sparse_files.pop(old)[0].__exit__()
        reader = SparseReader(path)
        _sparse_files[token] = reader, iter(())
        found = reader.cues, reader.duration_s, reader.size
    reader, frames = _sparse_files[token]
    if what == "frames":
        _sparse_files[token] = reader, reader.frames(*arguments)
    elif what == "next":
        found = list(itertools.islice(frames, _STILLS))
    elif what == "notes":
        found = reader.notes()
    elif what == "close":
        _sparse_files.pop(token)[0].__exit__()
    return found, reader.lost, reader.decoded, reader.forward


def _report(path: Path, answer: Answer, out: Path) -> None:
    with _as_video(path) as video:
        write_report(answer, video, out)


@contextlib.contextmanager
def _as_video(path: Path) -> Iterator[Path]:
    """Yields the file, or one that shows the picture for a second."""
    info = _info(path)
    if info.codec != PICTURE:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "picture.mp4"
        width, height = annotate.display_size(info.width, info.height, smallest=0)
        frame = np.asarray(Image.fromarray(read_image(path)).resize((width, height)))
        with annotate.Mp4Writer(out, PRESENTED_FPS, width, height) as writer:
            for _ in range(int(PRESENTED_FPS)):
                writer.write(frame)
        yield out
