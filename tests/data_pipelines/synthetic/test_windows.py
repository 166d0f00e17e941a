"""Windows and films of scenes show what the scene shows, and what is asked about them is true of them."""

import collections
import dataclasses
import random

import numpy as np
import pytest

from data_pipelines.synthetic.matching import MakeMatchingRow
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.windows import LevelClips, draw_film, draw_window
from o3jax.hf.config import config_from_hf
from o3jax.hf.folder import model_folder
from o3jax.inputs.processor import load_processor
from tests.data_pipelines.synthetic.test_synthetic_questions import check_answer, observe_boxes
from tests.support.worlds import scenes


@pytest.mark.parametrize("level", [2, 3, 4])
def test_a_window_shows_what_the_scene_shows(level):
    scene = scenes(level, 1)[0]
    begin = scene.objects[0].spans[0].first
    window = scene.window(begin, 60)
    for k in (0, 17, 59):
        assert np.array_equal(window.render([k / 25]), scene.render([(begin + k) / 25]))
    for k in (0, 17, 59):
        there = {o.name("en"): o.box((begin + k) / 25) for o in scene.objects}
        assert {n: b for n, b in there.items() if b} == {
            o.name("en"): pytest.approx(box) for o in window.objects if (box := o.box(k / 25))
        }
    assert window.id != scene.id


def test_a_film_shows_some_windows_one_after_the_other_and_faster():
    several = 0
    for number, scene in enumerate(scenes(4, 6)):
        film = draw_film(scene, random.Random(number))
        assert film.duration == pytest.approx(6, abs=0.05)
        # Each of its frames is one of the scene's: found by what they show, in the order of the scene.
        times = [0.0]
        for thing in film.objects:
            for start, end in thing.visible:
                times += [start, (start + end) / 2, end - 0.04]
        for time in sorted(times):
            shown = {o.name("en"): o.box(time) for o in film.objects if o.box(time)}
            if not shown:
                continue
            name, box = next(iter(shown.items()))
            thing = next(o for o in scene.objects if o.name("en") == name)
            (span,) = thing.spans
            frames = np.arange(span.first, span.stop)
            near = np.abs(span.boxes_px(frames) / 128 - box).max(-1)
            assert near.min() < 1e-2  # between two frames of the scene, where the film is faster
            of_scene = scene.render([frames[near.argmin()] / 25])[0].astype(float)
            assert np.abs(film.render([time])[0] - of_scene).mean() < 0.5
        several += len(film.objects) > 1
    assert several


def test_what_is_asked_about_clips_of_all_levels_is_true():
    kinds = collections.Counter()
    clips = LevelClips("test", 4, 4, 0)
    for number in range(60):
        clip = clips[number]
        scene = clip.source.scene
        seen = observe_boxes(scene)
        for sample in clip.samples:
            kinds[scene.level, sample.kind] += 1
            assert sample.duration == scene.duration <= 8
            if sample.kind == "never":
                assert not any(thing.name(sample.language) in sample.question for thing in scene.objects)
            elif scene.level in (1, 4):
                check_answer(sample, seen, scene.size)
    assert {level for level, _ in kinds} == {1, 2, 3, 4} and kinds[4, "never"] > 3
    assert (
        clips[7].samples == LevelClips("test", 4, 4, 0)[7].samples != LevelClips("test", 4, 4, 1)[7].samples
    )


def test_most_windows_hold_an_event_and_some_hold_none():
    scene = scenes(4, 1)[0]
    windows = [draw_window(scene, random.Random(i), 8) for i in range(100)]
    empty = [window for window in windows if not window.objects]
    assert 5 < len(empty) < 25
    assert all(window.kinds == ("never",) for window in empty)
    (sample,) = make_samples(dataclasses.replace(empty[0], kinds=("never",)), "en")
    assert sample.answer == "It never appears." and sample.reasoning.startswith("The ")


def test_rows_of_matching_say_when_what_is_asked_for_is_seen():
    folder = model_folder("o3-tiny")
    rows = MakeMatchingRow(load_processor(folder), config_from_hf(folder), 60, 36, 6, 48, seed=1)
    rates, shares = collections.Counter(), []
    for number in range(16):
        row = rows.map(number)
        valid = row.dense.length > 0
        times = row.dense.times[valid]
        steps = np.diff(times)
        assert (steps > 0).all()
        rates[round(1 / float(steps.min()), 1)] += 1
        asked = (row.questions.ids >= 0).any(-1)
        assert (row.known == (asked[:, None] & valid)).all() and not (row.inside & ~row.known).any()
        shares.append(row.inside[asked][:, valid].mean())
    assert set(rates) == {0.2, 1.0, 2.0, 12.5} and 0 < np.mean(shares) < 0.5
    assert all(np.array_equal(a, b) for a, b in zip(rows.map(3).inside, rows.map(3).inside, strict=True))
