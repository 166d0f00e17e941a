"""What a search found in a long video, read closely: a `Request` of windows, or of frames from all over."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from o3jax.grounding import Interval, join
from o3jax.inference.coarse import Loaded
from o3jax.inference.respond import Request
from o3jax.inference.search import Found, decoding, passes_of
from o3jax.inputs.dense import FramesAt, dense_size, dense_wanted
from o3jax.inputs.image import resize_video
from o3jax.notes import Note
from o3jax.prompts.clock import Clock
from o3jax.searched import Event, Pass, Progress, Search
from o3jax.video import Clip, VideoError, Wanted

_UNIFORM = 64  # frames of a uniform reading, at most


@dataclasses.dataclass(frozen=True)
class _Part:
    """Frames that were read of a long video; times are the video's."""

    window: Interval | None  # None: they are from all over it
    clip: Clip  # for the language stream
    dense_frames: UInt8[np.ndarray, "n h w 3"]
    dense_times: Float[np.ndarray, " n"]
    frames_at: FramesAt


def read_found(
    model: Loaded,
    video: str | os.PathLike[str],
    question: str,
    prompt: str,
    found: Found,
    *,
    rate: float,
    most_frames: int | None = None,
    keep_bytes: int,
    before: Search | None = None,
    progress: Progress | None = None,
) -> tuple[Request, Clip]:
    """Returns a question with what a search found, read closely, and the frames that were read.

    Args:
        rate: frames per second at which the video is presented.
        most_frames: of the language stream.
        keep_bytes: decoded frames of up to this size in all are kept for reading boxes.
        before: what was read closely already, and was not what is asked for.

    Raises:
        VideoError: if nothing of the video can be decoded.
    """
    seen, why, clock = found.features, found.why, None
    lost = {*seen.lost, *(before.lost if before else ())}
    pace, parts = _pace(model, found.windows), []
    shown = _shown(model, found.windows, rate, pace, most_frames)
    for window, times in zip(found.windows, shown, strict=True):
        if progress is not None:
            progress(Event("fine", window[0], seen.duration_s))
        try:
            parts.append(_window(model, video, window, times, pace, keep_bytes // len(found.windows)))
        except VideoError:  # nothing there can be decoded
            lost.add(window[0])
    if found.windows and not parts:
        why = Note("searched lost", len(found.windows))
    windows = tuple(part.window for part in parts)
    if not parts:
        parts.append(_stills(model, video, found, rate, most_frames))
        pace = _pace(model, [found.part])
    if model.settings.clock == "window":
        clock = Clock.of_windows(windows or [found.part], pace)
    read = sum(len(part.clip.times_s) + len(part.dense_times) for part in parts)
    span = sum(end - start for start, end in windows or [found.part])
    closely = Pass(
        name="fine" if windows else "uniform",
        every_s=round(span / sum(len(part.clip.times_s) for part in parts), 3),
        read=read,
        decoded=sum(part.clip.decoded_frames for part in parts),
        intervals=windows,
    )
    searched = Search(
        passes=(*(before.passes if before else passes_of(found)), closely),
        intervals=tuple(join([*(before.intervals if before else ()), *windows])),
        uniform=not windows,
        why=why,
        frames=seen.frames,
        budget=found.budget,
        lost=tuple(sorted(lost)),
        unread=found.unread,
        cached=seen.cached,
        relevance=tuple(zip(seen.times_s.tolist(), found.relevance.tolist(), strict=True)),
    )
    clip = _joined(parts, found, bool(lost))
    dense_times = np.concatenate([part.dense_times for part in parts])
    request = Request(
        question,
        prompt,
        clip.frames,
        {"fps": rate, "frames_indices": np.floor(clip.times_s * rate + 0.5).astype(int)},
        np.concatenate([part.dense_frames for part in parts]),
        dense_times,
        _frames_at(parts),
        clock,
        searched,
    )
    return request, clip


def _pace(model: Loaded, windows: Sequence[Interval]) -> float:
    """Returns how much faster a model of another clock is shown windows: as what it was trained on lasts."""
    span = sum(end - start for start, end in windows)
    return max(1.0, span / model.settings.clip_s) if model.settings.clock == "window" else 1.0


def _shown(
    model: Loaded, windows: Sequence[Interval], rate: float, pace: float, most: int | None
) -> list[Float[np.ndarray, " n"]]:
    """Returns when the frames of the language stream are, by window: HF's sample of all as one clip.

    Where there are several windows, each gets whole pairs of frames.
    """
    counts = [max(1, int((end - start) / pace * rate + 1e-6)) for start, end in windows]
    if not counts:
        return []
    sample = model.processor.sample_indices(sum(counts), rate)
    if most is not None and len(sample) > most:
        sample = sample[np.linspace(0, len(sample) - 1, most).round().astype(int)]
    if len(windows) == 1:
        return [windows[0][0] + sample * pace / rate]
    times, pair = [], model.processor.video_config.temporal_patch_size
    for (start, _), count, end in zip(windows, counts, np.cumsum(counts), strict=True):
        inside = int(((sample >= end - count) & (sample < end)).sum())
        number = max(pair, -(-inside // pair) * pair)
        times.append(start + np.linspace(0, count - 1, number).round() * pace / rate)
    return times


def _window(
    model: Loaded,
    video: str | os.PathLike[str],
    window: Interval,
    times: np.ndarray,
    pace: float,
    keep_bytes: int,
) -> _Part:
    """Returns what a window shows.

    Raises:
        VideoError: if nothing of it can be decoded.
    """
    pair, factor = model.processor.video_config.temporal_patch_size, model.processor.video_config.factor
    with model.open_video(video, "auto", keep_bytes=keep_bytes, measure=False) as file:
        dense = dense_wanted(file.info(), model.backbone.config.evidence, factor)
        seconds = np.arange(window[0], window[1] - 1e-6, pace / dense.fps)
        clip, small = file.read(Wanted(times_s=times), dataclasses.replace(dense, times_s=seconds))
    whole = max(pair, len(small.times_s) // pair * pair)  # no pair of frames of two windows
    return _Part(window, clip, small.frames[:whole], small.times_s[:whole], file.frames_at)


def _stills(
    model: Loaded, video: str | os.PathLike[str], found: Found, rate: float, most: int | None
) -> _Part:
    """Returns frames from all over the video, of those that were looked at from afar.

    Raises:
        VideoError: if none can be decoded.
    """
    seen, video_config = found.features, model.processor.video_config
    count = len(model.processor.sample_indices(max(1, int(model.settings.clip_s * rate)), rate))
    count, (start, end) = min(count, most or _UNIFORM, _UNIFORM), found.part
    # Evenly, if that is paid for; else those that were looked at from afar.
    times = start + (end - start) * (np.arange(count) + 0.5) / count
    chosen = np.linspace(0, len(seen.times_s) - 1, min(count, len(seen.times_s))).round().astype(int)
    with model.open_sparse(video) as reader:
        if not reader.forward and decoding(reader.cues, times) > found.left:
            times = seen.times_s[chosen]
        stills = list(reader.frames(times, reader.size))
        if not stills:
            raise VideoError(f"{video}: no frame could be decoded; it is damaged.")
        frames, times = np.stack([s.picture for s in stills]), np.array([s.time_s for s in stills])
        clip = Clip(
            frames=frames,
            times_s=times,
            duration_s=seen.duration_s,
            duration_measured=False,
            source_fps=reader.cues.rate,
            size=reader.size,
            status="complete",
            notes=reader.notes(),
            decoded_frames=reader.decoded,
        )
    size = dense_size(*clip.size, model.backbone.config.evidence, video_config.factor)
    pair = video_config.temporal_patch_size  # each frame is a pair with itself, as from afar

    def frames_at(wanted: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
        return frames[np.searchsorted(times, wanted)], wanted

    dense = np.repeat(resize_video(frames, size), pair, axis=0)
    return _Part(None, clip, dense, np.repeat(times, pair), frames_at)


def _joined(parts: Sequence[_Part], found: Found, is_partial: bool) -> Clip:
    """Returns the frames of the parts as one clip, which says of the whole video what is known."""
    clips = [part.clip for part in parts]
    notes = dict.fromkeys([*found.features.notes, *(note for clip in clips for note in clip.notes)])
    partial = is_partial or any(clip.status == "partial" for clip in clips)
    return dataclasses.replace(
        clips[0],
        frames=np.concatenate([clip.frames for clip in clips]),
        times_s=np.concatenate([clip.times_s for clip in clips]),
        duration_s=found.features.duration_s,
        status="partial" if partial else "complete",
        notes=tuple(notes),
        decoded_frames=sum(clip.decoded_frames for clip in clips),
    )


def _frames_at(parts: Sequence[_Part]) -> FramesAt:
    """Returns what reads frames at times of the dense stream, each from its part."""
    starts = [part.dense_times[0] for part in parts]

    def frames_at(wanted: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
        of_part = np.searchsorted(starts, wanted, side="right") - 1
        found = []
        for number in np.unique(of_part):
            try:
                found.append(parts[number].frames_at(wanted[of_part == number]))
            except VideoError:  # lost: the others serve
                continue
        if not found:
            raise VideoError("no frame can be shown where the evidence is; the file is damaged there.")
        frames, times = zip(*found, strict=True)
        return np.concatenate(frames), np.concatenate(times)

    return frames_at
