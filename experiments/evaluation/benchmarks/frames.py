"""Which frames of a video a published run shows: its rule put to a video, and in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from data_pipelines.formats.benchmarks.item import Frames
from data_pipelines.rows.frames import FramesConfig, sample_indices
from o3jax.inference.respond import Request
from o3jax.inputs.image import VideoConfig, image_size, video_size
from o3jax.video import probe, read_video


def chosen_indices(rule: Frames, total: int, fps: float) -> Int[np.ndarray, " n"]:
    """Returns which of `total` frames at a rate are shown, in order."""
    if rule.sampling == "rate":
        asked = FramesConfig(fps=rule.fps, min_frames=rule.least, max_frames=rule.most)
        return sample_indices(total, fps, asked)
    if rule.sampling == "seconds" and int(total / fps) <= rule.most:
        return np.arange(0, total, max(int(fps), 1))[: rule.most]
    if rule.sampling == "inner":
        return np.unique([int(step * total / (rule.most + 1)) for step in range(1, rule.most + 1)])
    return np.unique(np.linspace(0, total - 1, rule.most, dtype=int))


def shown_size(rule: Frames, count: int, height: int, width: int, own: VideoConfig) -> tuple[int, int]:
    """Returns the (height, width) of each of `count` frames, multiples of the factor of the model's rules."""
    if rule.height is not None:
        factor = own.factor
        return rule.height, max(round(width * rule.height / height) // factor, 1) * factor
    if rule.pixels is None:
        return video_size(count, height, width, own)
    least, most = rule.pixels
    most = max(min(most, int(2 * rule.all_pixels / count)), int(1.05 * least))
    return image_size(height, width, dataclasses.replace(own, min_pixels=least, max_pixels=most))


def video_rules(own: VideoConfig, most: int | str | None, rule: Frames | None) -> VideoConfig:
    """Returns a model's rules with so many frames at most; or such as leave frames of a published size so."""
    if isinstance(most, int):
        return dataclasses.replace(own, max_frames=most, min_frames=min(own.min_frames, most))
    if rule is not None and (rule.height or rule.pixels):
        return dataclasses.replace(own, min_pixels=1, max_pixels=2**40, cap_pixels_per_frame=False)
    return own


def read_shown(rule: Frames, base: Request, path: Path, own: VideoConfig) -> Request:
    """Returns a request about the frames of a rule, which are counted at the file's own rate."""
    info = probe(path)
    fps = info.fps or base.metadata["fps"]
    indices = chosen_indices(rule, max(round(info.duration_s * fps), 1), fps)
    if len(indices) == 1:
        indices = np.repeat(indices, 2)  # a still, for the length of a pair
    size = shown_size(rule, len(indices), info.height, info.width, own)
    # In the middle of each frame's time, so that rounding does not give its neighbour.
    clip = read_video(path, times_s=(indices + 0.5) / fps, size=size, threads="auto")
    read = np.floor(clip.times_s * fps).astype(int)
    return dataclasses.replace(base, frames=clip.frames, metadata={"fps": fps, "frames_indices": read})


def in_words(frames: Mapping[str, Any]) -> str:
    """Returns what a run's file holds of its frames, for a table."""
    rule = frames.get("published")
    if rule is None:
        own = f"{frames['fps']:g} a second, {frames['least']} to {frames['most']}" if frames["fps"] else "all"
        return f"{own}{' (none are published)' * ('published' in frames)}"
    counted = {
        "rate": f"{rule['fps']:g} a second, {rule['least']} to {rule['most']}",
        "seconds": f"1 a second, {rule['most']} at most",
    }.get(rule["sampling"], str(rule["most"]))
    return f"as published, {counted}{' of height {height}'.format(**rule) * (rule['height'] is not None)}"
