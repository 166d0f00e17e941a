"""Clips: the questions about one video or image, and where it comes from."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines.formats.index import Index
from data_pipelines.formats.sample import Sample
from data_pipelines.reading.frame_cache import CachedReader
from data_pipelines.reading.guarded import GuardedReader, inside
from data_pipelines.reading.media import read_picture, read_stream
from data_pipelines.rows.frames import FramesConfig, plan_frames
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import FPS, Scene, make_scene, scene_seed
from data_pipelines.video import read_video
from o3jax.inputs.dense import dense_rate, dense_size
from o3jax.inputs.image import resize_image
from o3jax.inputs.processor import Processor
from o3jax.models.config import EvidenceConfig
from o3jax.video import VideoInfo, probe


@dataclasses.dataclass(frozen=True)
class Clip:
    """Questions about one video or image, and where it comes from: a file, or a scene to render."""

    samples: tuple[Sample, ...]
    video: Path | Scene
    pairs: tuple[int, ...] | None = None  # of the sampled frame pairs, only these
    info: VideoInfo | None = None  # of a video file, where it is known already
    number: int = 0  # in its data set
    root: Path | None = None  # the data set's folder, which pictures of key frames are in

    @property
    def is_image(self) -> bool:
        return any(sample.image_path is not None for sample in self.samples)

    def about(self) -> Scene | VideoInfo | None:
        """Returns what is known of the video before it is read; None for an image."""
        if isinstance(self.video, Scene):
            return self.video
        return None if self.is_image else self.info or probe(self.video)

    def frames(self, processor: Processor) -> tuple[UInt8[np.ndarray, "T H W 3"], dict[str, Any]]:
        """Returns the frames that the processor samples of the video, and their metadata."""
        plan = plan_frames(self.samples, self.about(), processor, FramesConfig(), pairs=self.pairs)
        times = np.array([frame.time_s for frame in plan.frames])
        scene = isinstance(self.video, Scene)
        frames = self.video.render(times) if scene else read_video(self.video, times_s=times).frames
        return frames, {"fps": FPS, "frames_indices": np.rint(times * FPS).astype(np.int64)}

    def dense_plan(self, c: EvidenceConfig, factor: int) -> tuple[Float[np.ndarray, " n"], tuple[int, int]]:
        """Returns the times of the dense stream's frames and their (height, width); an image is one frame."""
        if self.is_image:
            width, height = self.samples[0].image_size
            return np.zeros(1), dense_size(height, width, c, factor)
        about = self.about()
        scene = isinstance(about, Scene)
        native, (height, width) = (FPS, about.size) if scene else (about.fps, (about.height, about.width))
        rate = dense_rate(native or c.dense_fps, c)
        duration = about.frame_count / FPS if scene else about.duration_s
        count = max(1, math.ceil(duration * rate - 1e-6))
        return np.arange(count) / rate, dense_size(height, width, c, factor)

    def dense(
        self, processor: Processor, c: EvidenceConfig, reader: GuardedReader | CachedReader | None = None
    ) -> tuple[UInt8[np.ndarray, "n h w 3"], Float[np.ndarray, " n"]]:
        """Returns all frames of the dense stream, small, and their times in seconds."""
        times, size = self.dense_plan(c, processor.video_config.factor)
        run = reader.run if reader else _call
        if isinstance(self.video, Scene):
            return np.stack([resize_image(frame, size) for frame in self.video.render(times)]), times
        if self.is_image:
            (picture,) = run(read_picture, self.video, size)
            return picture[None], times
        frames, shown = run(read_stream, self.video, dense_rate(self.about().fps or c.dense_fps, c), size)
        return frames[: len(times)], shown[: len(times)]


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


class SyntheticClips:
    """The synthetic world without files: clip i of a split is rendered when it is read."""

    def __init__(self, split: str, level: int, questions: int, seed: int = 0, size: int = 1 << 31):
        self.split, self.level, self.questions, self.seed, self.size = split, level, questions, seed, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Clip:
        scene = make_scene(scene_seed(self.split, int(index), self.seed), self.level, self.questions)
        return Clip(tuple(make_samples(scene)), scene, number=int(index))


class FolderClips:
    """The clips of a data set that `index.read_index` read.

    Questions of one task about one video or image share a clip, up to `questions` of them.
    """

    def __init__(self, index: Index, questions: int):
        grouped: dict[tuple[str, str], list[Sample]] = {}
        for sample in index.samples:
            grouped.setdefault((sample.video_path or sample.image_path, sample.task), []).append(sample)
        self.clips: list[Clip] = []
        for (path, _), together in grouped.items():
            file, info = inside(index.root, path), index.media.get(path)
            for at in range(0, len(together), questions):
                some = tuple(together[at : at + questions])
                self.clips.append(Clip(some, file, info=info, number=len(self.clips), root=index.root))

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        return self.clips[int(index)]
