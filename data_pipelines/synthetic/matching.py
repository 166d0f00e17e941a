"""What question matching learns from: scenes seen at the rates of coarse to fine, from 6 s to an hour.

A row is one scene, some of its frames, and questions about it. At 25 frames per second the frames are those
of a window and stand in pairs, as the dense stream has them. At the coarse rates each frame is a pair with
itself, and of a long scene only some stretches are drawn: those with events, and others that are empty.
"""

from __future__ import annotations

import dataclasses
import random

import grain
import numpy as np
from jaxtyping import Float

from data_pipelines.formats.sample import Sample
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import FPS, LEVELS, Scene, make_scene, scene_seed
from data_pipelines.synthetic.windows import draw_window
from data_pipelines.synthetic.words import LANGUAGES
from o3jax.inputs.dense import dense_size, dense_stream, interval_mask
from o3jax.inputs.image import resize_image
from o3jax.inputs.processor import Processor
from o3jax.models.batch import MatchingBatch, Questions
from o3jax.models.config import Config

# Frames per second, how often, and the levels that are seen at it, with their weights.
RATES = ((0.2, 0.2), (1.0, 0.2), (2.0, 0.15), (float(FPS), 0.45))
_COARSE = {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.7}
_FINE = {1: 0.5, 2: 0.15, 3: 0.05, 4: 0.3}
_STRETCH_S = 10.0  # seconds of a long scene that are drawn or left out together
_WITH_EVENTS = 2 / 3  # of the drawn frames, at most
_NAMED = ("interval", "appears", "where", "first")  # questions that name what they are about


@dataclasses.dataclass(frozen=True)
class MakeMatchingRow(grain.transforms.Map):
    """Number of a row -> the row."""

    processor: Processor
    config: Config
    pairs: int  # frame pairs of a row
    patches: int  # of a frame
    questions: int
    question_length: int  # tokens
    seed: int
    split: str = "train"

    def map(self, number: int) -> MatchingBatch:
        """Returns one row, without a batch axis."""
        rng = random.Random(f"matching/{self.seed}/{number}")
        rate = rng.choices([rate for rate, _ in RATES], [weight for _, weight in RATES])[0]
        levels = _FINE if rate == FPS else _COARSE
        level = rng.choices(list(levels), list(levels.values()))[0]
        scene = make_scene(scene_seed(self.split, int(number), self.seed), level)
        if rate == FPS:
            if scene.frame_count > 2 * self.pairs:
                scene = draw_window(scene, rng, 2 * self.pairs / FPS)
            times = np.arange(min(scene.frame_count, 2 * self.pairs)) / FPS
        else:
            times = np.repeat(_drawn(scene, rng, rate, self.pairs), 2)
        return self._row(scene, rng, times, rate == FPS)

    def _row(
        self, scene: Scene, rng: random.Random, times: Float[np.ndarray, " n"], fine: bool
    ) -> MatchingBatch:
        size = dense_size(*scene.size, self.config.evidence, self.processor.video_config.factor)
        # Of a resting picture one frame is drawn.
        rests = [scene.is_still(time, time + 1 / FPS) for time in times.tolist()]
        drawn, at = np.unique(np.where(rests, -1.0, times), return_inverse=True)
        shown = np.where(drawn < 0, times[np.argmax(rests)], drawn)
        frames = np.stack([resize_image(frame, size) for frame in scene.render(shown)])[at]
        stream = dense_stream(
            *(frames, times, self.processor.video_config, self.config.vision),
            frame_pairs=self.pairs,
            patches=self.patches,
        )
        kinds = scene.kinds if fine and scene.whole else (*LEVELS[scene.level].kinds, "never")
        scene = dataclasses.replace(scene, kinds=tuple(dict.fromkeys(kinds)))
        samples = [sample for language in LANGUAGES for sample in make_samples(scene, language)]
        samples = rng.sample(samples, min(self.questions, len(samples)))
        ids = np.full((self.questions, self.question_length), -1, np.int32)
        inside = np.zeros((self.questions, self.pairs), bool)
        known = np.zeros((self.questions, self.pairs), bool)
        valid, tokenizer = stream.length > 0, self.processor.tokenizer
        for q, sample in enumerate(samples):
            tokens = tokenizer(tokenizer.quoted(sample.question))["input_ids"][: self.question_length]
            ids[q, : len(tokens)] = tokens
            known[q] = valid
            for start, end in sample.intervals if fine else _told(scene, sample):
                inside[q] |= (stream.times >= start) & (stream.times < end) & valid
        return MatchingBatch(stream, Questions(ids), inside, known)


def _drawn(scene: Scene, rng: random.Random, rate: float, count: int) -> Float[np.ndarray, " n"]:
    """Returns at most `count` times at a rate, in stretches: some with events, the others without."""
    times = (np.arange(int(scene.duration * rate)) + rng.random()) / rate
    times = times[times < scene.duration]
    stretch = np.floor(times / _STRETCH_S).astype(int)
    events = [interval for thing in scene.objects for interval in thing.visible]
    busy = np.unique(stretch[interval_mask(events, times)]).tolist()
    quiet = np.setdiff1d(stretch, busy).tolist()
    rng.shuffle(busy)
    rng.shuffle(quiet)
    most = max(1, round(count * _WITH_EVENTS / (_STRETCH_S * rate)))
    chosen: list[float] = []
    for number in (*busy[:most], *quiet, *busy[most:]):
        chosen += times[stretch == number].tolist()
        if len(chosen) >= count:
            break
    return np.sort(chosen[:count])


def _told(scene: Scene, sample: Sample) -> list[tuple[float, float]]:
    """Returns when what a question asks for is seen; of a question that names objects, each time any of them
    is: which of them answers, a coarse look cannot know."""
    if sample.kind not in _NAMED:
        return list(sample.intervals)
    named = [thing for thing in scene.objects if thing.name(sample.language) in sample.question]
    return [interval for thing in named for interval in thing.visible]
