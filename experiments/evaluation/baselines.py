"""Answers to synthetic questions without looking at the video: chance, the prior, copying the question.

A baseline writes a response in the same grammar as a model and is scored the same way. It sees an
`Asked`, which holds nothing of the answer.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from data_pipelines.formats.sample import Sample
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import COLORS, LEVELS, SHAPES, Scene, make_scene, scene_seed
from data_pipelines.synthetic.words import CHINESE, LANGUAGES, object_name
from o3jax.grounding import Box, Interval
from o3jax.prompts import grammar

_TRAIN_CLIPS = 500  # whose annotations the prior is fitted on

_TIME = re.compile(r"([0-9]+\.[0-9]) ?(?:s\b|秒)")
_COLOR = re.compile("colou?r|颜色")
_NAMES = {
    language: re.compile("|".join(object_name(*look, language) for look in itertools.product(COLORS, SHAPES)))
    for language in LANGUAGES
}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a baseline may know: the question, and which objects the video shows (for `chance` alone)."""

    id: str
    kind: str
    language: str
    question: str
    level: int
    duration: float  # seconds
    present: tuple[tuple[str, str], ...]  # colour and shape of the clip's objects, sorted

    @classmethod
    def of(cls, sample: Sample, scene: Scene) -> Asked:
        """Returns what may be known of a sample; the objects are sorted: their order tells nothing."""
        present = tuple(sorted((thing.color, thing.shape) for thing in scene.objects))
        return cls(
            sample.id, sample.kind, sample.language, sample.question, scene.level, scene.duration, present
        )

    @property
    def topic(self) -> str:
        """The kind of answer: the question's kind, or which attribute it asks for."""
        return _topic(self.kind, self.question)

    @property
    def named(self) -> list[str]:
        """The objects that the question names, in its order."""
        return _NAMES[self.language].findall(self.question)

    @property
    def times(self) -> list[float]:
        """The times that the question names, seconds."""
        return [float(number) for number in _TIME.findall(self.question)]


@dataclasses.dataclass(frozen=True)
class Guess:
    """An answer with its evidence."""

    object: str
    interval: Interval
    time: float
    box: Box
    words: str  # the answer of the kinds that are answered by a word, a letter or a number

    def text(self, kind: str, language: str) -> str:
        """Returns the guess as a response to a question of a kind."""
        claim = grammar.render_claim(self.object, [self.box], self.time)
        stated = grammar.render_interval(*self.interval, language)
        answers = {
            "interval": stated,
            "appears": grammar.render_time(self.interval[0]),
            "where": grammar.render_claim(self.object, [self.box], None),
        }
        return grammar.render(f"{claim} {stated}", answers.get(kind, self.words))


def chance(asked: Asked, seed: int = 0) -> str:
    """Returns a random valid response: an object that is there (one of the question's options where it
    offers some), a random interval, a time in it, and a random box of a possible size."""
    rng = random.Random(f"chance/{seed}/{asked.id}")
    options = asked.named if asked.kind in ("first", "mcq") else []
    look = rng.choice(asked.present)
    name = rng.choice(options) if options else object_name(*look, asked.language)
    start, end = sorted(rng.uniform(0, asked.duration) for _ in range(2))
    level = LEVELS[asked.level]
    side = rng.uniform(*level.side)
    height, width = (side / size for size in level.size)
    left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    words = {
        "color": _word(look[0], asked.language),
        "shape": _word(look[1], asked.language),
        "first": name,
        "mcq": "ABCD"[options.index(name)] if options else "A",
        "count": str(rng.randint(1, len(asked.present))),
    }
    guess = Guess(
        name, (start, end), rng.uniform(start, end), (left, top, left + width, top + height),
        words.get(asked.topic, ""),
    )  # fmt: skip
    return guess.text(asked.kind, asked.language)


def fit_prior(level: int, seed: int = 0) -> dict[tuple[str, str], Guess]:
    """Returns per topic and language the constant guess that annotations of the train split suggest:
    median interval and time, mean box, most frequent object and words."""
    clips = (make_scene(scene_seed("train", index, seed), level) for index in range(_TRAIN_CLIPS))
    grouped: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in itertools.chain.from_iterable(make_samples(clip) for clip in clips):
        grouped[_topic(sample.kind, sample.question), sample.language].append(sample)
    return {key: _typical(samples) for key, samples in grouped.items()}


def prior(asked: Asked, fitted: Mapping[tuple[str, str], Guess]) -> str:
    """Returns the constant response to questions of this kind."""
    return fitted[asked.topic, asked.language].text(asked.kind, asked.language)


def copy_question(asked: Asked, fitted: Mapping[tuple[str, str], Guess]) -> str:
    """Returns what the question itself says, and the prior where it says nothing: the object named first
    (which is also the answer where it offers objects), its time, the prior's interval moved to hold it."""
    guess = fitted[asked.topic, asked.language]
    if asked.named:
        words = {"first": asked.named[0], "mcq": "A"}.get(asked.kind, guess.words)
        guess = dataclasses.replace(guess, object=asked.named[0], words=words)
    if asked.times:
        time, (start, end) = asked.times[0], guess.interval
        shift = min(time - start, 0.0) + max(time - end, 0.0)
        guess = dataclasses.replace(guess, time=time, interval=(start + shift, end + shift))
    return guess.text(asked.kind, asked.language)


def _topic(kind: str, question: str) -> str:
    if kind != "attribute":
        return kind
    return "color" if _COLOR.search(question) else "shape"


def _typical(samples: list[Sample]) -> Guess:
    words = _most_frequent(sample.answer for sample in samples)
    if not samples[0].mentions:  # asked for what never appears
        return Guess("", (0.0, 0.0), 0.0, (0.0, 0.0, 1.0, 1.0), words)
    mentions = [sample.mentions[0] for sample in samples]
    starts, ends = zip(*(sample.intervals[0] for sample in samples), strict=True)
    box = np.mean([mention.boxes[0] for mention in mentions], axis=0)
    return Guess(
        object=_most_frequent(mention.object for mention in mentions),
        interval=(statistics.median(starts), statistics.median(ends)),
        time=statistics.median(mention.time_s for mention in mentions),
        box=tuple(box.tolist()),
        words=words,
    )


def _most_frequent(words: Iterable[str]) -> str:
    """Returns the most frequent word; of equally frequent ones the first in the alphabet."""
    return min(Counter(words).items(), key=lambda item: (-item[1], item[0]))[0]


def _word(word: str, language: str) -> str:
    return CHINESE[word] if language == "zh" else word
