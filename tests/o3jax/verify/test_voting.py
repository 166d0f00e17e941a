"""Votes, by hand."""

from __future__ import annotations

import pytest

from o3jax.verify.voting import CROPPED, evidence_weight, vote


@pytest.mark.parametrize(
    "answers, weights, won",
    [
        (["red", "blue", "blue"], None, 1),
        (["red", "blue"], None, 0),  # a tie: the first
        (["red", "blue", "Blue "], [0.9, 0.2, 0.3], 0),
        (["red", "blue", "Blue "], [0.4, 0.2, 0.3], 2),  # the heavier of those that say the same
        (["From <t>0.0</t>s to <t>2.0</t>s", "red", "From <t>0.2</t>s to <t>2.2</t>s"], None, 0),
        (["At <t>1.0</t>s", "At <t>3.0</t>s", "At <t>3.3</t>s"], None, 1),
        (["a"], [0.0], 0),
        (["", "", "red"], None, 0),
    ],
)
def test_vote(answers, weights, won):
    assert vote(answers, weights) == won


@pytest.mark.parametrize(
    "reply, weight", [("0", 0.2), ("1", 0.6), (" 2\n", 1.0), ("2.", 0.2), ("two", 0.2), ("", 0.2)]
)
def test_published_weights(reply, weight):
    assert evidence_weight(reply) == weight


def test_only_claims_with_one_box_and_a_time_are_cropped():
    text = (
        "<obj>a</obj><box>[1,2,3,4]</box>at<t>1.0</t>s <obj>b</obj><box>[1,2,3,4]</box>"
        "<box>[5,6,7,8]</box>at<t>2.0</t>s <obj>c</obj>at<t>3.0</t>s"
    )
    assert CROPPED.findall(text) == [("a", "[1,2,3,4]", "1.0")]
