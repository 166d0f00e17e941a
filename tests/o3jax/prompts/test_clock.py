"""Seconds of a model and seconds of a video: the numbers are worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from o3jax.prompts.clock import Clock, named_times

TWO = Clock.of_windows([(100.0, 112.0), (300.0, 304.0)], pace=2.0)  # shown from 0 to 6, and from 6 to 8


@pytest.mark.parametrize(("video", "model"), [(100, 0), (106, 3), (112, 6), (302, 7), (304, 8)])
def test_both_ways(video, model):
    assert TWO.to_model(float(video)) == pytest.approx(model, abs=0.002)
    assert TWO.to_video(float(model)) == pytest.approx(video, abs=0.005)


def test_what_is_not_shown_is_the_nearest_part():
    assert TWO.to_model(0.0) == 0.0 and TWO.to_model(9999.0) == pytest.approx(8.001)
    assert TWO.to_video(99.0) == 304.0


def test_parts_are_apart():
    np.testing.assert_allclose(TWO.apart(np.array([0.0, 5.9, 6.1, 7.0]), 100.0), [0, 5.9, 106.1, 107])


def test_what_the_model_says():
    text = (
        "red circle 0.5-2.0; 2 of them. <obj>red circle</obj><box>[0.115,0.160,0.440,0.485]</box>"
        "at<t>1.0</t>s [430,200,650,420] <box>[1,2,3,4]</box> to <t>7.0</t>s."
    )
    said, ends = TWO.said(text, [text.index("; 2"), text.index("</t>s ["), len(text)])
    assert said == (
        "red circle 101.0-104.0; 2 of them. <obj>red circle</obj><box>[0.115,0.160,0.440,0.485]</box>"
        "at<t>102.0</t>s [430,200,650,420] <box>[1,2,3,4]</box> to <t>302.0</t>s."
    )
    assert ends == [said.index("; 2"), said.index("</t>s ["), len(said)]


@pytest.mark.parametrize("character", ["[", "1.", "<box>", "9", "1.5 "])
def test_any_text_takes_linear_time(character):
    assert TWO.said(character * 50_000)[0] or True


@pytest.mark.parametrize(
    ("question", "named", "asked"),
    [
        ("Where is it at 106.0 s?", [106.0], "Where is it at 3.0 s?"),
        ("在110秒,它在哪里?", [110.0], "在5.0秒,它在哪里?"),
        ("What happens at 1:50 and at 0:05:03?", [110.0, 303.0], "What happens at 5.0 s and at 7.5 s?"),
        ("How many of the 3 squares are red?", [], "How many of the 3 squares are red?"),
        ("What is at 110 seconds?", [110.0], "What is at 5.0 seconds?"),
        ("4 stars in 12 shops", [], "4 stars in 12 shops"),
    ],
)
def test_times_in_questions(question, named, asked):
    assert named_times(question) == named
    assert TWO.asked(question) == asked
