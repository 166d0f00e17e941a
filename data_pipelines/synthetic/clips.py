"""The synthetic world without files: clips that are rendered when they are read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.reading.sources import Frames, Reader, Times
from data_pipelines.rows.clips import Clip
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import Scene, make_scene, scene_seed
from o3jax.inputs.image import resize_image, resize_video
from o3jax.video import VideoInfo


@dataclasses.dataclass(frozen=True)
class SceneSource:
    """A `Source` that draws; any frame can be asked for, so the pictures of key frames are not needed."""

    kind = "video"
    scene: Scene

    def info(self) -> VideoInfo:
        """Returns what a file of the scene would say."""
        (height, width), fps, count = self.scene.size, float(self.scene.fps), self.scene.frame_count
        return VideoInfo(count / fps, fps, count, width, height, codec="", rotation=0)

    def frames_at(self, times_s: Times, size: tuple[int, int], reader: Reader) -> Frames:
        return resize_video(self.scene.render(times_s), size)

    def stream(self, fps: float, size: tuple[int, int], reader: Reader) -> tuple[Frames, Times]:
        times = np.arange(math.ceil(self.info().duration_s * fps - 1e-6)) / fps
        return np.stack([resize_image(frame, size) for frame in self.scene.render(times)]), times

    def key_frame(self, time_s: float, picture: str, size: tuple[int, int], reader: Reader) -> Frames:
        return self.frames_at(np.array([time_s]), size, reader)

    def files(self, pictures: Sequence[str] = ()) -> list[Path]:
        return []


class SyntheticClips:
    """Clip i of a split of the synthetic world."""

    def __init__(self, split: str, level: int, questions: int, seed: int = 0):
        self.split, self.level, self.questions, self.seed = split, level, questions, seed

    def __len__(self) -> int:
        return 1 << 31

    def __getitem__(self, index: int) -> Clip:
        scene = make_scene(scene_seed(self.split, int(index), self.seed), self.level, self.questions)
        return Clip(tuple(make_samples(scene)), SceneSource(scene), number=int(index))
