"""A long video in pieces that a model can be asked about, read in a process that may die."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import numpy as np

from data_pipelines.reading.guarded import GuardedReader, Limits
from o3jax.api import Model
from o3jax.errors import UserError
from o3jax.grounding import Interval
from o3jax.inference.respond import Request
from o3jax.inputs.dense import dense_wanted
from o3jax.video import Clip, OpenVideo, VideoInfo, Wanted, read_video
from o3jax.video.files import local_file, open_container

T = TypeVar("T")
R = TypeVar("R")
# One's own recordings may be long and large; what one reading takes is limited all the same.
_LIMITS = Limits(max_duration_s=30 * 86400.0, max_frames=10**9, max_bytes=2**42)
_LEAST_S = 0.5  # a rest at the end that is shorter belongs to the piece before


class Facts(NamedTuple):
    """What a file says of itself."""

    info: VideoInfo
    created: str | None  # the clock's time of its first frame, ISO 8601


def read_facts(path: str) -> Facts:
    """Returns what a file says of itself."""
    with OpenVideo(path) as video:
        info = video.info()
    with open_container(local_file(path), decodes=False) as container:
        created = container.metadata.get("creation_time")
    try:
        return Facts(info, created and datetime.fromisoformat(created).isoformat())
    except ValueError:
        return Facts(info, None)


def cut(duration_s: float, length_s: float, overlap_s: float, *, ended: bool = True) -> list[Interval]:
    """Returns the pieces of a video in seconds, each `overlap_s` before the end of the one before it.

    Args:
        ended: the video will not grow; else only the pieces that are whole are returned.
    """
    step, pieces = length_s - overlap_s, []
    while (start := len(pieces) * step) + length_s <= duration_s + 1e-6:
        pieces.append((start, start + length_s))
    covered = pieces[-1][1] if pieces else 0.0
    if ended and (not pieces or duration_s - covered > _LEAST_S):
        pieces.append((len(pieces) * step, duration_s))
    return pieces


class Readers:
    """Several guarded readers, one for each thread that asks."""

    def __init__(self, count: int):
        self._own = threading.local()
        self._all: list[GuardedReader] = []
        self._pool = concurrent.futures.ThreadPoolExecutor(count)
        self._ahead = 2 * count

    def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Returns `function(*args, **kwargs)`, evaluated in this thread's child."""
        if not hasattr(self._own, "reader"):
            self._own.reader = GuardedReader(_LIMITS)
            self._all.append(self._own.reader)
        return self._own.reader.run(function, *args, **kwargs)

    def ahead(self, tasks: Iterator[T | None], read: Callable[[T], R]) -> Iterator[tuple[T, R | UserError]]:
        """Yields each task with what was read for it, or why not, in order; several are read at a time.

        Args:
            tasks: None among them: what was read so far is wanted before the next is asked for.
        """
        waiting: deque[tuple[T, concurrent.futures.Future]] = deque()
        for task in tasks:
            if task is not None:
                waiting.append((task, self._pool.submit(read, task)))
            while waiting and (task is None or len(waiting) > self._ahead):
                yield _done(waiting.popleft())
        while waiting:
            yield _done(waiting.popleft())

    def close(self) -> None:
        """Ends the children."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for reader in self._all:
            reader.close()


def _done(waiting: tuple[T, concurrent.futures.Future]) -> tuple[T, Any]:
    try:
        return waiting[0], waiting[1].result()
    except UserError as error:
        return waiting[0], error


def read_streams(path: str, *wanted: Wanted) -> list[Clip]:
    """Returns a clip of a video for each of what is wanted."""
    with OpenVideo(path, measure=False) as video:
        return video.read(*wanted)


def read_piece(
    model: Model, path: str, info: VideoInfo, piece: Interval, reader: Readers
) -> tuple[Request, Clip]:
    """Returns a piece of a video as if it were a video of its own, for a question that is still to be put.

    Raises:
        VideoError: if it cannot be read.
    """
    start, end = piece
    rate, processor, evidence = model.settings.fps, model.processor, model.config.evidence
    indices = processor.sample_indices(max(1, int((end - start) * rate + 1e-6)), rate)
    wanted = [Wanted(times_s=start + indices / rate)]
    if evidence is not None:
        dense = dense_wanted(info, evidence, processor.video_config.factor)
        wanted.append(dataclasses.replace(dense, start_s=start, end_s=end))
    clip, *streams = reader.run(read_streams, path, *wanted)
    shown, frames = np.floor((clip.times_s - start) * rate + 0.5).astype(int), clip.frames
    if len(shown) == 1:  # one frame is a still: shown for the length of a pair
        shown, frames = np.repeat(shown, 2), np.repeat(frames, 2, axis=0)
    request = Request("", "", frames, {"fps": rate, "frames_indices": shown})

    def frames_at(times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = reader.run(read_video, path, times_s=start + times_s)
        return found.frames, found.times_s - start

    for stream in streams:
        request = dataclasses.replace(
            request,
            dense_frames=stream.frames,
            dense_times=stream.times_s - start,
            frames_at=frames_at,
        )
    return request, dataclasses.replace(clip, frames=clip.frames[:0], duration_s=end - start)


def put(model: Model, request: Request, question: str) -> Request:
    """Returns the request with a question."""
    prompt = model.processor.prompt(question, model.settings.prompt_style, None)
    return dataclasses.replace(request, question=question, prompt=prompt)
