"""The video that a page embeds: the file, a reduced copy, or what surrounds the evidence of a long one."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from o3jax.grounding import Interval, join
from o3jax.report import annotate
from o3jax.report.answer import Answer
from o3jax.video import OpenVideo

VIDEO_BYTES = 15 * 2**20  # of the embedded video; base64 makes 20 MiB of it
# (least bits per second, longest side, frames per second) of a reduced copy; the first that fits is taken
_COPIES = ((500_000, 854, 25.0), (150_000, 480, 12.5), (0, 320, 5.0))
_AROUND_S = 3.0  # that is shown before and after a piece of evidence
_APART_S = 2.0  # of two pieces that are shown as one
_PIECES_S = 120.0  # of a long video, in all


@dataclasses.dataclass(frozen=True)
class Embedded:
    """An mp4 and what it is."""

    data: bytes
    said: str  # the sentence about it
    gaps: tuple[Interval, ...] = ()  # seconds where the file is damaged
    pieces: tuple[tuple[float, float, float], ...] = ()  # (start, end, where in the mp4); none: all of it


def embed(
    answer: Answer,
    video_path: str | os.PathLike[str],
    size: tuple[int, int],
    duration_s: float,
    texts: dict[str, Any],
) -> Embedded:
    """Returns the mp4 that a page about an answer embeds.

    Args:
        size: width and height of the video.
        texts: what the page says, in its language.
    """
    whole = answer.video.get("status") != "partial"
    is_small = os.path.getsize(video_path) <= VIDEO_BYTES
    if whole and is_small and _plays_as_it_is(video_path):
        return Embedded(Path(video_path).read_bytes(), texts["original"])
    parts = pieces(answer, duration_s) if answer.search else []
    length_s = sum(end - start for start, end in parts) or duration_s
    rate = min(2_000_000, 0.9 * VIDEO_BYTES * 8 / length_s)
    side, fps = next((side, fps) for least, side, fps in _COPIES if rate >= least)
    width, height = annotate.display_size(*size, smallest=0, largest=min(side, max(size)))
    options = {"crf": "25", "maxrate": f"{rate:.0f}", "bufsize": f"{rate:.0f}"}
    gaps: list[Interval] = []
    starts: list[int] = []  # frames of the copy before each part
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.mp4"
        with annotate.Mp4Writer(copy, fps, width, height, options) as writer:
            for part, time_s, frame, held in _frames(video_path, parts, fps, width, height):
                if part == len(starts):
                    starts.append(count)
                if held:
                    frame = annotate.marked_held(frame, answer.language)
                    begin = gaps.pop()[0] if gaps and gaps[-1][1] >= time_s - 1e-6 else time_s
                    gaps.append((begin, time_s + 1 / fps))
                writer.write(frame)
                count += 1
        data = copy.read_bytes()
    about = {"width": width, "height": height, "fps": fps}
    if parts:
        placed = [(*part, begin / fps) for part, begin in zip(parts, starts, strict=False)]
        return Embedded(data, texts["excerpts"].format(seconds=length_s, **about), tuple(gaps), tuple(placed))
    why = texts["large" if not is_small else "damaged" if gaps or not whole else "unplayed"]
    return Embedded(data, texts["copy"].format(why=why, **about), tuple(gaps))


def pieces(answer: Answer, duration_s: float) -> list[Interval]:
    """Returns what a page shows of a long video: around its evidence and what the answer names, in order.

    Without any, what was read closely, or the video's start. Never more than two minutes in all.
    """
    named = [(item.time_s, item.time_s) for item in answer.evidence]
    named += [(item.text.time_s, item.text.time_s) for item in answer.evidence if item.text]
    named += [
        interval for interval in (*(i.interval for i in answer.evidence), *answer.intervals) if interval
    ]
    found: list[Interval] = []
    for start, end in [*named, *answer.search.intervals] or [(0.0, 0.0)]:
        start, end = max(0.0, start - _AROUND_S), min(duration_s, end + _AROUND_S)
        end = min(end, start + _PIECES_S)
        joined = join([*found, (start, end)], _APART_S)
        if start < end and sum(b - a for a, b in joined) <= _PIECES_S:
            found = joined
    return [(float(np.floor(a)), float(min(np.ceil(b), duration_s))) for a, b in found]


def _frames(
    video_path: str | os.PathLike[str], parts: list[Interval], fps: float, width: int, height: int
) -> Iterator[tuple[int, float, np.ndarray, bool]]:
    """Yields (number of the part, seconds, frame, whether it is held); without parts the whole video's."""
    if not parts:
        for time_s, frame, held in annotate.frames(video_path, fps, width, height):
            yield 0, time_s, frame, held
        return
    with OpenVideo(video_path, "auto") as video:
        for number, (start, end) in enumerate(parts):
            for time_s, frame, held in video.at_rate(fps, (height, width), start, end):
                yield number, time_s, frame, held


def _plays_as_it_is(video_path: str | os.PathLike[str]) -> bool:
    """Whether a browser shows the file as the video reader does: H.264 in mp4, upright, starting at zero."""
    try:
        # The format is named, so that nothing but an mp4 is opened; the reader has checked the file before.
        with av.open(os.path.abspath(video_path), format="mp4") as container:
            stream = container.streams.video[0]
            return (
                stream.codec_context.name == "h264"
                and stream.codec_context.pix_fmt == "yuv420p"
                and not stream.start_time
                and next(container.decode(stream)).side_data.get("DISPLAYMATRIX") is None
                and stream.sample_aspect_ratio in (None, 0, 1)
            )
    except (av.FFmpegError, IndexError, StopIteration):
        return False
