"""What tests read of clips beside rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.reading.sources import VideoSource
from data_pipelines.rows.clips import Clip
from data_pipelines.rows.frames import FramesConfig
from o3jax.inputs.processor import Processor
from o3jax.models.config import EvidenceConfig
from o3jax.video import PRESENTED_FPS, probe


class Here:
    """A reader that decodes in this process."""

    def run(self, function, *args, **kwargs):
        return function(*args, **kwargs)


def filmed(path: Path, **fields: Any) -> VideoSource:
    """Returns a video file that was probed already."""
    return VideoSource(path, probe(path), **fields)


def sampled(clip: Clip, processor: Processor) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns the frames of a scene that the processor samples, as a user would give them to it."""
    times = np.array([frame.time_s for frame in clip.plan(processor, FramesConfig()).frames])
    indices = np.rint(times * PRESENTED_FPS).astype(np.int64)
    return clip.source.scene.render(times), {"fps": PRESENTED_FPS, "frames_indices": indices}


def dense_of(clip: Clip, processor: Processor, c: EvidenceConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns the frames of the dense stream and their times."""
    return clip.dense(c, processor.video_config.factor, Here())
