"""Questions about a synthetic scene, in English and Chinese, with answers, reasoning and evidence.

An event of an object that is visible more than once ("appears first") is its first one; questions
about one of its visits name which. An object that never appears has no evidence: no mention, no interval.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

from data_pipelines.formats.sample import KeyFrame, Sample
from data_pipelines.synthetic.scenes import COLORS, SHAPES, Object, Scene
from data_pipelines.synthetic.words import (
    CHINESE,
    EVENTS,
    LANGUAGES,
    NEVER,
    QUESTIONS,
    VISITS,
    object_name,
)
from o3jax.errors import UserError
from o3jax.grounding import Grounding, Interval
from o3jax.prompts.coords import NORMALISED, frame_index
from o3jax.prompts.grammar import render_claim, render_interval, render_time
from o3jax.tasks import MCQ, SPATIO_TEMPORAL, TEMPORAL

_BORDER = 0.2  # seconds between an asked time and the moments at which the asked thing changes


@dataclasses.dataclass(frozen=True)
class _Evidence:
    """One object of the answer: the interval in which it is looked at and the time of the look."""

    thing: Object
    interval: Interval
    time: float


def make_samples(scene: Scene, language: str | None = None) -> list[Sample]:
    """Returns one question for each of the scene's kinds of them.

    Args:
        language: "en" or "zh" asks all of them in that language; by default they alternate.

    Raises:
        UserError: if the language is not "en", "zh" or None.
    """
    if language not in (None, *LANGUAGES):
        raise UserError(f"language must be en or zh, not {language!r}")
    offset = random.Random(f"{scene.seed}/language").randrange(2)
    return [
        _sample(scene, kind, language or LANGUAGES[(offset + i) % 2]) for i, kind in enumerate(scene.kinds)
    ]


def _sample(scene: Scene, kind: str, language: str) -> Sample:
    # A stream of its own for every kind: what is asked does not depend on what else is asked.
    rng = random.Random(f"{scene.level}/{scene.seed}/{kind}")
    if kind == "never":
        name = _absent(scene, language, rng)
        question = _phrase(rng.choice(("interval", "appears")), language, rng, x=name, nth="")
        said, answer = (words.format(x=name) for words in NEVER[language])
        evidence = []
    else:
        question, answer, evidence = _ASK[kind](scene, language, rng)
        said = _claims(evidence, language)
    task = dict.fromkeys(("interval", "appears", "never"), TEMPORAL) | {"mcq": MCQ}
    task = task.get(kind, SPATIO_TEMPORAL)
    numbers = {e.time: frame_index(e.time, scene.fps) for e in evidence}
    return Sample(
        id=f"{scene.id}-{kind}-{language}",
        source=f"synthetic-l{scene.level}",
        task=task,
        question=question,
        answer=answer,
        video_path=f"videos/{scene.id}.mp4",
        duration=scene.duration,
        reasoning=_inventory(scene, language) + said,
        mentions=tuple(
            Grounding(e.thing.name(language), e.time, boxes=(e.thing.box(e.time),)) for e in evidence
        ),
        intervals=tuple(e.interval for e in evidence),
        key_frames=tuple(KeyFrame(i, t, f"kfs/{scene.id}_{i}.jpg") for t, i in numbers.items()),
        language=language,
        kind=kind,
    )


def _inventory(scene: Scene, language: str) -> str:
    """Returns the objects of the scene in order of appearing, and when they are visible."""
    inventory = []
    for thing in sorted(scene.objects, key=lambda o: o.visible[0]):
        visits = ", ".join(f"{start:.1f}-{end:.1f}" for start, end in thing.visible)
        inventory.append(f"{thing.name(language)} {visits}")
    if language == "en":
        return "; ".join(inventory) + ". " if inventory else ""
    return ";".join(inventory) + "。" if inventory else ""


def _claims(evidence: list[_Evidence], language: str) -> str:
    """Returns the evidence, claim by claim."""
    claims = []
    for e in evidence:
        claim = render_claim(e.thing.name(language), [e.thing.box(e.time)], e.time, NORMALISED)
        start, end = (render_time(t) for t in e.interval)
        claims.append(
            f"{claim}, visible from {start} to {end}."
            if language == "en"
            else f"{claim},从{start}到{end}可见。"
        )
    return (" " if language == "en" else "").join(claims)


def _absent(scene: Scene, language: str, rng: random.Random) -> str:
    """Returns the name of an object that the scene does not show, but for its colour or its shape if it shows
    any."""
    there = {(thing.color, thing.shape) for thing in scene.objects}
    colors, shapes = ({look[i] for look in there} for i in (0, 1))
    others = [look for look in itertools.product(COLORS, SHAPES) if look not in there]
    near = [look for look in others if look[0] in colors or look[1] in shapes]
    return object_name(*rng.choice(near or others), language)


def _ask_interval(scene: Scene, language: str, rng: random.Random) -> tuple[str, str, list[_Evidence]]:
    thing, interval, nth = _visit(scene, language, rng)
    question = _phrase("interval", language, rng, x=thing.name(language), nth=nth)
    return question, render_interval(*interval, language), [_look(thing, interval)]


def _ask_appears(scene: Scene, language: str, rng: random.Random) -> tuple[str, str, list[_Evidence]]:
    thing, interval, nth = _visit(scene, language, rng)
    question = _phrase("appears", language, rng, x=thing.name(language), nth=nth)
    answer = ("At " if language == "en" else "在") + render_time(interval[0])
    return question, answer, [_look(thing, interval)]


def _ask_where(scene: Scene, language: str, rng: random.Random) -> tuple[str, str, list[_Evidence]]:
    thing, (start, end), _ = _visit(scene, language, rng)
    tenths = range(math.ceil((start + _BORDER) * 10 - 1e-6), math.floor((end - _BORDER) * 10 + 1e-6) + 1)
    time = rng.choice(tenths) / 10
    question = _phrase("where", language, rng, x=thing.name(language), t=f"{time:.1f}")
    answer = render_claim(thing.name(language), [thing.box(time)], None, NORMALISED)
    return question, answer, [_Evidence(thing, (start, end), time)]


def _ask_attribute(scene: Scene, language: str, rng: random.Random) -> tuple[str, str, list[_Evidence]]:
    what = rng.choice(("color", "shape"))
    thing, interval, event = _event(scene, language, rng)
    question = _phrase(what, language, rng, event=event)
    answer = thing.color if what == "color" else thing.shape
    return question, answer if language == "en" else CHINESE[answer], [_look(thing, interval)]


def _ask_first(scene: Scene, language: str, rng: random.Random) -> tuple[str, str, list[_Evidence]]:
    pair = rng.sample(scene.objects, 2)
    side = rng.choice((0, 1))  # of the interval: appears, disappears
    event = {"en": ("appears first", "disappears first"), "zh": ("先出现", "先消失")}[language][side]
    x, y = (thing.name(language) for thing in pair)
    thing = min(pair, key=lambda o: o.visible[0][side])
    question = _phrase("first", language, rng, x=x, y=y, event=event)
    return question, thing.name(language), [_look(thing, thing.visible[0])]


def _ask_count(scene: Scene, language: str, rng: random.Random) -> tuple[str, str, list[_Evidence]]:
    if rng.random() < 0.5:
        color = rng.choice(scene.objects).color
        things = [thing for thing in scene.objects if thing.color == color]
        words = color if language == "en" else CHINESE[color]
        question = _phrase("count color", language, rng, color=words)
        evidence = [_look(thing, thing.visible[0]) for thing in things]
    else:
        changes = list(itertools.chain(*itertools.chain(*(o.visible for o in scene.objects))))
        tenths = [
            t
            for t in range(round(scene.duration * 10) + 1)
            if all(abs(t / 10 - change) >= _BORDER - 1e-6 for change in changes)
            and any(start <= t / 10 < end for o in scene.objects for start, end in o.visible)
        ]
        time = rng.choice(tenths) / 10
        question = _phrase("count", language, rng, t=f"{time:.1f}")
        evidence = [
            _Evidence(thing, (start, end), time)
            for thing in scene.objects
            for start, end in thing.visible
            if start <= time < end
        ]
    return question, str(len(evidence)), evidence


def _ask_mcq(scene: Scene, language: str, rng: random.Random) -> tuple[str, str, list[_Evidence]]:
    thing, interval, event = _event(scene, language, rng)
    options = [o.name(language) for o in scene.objects if o is not thing][:3] + [thing.name(language)]
    rng.shuffle(options)
    letters = "ABCD"[: len(options)]
    lines = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]
    question = "\n".join([_phrase("mcq", language, rng, event=event), *lines])
    return question, letters[options.index(thing.name(language))], [_look(thing, interval)]


_ASK = {
    "interval": _ask_interval,
    "appears": _ask_appears,
    "where": _ask_where,
    "attribute": _ask_attribute,
    "first": _ask_first,
    "count": _ask_count,
    "mcq": _ask_mcq,
}


def _phrase(kind: str, language: str, rng: random.Random, **words: str) -> str:
    return rng.choice(QUESTIONS[kind, language]).format(**words)


def _visit(scene: Scene, language: str, rng: random.Random) -> tuple[Object, Interval, str]:
    """Returns an object, one of its visible intervals, and the words for which one it is, if any."""
    thing = rng.choice(scene.objects)
    index = rng.randrange(len(thing.visible))
    nth = VISITS[language][index] if len(thing.visible) > 1 else ""
    return thing, thing.visible[index], nth


def _event(scene: Scene, language: str, rng: random.Random) -> tuple[Object, Interval, str]:
    """Returns an object, the interval of the event that singles it out, and the event in words."""
    things = scene.objects
    allowed = list(EVENTS)
    if any(len(thing.visible) > 1 for thing in things):
        allowed.remove(("appears", "last"))  # it may mean a first or a second appearance
    if any(thing.visible[-1][1] >= scene.duration for thing in things):
        allowed.remove(("disappears", "last"))  # one never does
    act, which = rng.choice(allowed)
    side = 0 if act == "appears" else 1
    visits = [(interval, thing) for thing in things for interval in thing.visible]
    visits.sort(key=lambda visit: visit[0][side])
    if which == "at":
        visits = [visit for visit in visits if visit[0][0] > 0]  # at 0.0 nothing appears, it is there
        interval, thing = rng.choice(visits)
    else:
        interval, thing = visits[0 if which == "first" else -1]
    return thing, interval, EVENTS[act, which][language].format(t=f"{interval[0]:.1f}")


def _look(thing: Object, interval: Interval) -> _Evidence:
    """Returns the evidence at the multiple of 0.5 s inside the interval that is nearest to its middle.

    There always is one, because nothing is visible for less than 1.2 s.
    """
    start, end = interval
    halves = range(math.ceil(start * 2 - 1e-6), math.ceil(end * 2 - 1e-6))
    return _Evidence(thing, interval, min(halves, key=lambda h: abs(h / 2 - (start + end) / 2)) / 2)
