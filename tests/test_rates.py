"""The study of rates and shifts: its scenes, films and differences, with a decoder that is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from experiments import rate_study as rates
from o3jax.respond import HeadEstimate
from o3jax.video import probe


def test_moved_visits_are_a_second_later_and_nothing_else_is():
    scenes = list(rates.movable(5))
    assert len({scene.seed for scene, _ in scenes}) == 5
    for scene, number in scenes:
        moved = rates.later(scene, number)
        for i, (before, after) in enumerate(zip(scene.objects, moved.objects, strict=True)):
            shift = np.subtract(after.visible[0], before.visible[0])
            assert shift == pytest.approx((1.0, 1.0) if i == number else (0.0, 0.0))
        assert moved.objects[number].visible[0][1] <= scene.duration
        time = scene.objects[number].visible[0][0] + 0.5
        assert moved.objects[number].box(time + 1.0) == pytest.approx(scene.objects[number].box(time))


class Clockwork:
    """Sees an object from its true start, later by a twentieth of the frames' distance."""

    def __init__(self):
        self.rates = []

    def request(self, path, question):
        self.rates.append(round(probe(path).fps))
        return SimpleNamespace(path=path, question=question, fps=self.rates[-1]), None

    def respond(self, requests, *, max_new_tokens):
        assert len(requests) == 10
        scenes = [scene for scene, _ in rates.movable(4)]
        found = []
        for request in requests:
            scene = scenes[int(request.path.stem)]
            (thing,) = [o for o in scene.objects if o.name("en") in request.question]
            start, end = thing.visible[0]
            late = 0.5 / request.fps
            time = (start + end) / 2 + late
            found.append(
                SimpleNamespace(heads=(HeadEstimate(time, 0.1, (start + late, end), (0, 0, 1, 1), 1.0),))
            )
        return found


def test_the_study():
    model = Clockwork()
    out = rates.study(model, 4)
    assert model.rates == [25] * 4 + [10] * 4 + [30] * 4 + [25] * 4
    assert out["10 fps"]["time"] == pytest.approx(0.05 - 0.02) and out["30 fps"]["time"] == pytest.approx(
        1 / 300
    )
    assert out["10 fps"]["interval"] == pytest.approx(0.015)  # of starts and ends together
    assert out["1 s later"] == pytest.approx({"time": 0.0, "interval": 0.0})  # it does not look


def test_answers_without_an_estimate_are_left_out():
    one = HeadEstimate(1.0, 0.1, (0.5, 2.0), (0, 0, 1, 1), 0.5)
    two = HeadEstimate(1.5, 0.1, (0.5, 2.2), (0, 0, 1, 1), 0.5)
    found = rates.differences([one, None, one], [two, two, None])
    assert found["time"].tolist() == [0.5] and found["interval"] == pytest.approx([0.0, 0.2])
