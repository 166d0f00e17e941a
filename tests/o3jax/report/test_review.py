"""Reviews are written and read back, and what is no review is named by its field."""

from __future__ import annotations

import json

import pytest

from o3jax.errors import UserError
from o3jax.grounding import Grounding
from o3jax.report import review


def test_a_review_is_read_as_it_was_written(tmp_path):
    path = review.review_path(tmp_path / "answer-1.json")
    assert path.name == "answer-1.review.json"
    fixed = Grounding("red car", 2.5, (2.0, 3.5), ((0.1, 0.2, 0.5, 0.9),))
    said = review.Review(verdict="fixed", answer="at 2.5 s", evidence=(fixed,), note="late")
    review.write_review(path, said)
    assert review.read_review(path) == said
    # As a page of JavaScript sends it.
    sent = {
        "verdict": "fixed",
        "answer": "at 2.5 s",
        "note": "late",
        "evidence": [{"object": "red car", "time_s": 2.5, "box": [0.1, 0.2, 0.5, 0.9], "interval": [2, 3.5]}],
    }
    assert json.loads(path.read_text()) == sent
    assert review.from_dict({"verdict": "right"}) == review.Review(verdict="right")


@pytest.mark.parametrize(
    "change, named",
    [
        ({"verdict": "maybe"}, "verdict"),
        ({"verdict": None}, "verdict"),
        ({"answer": 3}, "answer"),
        ({"other": 1}, "other"),
        ({"evidence": {}}, "evidence"),
        ({"evidence": [1]}, r"evidence\[0\]"),
        ({"evidence": [{"object": "x", "time_s": float("nan")}]}, r"evidence\[0\].time_s"),
        ({"evidence": [{"object": "x", "time_s": -1}]}, r"evidence\[0\].time_s"),
        ({"evidence": [{"object": "x", "time_s": 0, "box": [0.5, 0, 0.4, 1]}]}, r"evidence\[0\].box"),
        ({"evidence": [{"object": "x", "time_s": 0, "box": [0, 0, 2, 1]}]}, r"evidence\[0\].box"),
        ({"evidence": [{"object": "x", "time_s": 0, "interval": [3, 2]}]}, r"evidence\[0\].interval"),
        ({"evidence": [{"object": 5, "time_s": 0}]}, r"evidence\[0\].object"),
    ],
)
def test_what_is_wrong_is_named(change, named):
    with pytest.raises(UserError, match=named):
        review.from_dict({"verdict": "fixed"} | change)
