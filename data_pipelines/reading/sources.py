"""Where the frames of a clip come from: a video file, a picture file, or what else can say and show the same.

A source is plain data, so that it may go to a worker process. Files are read through a `Reader`, such as a
`GuardedReader` in a process that may die, or a cache before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines.reading.guarded import inside, read_image
from o3jax.errors import UserError
from o3jax.inputs.image import resize_image, resize_video
from o3jax.video import VideoError, VideoInfo, probe, read_video

Frames = UInt8[np.ndarray, "n h w 3"]
Times = Float[np.ndarray, " n"]


class Reader(Protocol):
    """Runs a function that decodes."""

    def run(self, function: Any, /, *args: Any, **kwargs: Any) -> Any: ...


class Source(Protocol):
    """What a clip is about, and what it looks like. Errors are `UserError`s, mostly `VideoError`s.

    Attributes:
      kind: which of the model's inputs it is.
    """

    kind: ClassVar[Literal["video", "image"]]

    def info(self) -> VideoInfo:
        """Returns what is known before anything is decoded; a picture lasts 0 s and has no rate."""

    def frames_at(self, times_s: Times, size: tuple[int, int], reader: Reader) -> Frames:
        """Returns the frames shown at the times, resized to (height, width) as HF's processor does it."""

    def stream(self, fps: float, size: tuple[int, int], reader: Reader) -> tuple[Frames, Times]:
        """Returns all frames at a constant rate, decoded at their small size, and their times."""

    def key_frame(self, time_s: float, picture: str, size: tuple[int, int], reader: Reader) -> Frames:
        """Returns one annotated frame [1, h, w, 3], resized; `picture` names its file in the data set."""

    def files(self, pictures: Sequence[str] = ()) -> list[Path]:
        """Returns the files that it is made of, with the named pictures of key frames."""


@dataclasses.dataclass(frozen=True)
class VideoSource:
    """A video file.

    Attributes:
      known: what `probe` said of it, where that is known already.
      root: the data set's folder, which the pictures of key frames are in.
    """

    kind = "video"
    path: Path
    known: VideoInfo | None = None
    root: Path | None = None

    def info(self) -> VideoInfo:
        return self.known or probe(self.path)

    def frames_at(self, times_s: Times, size: tuple[int, int], reader: Reader) -> Frames:
        (frames,) = reader.run(read_frames_at, self.path, times_s, size)
        return frames

    def stream(self, fps: float, size: tuple[int, int], reader: Reader) -> tuple[Frames, Times]:
        return reader.run(read_stream, self.path, fps, size)

    def key_frame(self, time_s: float, picture: str, size: tuple[int, int], reader: Reader) -> Frames:
        (frame,) = reader.run(read_picture, self._inside(picture), size)
        return frame[None]

    def files(self, pictures: Sequence[str] = ()) -> list[Path]:
        return [self.path, *map(self._inside, pictures)]

    def _inside(self, picture: str) -> Path:
        if self.root is None:
            raise UserError(f"the picture {picture} of a key frame needs the data set's folder; name it")
        return inside(self.root, picture)


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """A picture file, which shows the same at any time; `size` is (width, height) in pixels."""

    kind = "image"
    path: Path
    size: tuple[int, int] | None

    def info(self) -> VideoInfo:
        if self.size is None:
            raise UserError(f"the size of {self.path} is not told; add image_size to the record")
        width, height = self.size
        return VideoInfo(0.0, None, 1, width, height, codec="", rotation=0)

    def frames_at(self, times_s: Times, size: tuple[int, int], reader: Reader) -> Frames:
        (picture,) = reader.run(read_picture, self.path, size)
        return np.repeat(picture[None], len(times_s), axis=0)

    def stream(self, fps: float, size: tuple[int, int], reader: Reader) -> tuple[Frames, Times]:
        times = np.zeros(1)
        return self.frames_at(times, size, reader), times

    def key_frame(self, time_s: float, picture: str, size: tuple[int, int], reader: Reader) -> Frames:
        return self.frames_at(np.zeros(1), size, reader)

    def files(self, pictures: Sequence[str] = ()) -> list[Path]:
        return [self.path]


# What a reader runs, perhaps in a process of its own: the first argument is the file, and the result is a
# tuple of arrays, so that it can be cached.


def read_frames_at(path: Path, times_s: Times, size: tuple[int, int]) -> tuple[Frames]:
    """Returns the frames that a video shows at the times, resized as Hugging Face's processor does it.

    Raises:
        VideoError: if the file cannot be read, or not at all of the times.
    """
    frames = read_video(path, times_s=times_s).frames
    if len(frames) < len(times_s):
        raise VideoError(f"{path}: only {len(frames)} of {len(times_s)} frames can be shown.")
    return (resize_video(frames, size),)


def read_stream(path: Path, fps: float, size: tuple[int, int]) -> tuple[Frames, Times]:
    """Returns all frames of a video at a constant rate, decoded at their small size, and their times."""
    clip = read_video(path, fps, size=size, threads="auto")
    return clip.frames, clip.times_s


def read_picture(path: Path, size: tuple[int, int]) -> tuple[UInt8[np.ndarray, "h w 3"]]:
    """Returns a picture file, resized."""
    return (resize_image(read_image(path), size),)
