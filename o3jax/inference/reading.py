"""A video file -> what a question about it reads: frames of the language stream, and of the dense stream."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from o3jax.errors import UserError
from o3jax.grounding import Interval
from o3jax.inference.coarse import Loaded
from o3jax.inference.respond import Request
from o3jax.inference.search import Found, search
from o3jax.inference.windows import read_found
from o3jax.inputs.dense import dense_wanted
from o3jax.models.config import Config
from o3jax.searched import Progress, Search
from o3jax.video import Clip, Wanted

SQUEEZED = 4.0  # times as fast as it is, what a search found is shown at most to a model of another clock
_KEEP_BYTES = 128 * 2**20  # decoded frames of a video that boxes may be read from


class Reader(Loaded, Protocol):
    """What is needed of an `o3jax.Model`."""

    config: Config


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question and its prompt, and what of the video is shown for it."""

    question: str
    prompt: str
    part: Wanted  # the rate at which the video is presented, from where to where
    max_frames: int | None = None  # of the language stream
    search: bool = True  # whether a long video is searched, or read whole all the same
    budget: float | None = None  # share of a long video's frames that may be decoded
    progress: Progress | None = None  # is told how far a search is

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise UserError(f"max_frames must be at least 1, not {self.max_frames}")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise UserError(
                f"budget must be a share of the video's frames above 0, at most 1, not {self.budget:g}"
            )


def read_request(model: Reader, video: str | os.PathLike[str], asked: Asked) -> tuple[Request, Clip]:
    """Returns a question about a video file, ready for `respond`, and the frames that were read.

    Times and numbers of frames are those of the whole video. What is longer than the model reads is searched,
    if the model has evidence modules.

    Raises:
        UserError: if the video cannot be read, or ends before the part begins.
    """
    part, rate, evidence = asked.part, asked.part.fps, model.config.evidence
    pointed = evidence is not None and evidence.box_frames == "pointed"
    keep_bytes = _KEEP_BYTES if pointed else 0
    with model.open_video(video, "auto", keep_bytes=keep_bytes) as file:
        info = file.info()
        if part.start_s > 0 and part.start_s >= info.duration_s:
            raise UserError(f"start_s is {part.start_s:g}, but {video} ends at {info.duration_s:.3f} s")
        end_s = info.duration_s if part.end_s is None else min(part.end_s, info.duration_s)
        is_long = end_s - part.start_s > model.settings.whole_s
        is_late = part.start_s > 0 and model.settings.clock == "window"  # times that the model does not know
        if evidence is not None and (is_long or is_late) and asked.search:
            return _searched(model, video, asked, (part.start_s, end_s), keep_bytes)
        first = math.ceil(part.start_s * rate - 1e-6)
        # Of all frames at the rate, HF's sample.
        indices = first + model.processor.sample_indices(max(1, int(end_s * rate + 1e-6) - first), rate)
        if asked.max_frames is not None and len(indices) > asked.max_frames:
            indices = indices[np.linspace(0, len(indices) - 1, asked.max_frames).round().astype(int)]
        wanted = [Wanted(times_s=indices / rate)]
        if evidence is not None:
            dense = dense_wanted(info, evidence, model.processor.video_config.factor)
            wanted.append(dataclasses.replace(dense, start_s=part.start_s, end_s=part.end_s))
        clip, *dense = file.read(*wanted)
    shown = np.floor(clip.times_s * rate + 0.5).astype(int)
    if len(shown) == 1:  # one frame is a still: shown for the length of a pair
        clip = dataclasses.replace(clip, frames=np.repeat(clip.frames, 2, axis=0))
        shown = np.repeat(shown, 2)
    request = Request(asked.question, asked.prompt, clip.frames, {"fps": rate, "frames_indices": shown})
    for stream in dense:
        request = dataclasses.replace(
            request, dense_frames=stream.frames, dense_times=stream.times_s, frames_at=file.frames_at
        )
    return request, clip


def _searched(
    model: Reader, video: str | os.PathLike[str], asked: Asked, part: Interval, keep_bytes: int
) -> tuple[Request, Clip]:
    settings, told = model.settings, asked.progress
    most_s = SQUEEZED * settings.clip_s if settings.clock == "window" else settings.whole_s
    found = search(model, video, asked.question, part=part, most_s=most_s, budget=asked.budget, progress=told)
    return _read(model, video, asked, found, keep_bytes)


def _read(
    model: Reader,
    video: str | os.PathLike[str],
    asked: Asked,
    found: Found,
    keep_bytes: int,
    before: Search | None = None,
) -> tuple[Request, Clip]:
    """Returns what a search found, read closely, with what reads on."""
    request, clip = read_found(
        model,
        video,
        asked.question,
        asked.prompt,
        found,
        rate=asked.part.fps,
        most_frames=asked.max_frames,
        keep_bytes=keep_bytes,
        before=before,
        progress=asked.progress,
    )

    def further(times: Sequence[float]) -> tuple[Request, Clip] | None:
        rest = found.without(times, request.search.passes[-1].decoded)
        return _read(model, video, asked, rest, keep_bytes, request.search) if rest.windows else None

    return dataclasses.replace(request, further=further), clip
