"""A model that names something else than what is asked for: the search goes on, or it never appears."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from o3jax.inference.further import is_another, named_otherwise, search_on
from o3jax.inference.locate import DecoderEstimate
from o3jax.inference.respond import Request, Response
from o3jax.notes import Note
from o3jax.searched import Pass, Search


@pytest.mark.parametrize(
    ("name", "question", "another"),
    [
        ("red circle", "When is the red star visible?", True),
        ("Red Star", "When is the red star visible?", False),
        ("red star", "When does the star appear?", False),  # it says more
        ("star", "When does the red star appear?", False),  # it says less
        ("person", "When does the worker fall?", False),  # other words for the same, perhaps
        ("man in blue", "When does the man appear?", False),
        ("man in blue", "When does the man in red appear?", True),
        ("white dog", "At what time does the black dog come into view?", True),
        ("purple star", "Of the purple triangle and the orange star, which appears first?", True),
        ("yellow star", "Which appears first, the purple triangle or the orange circle?", True),
        ("orange star", "Of the purple triangle and the orange star, which appears first?", False),
        ("red circle", "What color is the circle that appears first?", False),
        ("红色圆形", "红色方形是何时出现的?", True),
        ("红色方形", "红色方形是何时出现的?", False),
        ("穿蓝衣的男人", "男人什么时候出现?", False),
        ("紫色星形", "紫色三角形与橙色星形,哪一个先出现?", True),
    ],
)
def test_is_another(name, question, another):
    assert is_another(name, question) is another


def response(*claims, search=None):
    """A text that claims some things, each (name, seconds, how far the decoder's box is beside its own)."""
    text, estimates = "", []
    for name, time_s, beside in claims:
        text += f"<obj>{name}</obj><box>[100,100,300,300]</box>at<t>{time_s}</t>s "
        box = (0.1 + beside, 0.1, 0.3 + beside, 0.3)
        estimates.append(DecoderEstimate(time_s=time_s, boxes=(box,), confidence=0.9, spread_s=0.1))
    text = f"<think>{text}</think><answer>At <t>{claims[0][1]}</t>s</answer>"
    return Response(np.zeros(0, int), np.zeros(0), text, tuple(estimates), search=search)


def test_one_claim_of_what_is_asked_for_is_enough():
    said = response(("red circle", 1.0, 0.0), ("red star", 2.0, 0.0))
    assert named_otherwise(said, "When is the red star visible?") == []
    assert named_otherwise(said, "When is the red square visible?") == [
        ("red circle", 1.0),
        ("red star", 2.0),
    ]
    nothing = Response(np.zeros(0, int), np.zeros(0), "<answer>never</answer>")
    assert named_otherwise(nothing, "When is the red square visible?") is None


def test_a_name_is_believed_where_both_boxes_agree():
    for beside, others in ((0.0, 1), (0.06, 1), (0.07, 0), (0.5, 0)):  # IoU 1, 0.54, 0.48, 0
        said = response(("red circle", 1.0, beside))
        assert len(named_otherwise(said, "When is the red star visible?") or ()) == others
    assert named_otherwise(said, "Which is first, the red star or the red square?") == [("red circle", 1.0)]
    plain = dataclasses.replace(said, estimates=())
    assert named_otherwise(plain, "When is the red star visible?") is None


class Film:
    """What is named at some seconds, read one after the other."""

    def __init__(self, question, *seen, lost=(), every_s=None, unread=0):
        self.question, self.seen, self.excluded, self.unread = question, list(seen), [], unread
        uniform = every_s is not None
        self.search = Search(
            passes=(Pass(name="uniform", every_s=every_s, read=9, decoded=9),) if uniform else (),
            intervals=(),
            uniform=uniform,
            why=Note("uniform" if uniform else "searched", 1),
            frames=9,
            budget=9,
            lost=lost,
        )

    def request(self, number):
        def further(times):
            self.excluded.append(times)
            return (self.request(number + 1), f"clip {number + 1}") if number + 1 < len(self.seen) else None

        unread = len(self.seen) - number - 1 + self.unread
        search = dataclasses.replace(self.search, unread=unread)
        frames = np.zeros((number, 1, 1, 3), np.uint8)
        return Request(self.question, "", frames, {}, search=search, further=further)

    def respond(self, requests):
        return [self.said(len(requests[0].frames), requests[0])]

    def said(self, number, request):
        name, time_s, *beside = self.seen[number]
        return response((name, time_s, *(beside or [0.0])), search=request.search)

    def found(self, language="en", exact_names=True):
        request = self.request(0)
        return search_on(self.respond, request, "clip 0", self.said(0, request), language, exact_names)


WHEN = "When does the red star appear?"


def test_what_is_asked_for_ends_the_search():
    film = Film(WHEN, ("red circle", 5.0), ("red square", 70.0), ("red star", 90.0), ("red star", 95.0))
    found, request, clip = film.found()
    assert "<t>90.0</t>" in found.text and not found.never and clip == "clip 2"
    assert len(request.frames) == 2 and film.excluded == [[5.0], [70.0]]
    film = Film(WHEN, ("red star", 90.0), ("red star", 95.0))
    assert "<t>90.0</t>" in film.found()[0].text and film.excluded == []


def test_it_never_appears_where_all_that_is_alike_is_something_else():
    found, _, clip = Film(WHEN, ("red circle", 5.0), ("red square", 70.0)).found()
    assert found.text == "<answer>It never appears.</answer>" and clip == "clip 0"
    assert found.never == "what is most like it, at 5.0 s, is named red circle"
    found, *_ = Film("红色星形何时出现?", ("红色圆形", 5.0)).found("zh")
    assert found.text == "<answer>它从未出现。</answer>" and "红色圆形" in found.never.text("zh")
    assert found.search.unread == 0


def test_nothing_relevant_never_appears():
    found, *_ = Film(WHEN, ("red star", 5.0), every_s=60.0).found()
    assert "never" in found.text and "nothing seemed relevant" in found.never


@pytest.mark.parametrize(
    "film",
    [
        Film("Which appears first, the red star or the dog?", ("red circle", 5.0), ("cat", 70.0)),
        Film(WHEN, ("red circle", 5.0), ("red circle", 70.0), unread=1),  # the budget is spent
        Film(WHEN, ("red circle", 5.0), lost=(60.0,)),  # it may be there
        Film(WHEN, ("red circle", 5.0), lost=(60.0,), every_s=60.0),
        Film(WHEN, ("red circle", 5.0), every_s=1.0),  # what it saw of the whole video
        Film(WHEN, ("red circle", 5.0), ("red square", 70.0, 0.5), ("red square", 80.0)),  # hardly seen
        Film("When does the red star appear after 3 s?", ("red circle", 5.0)),
        Film(WHEN, *[("red circle", float(t)) for t in range(5, 80)]),
    ],
)
def test_what_is_not_certain_is_not_said(film):
    found, _, clip = film.found()
    assert "<t>5.0</t>" in found.text and not found.never and clip == "clip 0"
    assert len(film.excluded) < 10


def test_a_video_that_was_read_whole_is_answered_as_it_is():
    request = Request(WHEN, "", np.zeros(0), {})
    said = response(("red circle", 5.0, 0.0))
    assert search_on(pytest.fail, request, "clip", said, "en", True) == (said, request, "clip")
