"""The synthetic world: coloured shapes that appear, move and vanish, annotated exactly.

A `Scene` follows from one integer seed. Level 1 is fixed, so that figures mean something; level 2
adds size change, a passing occluder, camera drift, distractors, counting and multiple choice;
level 3 adds 30-90 s clips, objects that come back, small objects, noise and strong compression. Level 4
looks like level 1 but lasts an hour, empty but for a few events of 3-20 s, among them such that share the
asked object's colour or shape; and some questions ask for what never appears.

Conventions: a frame is presented from k/25 s to (k+1)/25 s, an object that is visible from `start`
to `end` is drawn in every frame with start <= k/25 < end, and pixel i covers [i, i+1). A box is the
full extent of its object, also where the occluder hides a part of it; the occluder is narrower than
every object, so that nothing visible is ever hidden whole.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from data_pipelines.synthetic import drawing
from data_pipelines.synthetic.objects import FPS, Object, Occluder, Span
from o3jax.errors import UserError

COLORS = {
    "red": (215, 30, 40),
    "green": (35, 165, 65),
    "blue": (35, 75, 225),
    "yellow": (245, 228, 55),
    "purple": (155, 50, 195),
    "orange": (242, 128, 20),
}
SHAPES = ("circle", "square", "triangle", "star")
SPLITS = {"train": 0, "val": 1, "validation": 1, "test": 2}

_COLOR_JITTER = 8  # largest change of a channel
_MARGIN_PX = 1.0  # between a box and the border of the frame
EVENT_GAP = 10  # frames between any two appearances, and between any two disappearances
_MAX_IOU = 0.05  # of two boxes that are visible at the same time


@dataclasses.dataclass(frozen=True)
class Level:
    """What a difficulty level consists of."""

    size: tuple[int, int]  # height, width in pixels
    seconds: tuple[int, int]  # shortest and longest clip
    objects: tuple[int, int]  # fewest and most objects
    side: tuple[float, float]  # of an object's box, pixels
    max_speed: float  # pixels per second
    max_visible: int  # frames in one go
    kinds: tuple[str, ...]  # of questions; a prime number of them, see `_kinds`
    crf: int = 18  # of the H.264 encoder
    growth: float = 0.0  # largest relative change of the side while visible
    drift: float = 0.0  # largest way of the camera over the clip, pixels
    occluder: bool = False
    distractors: bool = False
    reappear: float = 0.0  # probability that an object is visible twice
    noise: float = 0.0  # standard deviation, grey levels
    min_visible: int = 30  # frames
    gop_s: int = 2  # seconds between the key frames of a file
    questions: int = 2  # about a clip, if no other number is asked for


_KINDS = ("interval", "appears", "where", "attribute", "first")
LEVELS = {
    1: Level((128, 128), (6, 6), (2, 3), (28, 44), 25.0, 150, _KINDS),
    2: Level(
        (160, 160), (8, 8), (3, 4), (26, 44), 25.0, 200, (*_KINDS, "count", "mcq"),
        growth=0.3, drift=24.0, occluder=True, distractors=True,
    ),
    3: Level(
        (192, 256), (30, 90), (4, 5), (14, 26), 12.0, 500, (*_KINDS, "count", "mcq"),
        crf=34, growth=0.3, drift=40.0, occluder=True, distractors=True, reappear=0.5, noise=5.0,
    ),
    4: Level(
        (128, 128), (3600, 3600), (6, 9), (28, 44), 25.0, 500,
        ("interval", "appears", "where", "first", "never"),
        distractors=True, min_visible=75, gop_s=10, questions=5,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scene:
    """One clip of the synthetic world; make it with `make_scene`."""

    seed: int
    level: int
    duration: float  # seconds
    size: tuple[int, int]  # height, width
    objects: tuple[Object, ...]
    kinds: tuple[str, ...]  # of the questions that are asked about it
    drift: tuple[float, float] = (0.0, 0.0)  # velocity of the background on the screen, pixels per second
    occluder: Occluder | None = None
    fps: int = FPS
    begin: int = 0  # of a window: how many frames of the whole clip are before it,
    whole: float = 0.0  # and the seconds of that clip

    @property
    def id(self) -> str:
        return f"l{self.level}-{self.seed}" + (f"-{self.begin}-{self.frame_count}" if self.whole else "")

    def window(self, begin: int, count: int) -> Scene:
        """Returns `count` frames from `begin` on as a scene of its own, whose clock starts there."""
        objects = []
        for thing in self.objects:
            spans = tuple(filter(None, (span.window(begin, count) for span in thing.spans)))
            objects += [dataclasses.replace(thing, spans=spans)] if spans else []
        occluder = self.occluder
        if occluder is not None:
            occluder = dataclasses.replace(occluder, start=occluder.start + occluder.velocity * begin / FPS)
        return dataclasses.replace(
            self,
            duration=count / FPS,
            objects=tuple(objects),
            occluder=occluder,
            begin=self.begin + begin,
            whole=self.whole or self.duration,
        )

    @property
    def frame_count(self) -> int:
        return round(self.duration * self.fps)

    def lapse(self, speed: float) -> Scene:
        """Returns the scene in a film that is shown so many times as fast."""
        objects = tuple(
            dataclasses.replace(thing, spans=tuple(span.lapse(speed) for span in thing.spans))
            for thing in self.objects
        )
        occluder = self.occluder
        if occluder is not None:
            occluder = dataclasses.replace(occluder, velocity=occluder.velocity * speed)
        return dataclasses.replace(
            self,
            duration=math.ceil(self.frame_count / speed - 1e-9) / FPS,
            objects=objects,
            drift=tuple(v * speed for v in self.drift),
            occluder=occluder,
            begin=round(self.begin / speed),
            whole=(self.whole or self.duration) / speed,
        )

    @functools.cached_property
    def _background(self) -> Float[np.ndarray, "H W 3"]:
        """The backdrop, larger than the frame by the whole way that the camera drifts."""
        seconds = self.whole or self.duration
        pad_x, pad_y = (math.ceil(abs(v) * seconds) + 1 if v else 0 for v in self.drift)
        return drawing.texture(self.seed, self.size[0] + pad_y, self.size[1] + pad_x)

    def is_still(self, start_s: float, end_s: float) -> bool:
        """Returns whether nothing but the resting backdrop is seen between two times."""
        moves = self.drift != (0.0, 0.0) or self.occluder is not None or LEVELS[self.level].noise
        seen = itertools.chain.from_iterable(thing.visible for thing in self.objects)
        return not moves and all(end <= start_s or start >= end_s for start, end in seen)

    def render(self, times_s: Sequence[float]) -> UInt8[np.ndarray, "T H W 3"]:
        """Returns the RGB frames shown at `times_s`, before any codec; the last one is shown on.

        Raises:
            ValueError: if a time is before 0 or after the duration.
        """
        times = np.asarray(times_s, np.float64)
        if times.size and not 0 <= times.min() <= times.max() <= self.duration:
            raise ValueError(f"times must lie in 0-{self.duration} s, not {times.min()}-{times.max()} s")
        numbers = np.minimum(np.floor(times * FPS + 1e-6).astype(np.int64), self.frame_count - 1)
        frames = self._backdrops(numbers)
        for thing in self.objects:
            for span in thing.spans:
                (shown,) = np.nonzero((numbers >= span.first) & (numbers < span.stop))
                drawing.draw_shape(frames, shown, span.boxes_px(numbers[shown]), thing.shape, thing.rgb)
        if self.occluder is not None:
            middles = self.occluder.start + self.occluder.velocity * numbers / FPS
            drawing.draw_bar(frames, middles, self.occluder.width, self.occluder.rgb)
        noise = LEVELS[self.level].noise
        if noise:
            for frame, number in zip(frames, numbers.tolist(), strict=True):
                drawing.add_noise(frame, noise, (self.seed, number + self.begin))
        return frames

    def _backdrops(self, numbers: Int[np.ndarray, " T"]) -> UInt8[np.ndarray, "T H W 3"]:
        if self.drift == (0.0, 0.0):
            return np.repeat((self._background + 0.5).astype(np.uint8)[None], len(numbers), axis=0)
        frames = np.empty((len(numbers), *self.size, 3), np.uint8)
        for frame, number in zip(frames, (numbers + self.begin).tolist(), strict=True):
            # What is at x on the screen now was at x - v * t at first; so that nothing is read
            # left of the backdrop's border, a drift to the right begins at its far end.
            corner = [max(v, 0) * (self.whole or self.duration) - v * number / FPS for v in self.drift]
            frame[:] = drawing.crop(self._background, corner, self.size) + 0.5
        return frames


def make_scene(seed: int, level: int = 1, questions: int | None = None, seconds: int | None = None) -> Scene:
    """Returns the scene of a seed: the same one at every call and on every machine.

    Args:
        seed: not negative; `scene_seed` gives seeds that the splits do not share.
        level: difficulty, a key of `LEVELS`.
        questions: how many questions of different kinds to ask; by default the level's number.
        seconds: length of the clip; by default the level's.

    Raises:
        UserError: if the seed is negative, the level unknown, there are not so many kinds, or the clip is too
            short for the level's objects.
    """
    spec = level_of(level)
    if seed < 0:
        raise UserError(f"seed must not be negative, but is {seed}")
    count = spec.questions if questions is None else questions
    if not 1 <= count <= len(spec.kinds):
        raise UserError(f"questions must be 1 to {len(spec.kinds)} at level {level}, not {questions}")
    rng = random.Random(f"{level}/{seed}")
    duration = rng.randint(*spec.seconds)
    if seconds is not None:
        if seconds < spec.seconds[0] and seconds * FPS < 2 * spec.objects[1] * spec.min_visible:
            raise UserError(f"a clip of level {level} must last longer than {seconds} s")
        duration = seconds
    drift = tuple(rng.uniform(-spec.drift, spec.drift) / duration if spec.drift else 0.0 for _ in "xy")
    looks = _looks(rng, spec)
    layout = None
    while layout is None:
        layout = _layout(rng, spec, len(looks), duration * FPS, drift)
    objects = tuple(
        Object(color, shape, _jitter(rng, COLORS[color]), spans, spec.size)
        for (color, shape), spans in zip(looks, layout, strict=True)
    )
    occluder = _occluder(rng, spec, duration) if spec.occluder else None
    kinds = _kinds(seed, spec.kinds, count)
    return Scene(seed, level, float(duration), spec.size, objects, kinds, drift, occluder)


def level_of(level: int) -> Level:
    """Returns what a level consists of; UserError if there is no such level."""
    if level not in LEVELS:
        raise UserError(f"level must be one of {', '.join(map(str, LEVELS))}, not {level}")
    return LEVELS[level]


def scene_seed(split: str, index: int, seed: int = 0) -> int:
    """Returns the seed of a split's clip number `index`; the splits are residue classes modulo 3.

    Raises:
        UserError: if the split is unknown, or the index or seed is negative or the index 2**40 or more.
    """
    if split not in SPLITS:
        raise UserError(f"split must be train, val or test, not {split!r}")
    if not 0 <= index < 2**40 or seed < 0:
        raise UserError(f"index and seed must not be negative (index below 2**40), not {index} and {seed}")
    return 3 * (seed * 2**40 + index) + SPLITS[split]


def _kinds(seed: int, kinds: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Returns `count` different kinds; over consecutive seeds every ordered choice is equally frequent.

    Steps through the kinds by a stride; as their number is prime, no stride comes back too early.
    """
    number, prime = seed // len(set(SPLITS.values())), len(kinds)
    start, stride = number % prime, 1 + number // prime % (prime - 1)
    return tuple(kinds[(start + i * stride) % prime] for i in range(count))


def _looks(rng: random.Random, spec: Level) -> list[tuple[str, str]]:
    """Returns (colour, shape) pairs: colours are unique, or with distractors only the pairs are."""
    count = rng.randint(*spec.objects)
    if not spec.distractors:
        return [(color, rng.choice(SHAPES)) for color in rng.sample(list(COLORS), count)]
    color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
    same_color = [(color, other) for other in SHAPES if other != shape]
    same_shape = [(other, shape) for other in COLORS if other != color]
    looks = [(color, shape), rng.choice(same_color), rng.choice(same_shape)]
    rest = [pair for pair in itertools.product(COLORS, SHAPES) if pair not in looks]
    return looks + rng.sample(rest, count - len(looks))


def _layout(
    rng: random.Random, spec: Level, count: int, frames: int, drift: tuple[float, float]
) -> list[tuple[Span, ...]] | None:
    """Returns the spans of `count` objects, None where this draw leads nowhere."""
    times = [_times(rng, spec, frames) for _ in range(count)]
    for events in zip(*itertools.chain(*times), strict=True):  # all appearances, then all disappearances
        ordered = sorted(events)
        if any(later - earlier < EVENT_GAP for earlier, later in itertools.pairwise(ordered)):
            return None
    placed: list[Span] = []
    for first, stop in itertools.chain(*times):
        for _ in range(40):
            span = _place(rng, spec, first, stop, drift)
            if span is not None and all(_max_iou(span, other) <= _MAX_IOU for other in placed):
                placed.append(span)
                break
        else:
            return None
    spans = iter(placed)
    return [tuple(itertools.islice(spans, len(own))) for own in times]


def _times(rng: random.Random, spec: Level, frames: int) -> list[tuple[int, int]]:
    """Returns the (first, stop) frames of one object's visible stretches."""
    if rng.random() < spec.reappear:
        half = frames // 2
        return [_stretch(rng, spec, 0, half - FPS), _stretch(rng, spec, half, frames)]
    return [_stretch(rng, spec, 0, frames)]


def _stretch(rng: random.Random, spec: Level, low: int, high: int) -> tuple[int, int]:
    first = low if rng.random() < 0.2 else rng.randint(low, high - spec.min_visible)
    longest = min(high, first + spec.max_visible)
    stop = longest if rng.random() < 0.2 else rng.randint(first + spec.min_visible, longest)
    return first, stop


def _place(rng: random.Random, spec: Level, first: int, stop: int, drift: tuple[float, float]) -> Span | None:
    """Returns a random motion, None if its box leaves the frame."""
    height, width = spec.size
    side = rng.uniform(*spec.side)
    growth = side * rng.uniform(-spec.growth, spec.growth) * FPS / (stop - first) if spec.growth else 0.0
    speed, angle = rng.uniform(0, spec.max_speed), rng.uniform(0, 2 * math.pi)
    margin = side / 2 + _MARGIN_PX
    center = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
    velocity = speed * math.cos(angle) + drift[0], speed * math.sin(angle) + drift[1]
    span = Span(first, stop, center, velocity, side, growth)
    # Everything is linear in time, so that the last frame decides.
    left, top, right, bottom = span.boxes_px(np.array([stop]))[0]
    inside = min(left, top) >= _MARGIN_PX and right <= width - _MARGIN_PX and bottom <= height - _MARGIN_PX
    return span if inside else None


def _max_iou(one: Span, other: Span) -> float:
    """Returns the largest box IoU over the frames that show both spans, 0 if there are none."""
    frames = np.arange(max(one.first, other.first), min(one.stop, other.stop))
    if not frames.size:
        return 0.0
    a, b = one.boxes_px(frames), other.boxes_px(frames)
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    overlap = np.prod(np.maximum(sides, 0), -1)
    areas = np.prod(a[:, 2:] - a[:, :2], -1) + np.prod(b[:, 2:] - b[:, :2], -1)
    return float(np.max(overlap / (areas - overlap)))


def _occluder(rng: random.Random, spec: Level, duration: int) -> Occluder:
    """Returns a grey bar that crosses the frame in about a third of the clip, at most 4 s."""
    grey = rng.randint(40, 70)
    width = rng.uniform(0.3, 0.5) * spec.side[0]
    crossing = min(4.0, duration / 3)  # seconds
    velocity = (spec.size[1] + width) / crossing * rng.choice((-1, 1))
    begin = rng.uniform(0, duration - crossing)
    outside = -width / 2 if velocity > 0 else spec.size[1] + width / 2
    return Occluder((grey, grey, grey), width, outside - velocity * begin, velocity)


def _jitter(rng: random.Random, rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    return tuple(min(255, max(0, c + rng.randint(-_COLOR_JITTER, _COLOR_JITTER))) for c in rgb)
