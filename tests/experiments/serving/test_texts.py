"""What is streamed of a text is what its reader keeps: pieces only follow each other."""

from __future__ import annotations

import threading

import pytest

from experiments.serving.shared import Shared
from experiments.serving.texts import shown

WHOLE = (
    "<think>A cat, <obj>red car</obj><box>[250,490,590,820]</box>at<t>4.0</t>s, then <obj>dog</obj>."
    "</think>\n"
    "<answer>From <t>2.50</t>s to <t>5</t>s, if a < b; <obj>x</obj> at last</answer>"
)


@pytest.mark.parametrize(
    "text, reasoning, answer",
    [
        (WHOLE, "A cat, red car (4.0 s), then dog.", "From 2.5 s to 5.0 s, if a < b; x at last"),
        ("Plain words, <t>3</t>s.", "", "Plain words, 3.0 s."),
        ("<think>never closed <obj>y", "never closed y", ""),
        ("<think>a</think>the rest", "a", "the rest"),
        ("<answer>no end", "", "no end"),
        ("", "", ""),
    ],
)
def test_pieces_follow_each_other(text, reasoning, answer):
    assert shown(text, "en", final=True) == (reasoning, answer)
    before, steps = ("", ""), set()
    for end in range(len(text) + 1):
        now = shown(text[:end], "en", final=False)
        assert all(new.startswith(old) for new, old in zip(now, before, strict=True)), (end, before, now)
        before = now
        steps.add(now)
    assert reasoning.startswith(before[0]) and answer.startswith(before[1])
    assert len(steps) > 8 or len(text) < 30  # it is not held back to the end


def test_times_are_written_in_the_language():
    assert shown("<answer>在<t>2.5</t>秒</answer>", "zh", final=True) == ("", "在2.5秒")


def test_half_a_character_is_held_back():
    assert shown("<answer>it is \ufffd", "en", final=False)[1] == "it is"


def test_what_is_shared_is_made_once():
    shared, made, gate = Shared(100), [], threading.Event()

    def make():
        made.append(1)
        gate.wait(5)
        return "value"

    found = []
    threads = [
        threading.Thread(target=lambda: found.append(shared.get("a", make, lambda _: 60))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert found == ["value"] * 5 and made == [1]
    shared.get("b", lambda: 1, lambda _: 60)  # there is no room for both
    shared.get("a", make, lambda _: 60)
    assert made == [1, 1]
    with pytest.raises(ZeroDivisionError):
        shared.get("c", lambda: 1 / 0, lambda _: 1)
    assert shared.get("c", lambda: 5, lambda _: 1) == 5  # an error is not kept
