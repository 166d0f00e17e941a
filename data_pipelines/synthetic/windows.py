"""What coarse to fine shows of long scenes: seconds around events, shown faster, with a clock of their own.

o3-tiny knows clips of some 6 s. So a longer window is shown as a film of 6 s (`Scene.lapse`), and several
windows one after the other. Most hold an event, whole or cut off; some nothing, or nothing that is asked for.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

from data_pipelines.rows.clips import Clip
from data_pipelines.synthetic.clips import SceneSource
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import EVENT_GAP, FPS, LEVELS, Scene, make_scene, scene_seed

SHOWN_S = 6.0  # seconds that windows last on the model's clock, if they are not shorter anyway
MIXTURE = {1: 0.4, 2: 0.25, 3: 0.15, 4: 0.2}  # how often a clip is of each level
_FASTEST = {3: 2.0, 4: 4.0}  # times as fast as the scene
_EMPTY = 0.15  # of the windows lie anywhere
_SEVERAL = 0.4  # of those of level 4 are several
_NEVER = 0.15  # of the clips of short levels are asked for something that is not there
_LEAST = 30  # frames of what is visible in a window, so that it can be asked about,
_LEAST_SHOWN = 15  # and of the film of it
_TRIES = 1000


class LevelClips:
    """Clip i of a split: one of the levels up to `levels`, of the long ones a film of some windows."""

    def __init__(self, split: str, levels: int, questions: int, seed: int):
        self.split, self.levels, self.questions, self.seed = split, levels, questions, seed

    def __len__(self) -> int:
        return 1 << 31

    def __getitem__(self, index: int) -> Clip:
        seed = scene_seed(self.split, int(index), self.seed)
        rng = random.Random(f"levels/{seed}")
        level = rng.choices(range(1, self.levels + 1), list(MIXTURE.values())[: self.levels])[0]
        scene = make_scene(seed, level, min(self.questions, len(LEVELS[level].kinds)))
        if level in _FASTEST:
            scene = draw_film(scene, rng)
            kinds = rng.sample(scene.kinds, min(self.questions, len(scene.kinds)))
            scene = dataclasses.replace(scene, kinds=tuple(kinds))
        elif rng.random() < _NEVER:
            scene = dataclasses.replace(scene, kinds=(*scene.kinds[1:], "never"))
        return Clip(tuple(make_samples(scene)), SceneSource(scene), number=int(index))


def draw_film(scene: Scene, rng: random.Random) -> Scene:
    """Returns a film of `SHOWN_S` of one or more windows of a long scene, with what can be asked about it."""
    speed = rng.uniform(1.0, _FASTEST[scene.level])
    parts = rng.choice((2, 3)) if scene.level == 4 and rng.random() < _SEVERAL else 1
    seconds = SHOWN_S * speed / parts
    windows = [draw_window(scene, rng, seconds, speed)]
    while len(windows) < parts:
        more = draw_window(scene, rng, seconds, speed)
        if not any(_overlap(more, one) for one in windows):
            windows.append(more)
    film = _one_after_the_other(sorted(windows, key=lambda one: one.begin)).lapse(speed)
    return dataclasses.replace(film, kinds=_kinds(film))


def draw_window(scene: Scene, rng: random.Random, seconds: float, speed: float = 1.0) -> Scene:
    """Returns a window of a scene, mostly around one of its events.

    Args:
        speed: at which it will be shown; what is seen of an object is long enough to be asked about.
    """
    count = min(round(seconds * FPS), scene.frame_count)
    least = max(_LEAST, math.ceil(_LEAST_SHOWN * speed)) if speed > 1 else _LEAST
    spans = [span for thing in scene.objects for span in thing.spans]
    for _ in range(_TRIES):
        span = rng.choice(spans)
        begin = rng.randint(*sorted((span.first - count + least, span.stop - least)))
        if rng.random() < _EMPTY:
            begin = rng.randint(0, scene.frame_count - count)
        window = scene.window(min(max(begin, 0), scene.frame_count - count), count)
        if all(s.stop - s.first >= least for thing in window.objects for s in thing.spans):
            return dataclasses.replace(window, kinds=_kinds(window))
    raise ValueError(f"no window of {seconds} s in scene {scene.id}")


def _overlap(one: Scene, other: Scene) -> bool:
    """Returns whether two windows share frames, or an object, which would be cut by what is left out."""
    shared = {thing.name("en") for thing in one.objects} & {thing.name("en") for thing in other.objects}
    return bool(shared) or abs(one.begin - other.begin) < one.frame_count


def _one_after_the_other(windows: list[Scene]) -> Scene:
    """Returns windows of one scene as a scene; several only of a world at rest, with other objects each."""
    first, *others = windows
    objects, frames = list(first.objects), first.frame_count
    for window in others:
        for thing in window.objects:
            spans = tuple(
                dataclasses.replace(span, first=span.first + frames, stop=span.stop + frames)
                for span in thing.spans
            )
            objects.append(dataclasses.replace(thing, spans=spans))
        frames += window.frame_count
    return dataclasses.replace(first, objects=tuple(objects), duration=frames / FPS)


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
