"""Clips of the synthetic world that differ from what a model was trained on, and the questions about them.

none      as they are
removed   three of four frames at random are missing: the one before is shown on, as in a file without them
rate      a camera of 10 frames per second
noise     strong noise on every frame
unseen    six other colours, and two other shapes
hidden    the object that answers is not there; what was true of the whole clip still counts as right
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.synthetic import drawing
from data_pipelines.synthetic.datasets import write_video
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import FPS, Object, Scene, make_scene, scene_seed
from experiments.evaluation.scores import Question

SHIFTS = ("none", "removed", "rate", "noise", "unseen", "hidden")
QUESTIONS_PER_CLIP = 2

_KEPT = 0.25  # of the frames, where some are removed
_NOISE = 30.0  # standard deviation, grey levels
_RATE = 10
_COLORS = {
    "red": ("pink", (250, 135, 185)),
    "green": ("white", (245, 245, 245)),
    "blue": ("brown", (105, 62, 28)),
    "yellow": ("turquoise", (60, 215, 205)),
    "purple": ("black", (15, 15, 18)),
    "orange": ("gold", (175, 150, 60)),
}
_SHAPES = {"star": "diamond", "square": "cross"}


@dataclasses.dataclass(frozen=True)
class Changed:
    """A scene whose frames are changed; what else is asked of it, the scene answers."""

    scene: Scene
    shift: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scene, name)

    def render(self, times_s: Sequence[float]) -> np.ndarray:
        times = np.asarray(times_s, np.float64)
        if self.shift == "removed":
            kept = np.random.default_rng(self.scene.seed).random(self.scene.frame_count + 1) < _KEPT
            kept[0] = True
            last = np.maximum.accumulate(np.where(kept, np.arange(len(kept)), 0))
            times = last[np.floor(times * FPS + 1e-6).astype(int)] / FPS
        frames = self.scene.render(times)
        if self.shift == "noise":
            for time, frame in zip(times.tolist(), frames, strict=True):
                drawing.add_noise(frame, _NOISE, (self.scene.seed, round(time * 1000), 1))
        return frames


def write_clips(
    folder: Path, shift: str, split: str, count: int, level: int, seed: int
) -> list[tuple[Question, Path]]:
    """Returns the first `count` questions of a split with their mp4s, which are written where they are not
    there.

    Args:
        shift: one of `SHIFTS`.
    """
    found: list[tuple[Question, Path]] = []
    for index in range(-(-count // QUESTIONS_PER_CLIP)):
        scene = make_scene(scene_seed(split, index, seed), level, QUESTIONS_PER_CLIP)
        if shift == "unseen":
            scene = dataclasses.replace(scene, objects=tuple(map(_other_look, scene.objects)))
        for number, sample in enumerate(make_samples(scene)):
            question = Question(sample, scene)
            name = f"{scene.id}-{shift}" + (f"-{number}" if shift == "hidden" else "")
            path = folder / f"{name}.mp4"
            if not path.exists():
                shown = without(scene, question) if shift == "hidden" else scene
                folder.mkdir(parents=True, exist_ok=True)
                write_video(Changed(shown, shift), path, fps=_RATE if shift == "rate" else FPS)
            found.append((question, path))
    return found[:count]


def without(scene: Scene, question: Question) -> Scene:
    """Returns the scene without the objects that its question's evidence shows."""
    shown = {question.thing(mention.object) for mention in question.sample.mentions}
    return dataclasses.replace(scene, objects=tuple(o for o in scene.objects if o not in shown))


def _other_look(thing: Object) -> Object:
    color, rgb = _COLORS[thing.color]
    return dataclasses.replace(thing, color=color, rgb=rgb, shape=_SHAPES.get(thing.shape, thing.shape))
