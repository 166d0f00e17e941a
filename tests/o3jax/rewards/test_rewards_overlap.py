"""The dense rewards on hand-made completions, against brute force, and against what could game them."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3jax.errors import UserError
from o3jax.metrics.boxes import box_iou
from o3jax.prompts import grammar
from o3jax.rewards import registry
from o3jax.rewards.overlap import score

RECORD = {
    "task": "temporal-spatial free-form QA",
    "answer": "red star",
    "evidence": [{"object": "red star", "time": 2.0, "box": [0.1, 0.2, 0.3, 0.6]}],
    "intervals": [[1.0, 3.0]],
}


def said(think: str, answer: str = "red star") -> str:
    return f"<think>{think}</think>\n<answer>{answer}</answer>"


def claim(box: str = "100,200,300,600", time: str = "2.0") -> str:
    return f"<obj>red star</obj><box>[{box}]</box>at<t>{time}</t>s"


VISIBLE = ", visible from <t>1.0</t>s to <t>3.0</t>s."


@pytest.mark.parametrize(
    ("think", "terms"),
    [
        (claim() + VISIBLE, {"evidence": 1, "interval": 1, "answer": 1, "format": 1}),
        (claim("200,200,400,600"), {"evidence": 1 / 3, "interval": 0}),
        (claim(time="3.0"), {"evidence": math.exp(-1 / 2)}),
        (claim("200,200,400,600", "1.0"), {"evidence": math.exp(-1 / 2) / 3}),
        (claim("500,200,700,600"), {"evidence": 0}),
        (claim() + claim("500,500,600,600"), {"evidence": 1 / 2}),  # a guess beside the right one costs
        (claim("100,200,300,600", "x"), {"evidence": 0}),  # no time
        ("<obj>red star</obj>at<t>2.0</t>s", {"evidence": 0}),  # no box
        ("from <t>2.0</t>s to <t>4.0</t>s", {"interval": 1 / 3, "evidence": 0}),
        ("from <t>1.0</t>s to <t>3.0</t>s, from <t>4.0</t>s to <t>5.0</t>s", {"interval": 1 / 2}),
        ("", {"evidence": 0, "interval": 0, "answer": 1, "format": 0.5}),
    ],
)
def test_terms_by_hand(think, terms):
    got = score(said(think), RECORD)
    assert {name: got[name] for name in terms} == pytest.approx(terms)
    assert registry.total("overlap", said(think), RECORD) == pytest.approx(sum(got.values()))


def test_what_the_truth_lacks_is_not_asked_for():
    only_box = RECORD | {"evidence": [{"time": None, "box": [0.1, 0.2, 0.3, 0.6]}], "intervals": []}
    assert score(said("<obj>red star</obj><box>[100,200,300,600]</box>"), only_box)["evidence"] == 1
    assert "interval" not in score(said(claim()), only_box)
    only_time = RECORD | {"evidence": [{"time": 2.0, "box": None}]}
    assert score(said("<obj>red star</obj>at<t>2.0</t>s"), only_time)["evidence"] == 1
    assert score(said(claim()), RECORD | {"evidence": []})["evidence"] == 0


@pytest.mark.parametrize(("time", "off"), [("1.0", 0), ("2.9", 0), ("4.0", 1), ("0.0", 1), ("6.5", 3.5)])
def test_inside_an_interval_any_time_is_right(time, off):
    for beside in ({}, {"time": 9.0}):  # the interval goes before it
        evidence = [{"interval": [1.0, 3.0], "box": [0.1, 0.2, 0.3, 0.6]} | beside]
        got = score(said(claim(time=time)), RECORD | {"evidence": evidence})["evidence"]
        assert got == pytest.approx(math.exp(-(off**2) / 2))
    assert (
        score(said("<obj>red star</obj><box>[100,200,300,600]</box>"), RECORD | {"evidence": evidence})[
            "evidence"
        ]
        == 0
    )  # no time


def test_the_width_of_the_gaussian_is_an_option():
    assert score(said(claim(time="3.0")), RECORD, near_s=0.5)["evidence"] == pytest.approx(math.exp(-2))
    with pytest.raises(UserError, match="near_s .* is 0; write seconds above 0"):
        score(said(claim()), RECORD, near_s=0)


_box = st.tuples(*[st.integers(0, 1000)] * 4).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]) + 1, max(b[1], b[3]) + 1)
)
_items = st.lists(st.tuples(_box, st.integers(0, 60).map(lambda t: t / 10)), max_size=4)


@settings(max_examples=60, deadline=None)
@given(_items, _items)
def test_the_matching_is_the_best_one(truths, claims):
    record = RECORD | {"evidence": [{"time": t, "box": [v / 1000 for v in box]} for box, t in truths]}
    text = "; ".join(claim(",".join(map(str, box)), f"{t}") for box, t in claims)
    read = [(c.boxes[0], c.time_s) for c in grammar.parse(text).claims]
    assert len(read) == len(claims)

    def worth(truth, one):
        return math.exp(-((truth[1] - one[1]) ** 2) / 2) * box_iou([v / 1000 for v in truth[0]], one[0])

    few, many = sorted((truths, read), key=len)
    best = max(
        (
            sum(worth(a, b) if few is truths else worth(b, a) for a, b in zip(few, order, strict=True))
            for order in itertools.permutations(many, len(few))
        ),
        default=0.0,
    )
    got = score(said(text), record)
    assert got["evidence"] == pytest.approx(best / max(len(many), 1), abs=1e-9)
    assert all(0 <= value <= 1 for value in got.values())


def test_nothing_beats_an_honest_answer():
    honest = registry.total("overlap", said(claim("120,220,320,620", "2.3") + VISIBLE), RECORD)
    games = [
        "",
        claim("0,0,1000,1000") + VISIBLE,
        claim("120,220,320,620", "2.3") * 5 + VISIBLE,
        "".join(claim(time=f"{t / 2}") for t in range(12)) + VISIBLE,
        claim() * 2000 + VISIBLE * 2000,
    ]
    assert all(registry.total("overlap", said(text), RECORD) < honest for text in games)
