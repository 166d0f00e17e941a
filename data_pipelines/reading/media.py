"""What a guarded reader's child runs for a clip: file -> frames, resized where they are decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines.reading.guarded import read_image
from o3jax.inputs.image import resize_image, resize_video
from o3jax.video import VideoError, read_video


def read_frames_at(
    path: Path, times_s: Float[np.ndarray, " n"], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "n h w 3"]]:
    """Returns the frames that a video shows at the times, resized as Hugging Face's processor does it.

    Raises:
        VideoError: if the file cannot be read, or not at all of the times.
    """
    frames = read_video(path, times_s=times_s).frames
    if len(frames) < len(times_s):
        raise VideoError(f"{path}: only {len(frames)} of {len(times_s)} frames can be shown.")
    return (resize_video(frames, size),)


def read_stream(
    path: Path, fps: float, size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "n h w 3"], Float[np.ndarray, " n"]]:
    """Returns all frames of a video at a constant rate, decoded at their small size, and their times."""
    clip = read_video(path, fps, size=size, threads="auto")
    return clip.frames, clip.times_s


def read_picture(path: Path, size: tuple[int, int]) -> tuple[UInt8[np.ndarray, "h w 3"]]:
    """Returns a picture file, resized."""
    return (resize_image(read_image(path), size),)
