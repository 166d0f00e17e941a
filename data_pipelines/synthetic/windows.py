"""Windows of long scenes, as coarse to fine shows them to the model: a few seconds with a clock of their own.

Most hold an event, whole or cut off; some hold nothing, or nothing that is asked for.
"""

from __future__ import annotations

import dataclasses
import itertools
import random

from data_pipelines.rows.clips import Clip
from data_pipelines.synthetic.clips import SceneSource
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import EVENT_GAP, FPS, LEVELS, Scene, make_scene, scene_seed

_EMPTY = 0.15  # of the windows lie anywhere
_LEAST = 30  # frames of what is visible in a window, so that it can be asked about
_TRIES = 1000


def draw_window(scene: Scene, rng: random.Random, seconds: float) -> Scene:
    """Returns a window of a scene, mostly around one of its events, with what can be asked about it."""
    count = min(round(seconds * FPS), scene.frame_count)
    spans = [span for thing in scene.objects for span in thing.spans]
    for _ in range(_TRIES):
        span = rng.choice(spans)
        begin = rng.randint(span.first - count + _LEAST, span.stop - _LEAST)
        if rng.random() < _EMPTY:
            begin = rng.randint(0, scene.frame_count - count)
        window = scene.window(min(max(begin, 0), scene.frame_count - count), count)
        if all(s.stop - s.first >= _LEAST for thing in window.objects for s in thing.spans):
            return dataclasses.replace(window, kinds=_kinds(window))
    raise ValueError(f"no window of {seconds} s in scene {scene.id}")


def _kinds(window: Scene) -> tuple[str, ...]:
    """Returns which questions have one answer in a window, where several things may be cut off at once."""
    if not window.objects:
        return ("never",)
    plain = ("interval", "appears", "where", "never")
    spans = [span for thing in window.objects for span in thing.spans]
    for side in ("first", "stop"):
        events = sorted(getattr(span, side) for span in spans)
        if any(b - a < EVENT_GAP for a, b in itertools.pairwise(events)):
            return plain
    if len(window.objects) < 2:
        return plain
    return tuple(dict.fromkeys((*LEVELS[window.level].kinds, "never")))


class SyntheticWindows:
    """Clip i of a split: a window of a scene of a level, with some questions about it."""

    def __init__(
        self,
        split: str,
        level: int,
        seconds: tuple[float, float],
        questions: int,
        seed: int,
        size: int = 1 << 31,
    ):
        self.split, self.level, self.seconds = split, level, seconds
        self.questions, self.seed, self.size = questions, seed, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Clip:
        seed = scene_seed(self.split, int(index), self.seed)
        rng = random.Random(f"window/{seed}")
        window = draw_window(make_scene(seed, self.level), rng, rng.uniform(*self.seconds))
        kinds = rng.sample(window.kinds, min(self.questions, len(window.kinds)))
        scene = dataclasses.replace(window, kinds=tuple(kinds))
        return Clip(tuple(make_samples(scene)), SceneSource(scene), number=int(index))
