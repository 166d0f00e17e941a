"""Rewards take time that is linear in the length of what a model prints, whatever that is."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from o3jax.rewards import article, open_o3, overlap
from o3jax.rewards.rouge import MAX_CHARACTERS, MAX_WORDS, rouge
from o3jax.tasks import SPATIO_TEMPORAL, TEMPORAL_MCQ, VISUAL
from tests.o3jax.rewards.test_rewards_properties import ANSWER, RECORDS


def steps(function: Callable[[], object]) -> int:
    """Returns how many lines and calls of Python a function takes."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


UNITS = [
    "<box>[1,2,3,4]</box>",
    "<obj>a</obj><box>[1,2,3,4]</box>at<t>1</t>s",
    "<t>1</t>s to ",
    "<obj>a</obj>",
]
UNITS += [
    "<think>",
    "<answer>",
    "<obj>",
    "<box>[",
    "]</box>",
    "]</box>at<t>",
    "<t>",
    "[",
    "1",
    "1.",
    " ",
    "\n",
    "y",
]
UNITS += ["<obj>a</obj><box>[", "<box>[[[[", "running ", "红", "</obj><box>[1,2,3,4]</box>"]
FRAMES = ["{}", "<think>{}</think><answer>soup</answer>", "<think>x</think><answer>{}</answer>"]
FRAMES += ["<think><t>{}x</think><answer><t>{}x</answer>"]
FRAMES += ["<think><obj>a</obj><box>[1]</box>{}at<t>x</think><answer><box>[{}]</box></answer>"]


REWARDS = {
    "compat": open_o3.score,
    "paper": open_o3.score_paper,
    "article": article.score,
    "overlap": overlap.score,
}


def hostile(size: int) -> Iterator[str]:
    for unit in UNITS:
        for frame in FRAMES:
            yield frame.replace("{}", unit * (size // len(unit) // frame.count("{}")))


@pytest.mark.parametrize("task", [SPATIO_TEMPORAL, VISUAL, TEMPORAL_MCQ])
@pytest.mark.parametrize("reward", REWARDS.values(), ids=REWARDS)
def test_twice_the_text_takes_at_most_twice_the_steps(reward, task):
    """Counted, not timed; what runs inside one step is linear by itself (find, split, json)."""
    rouge("warm", "up")
    for short, long in zip(hostile(1500), hostile(3000), strict=True):
        once, twice = (steps(lambda text=text: reward(text, RECORDS[task])) for text in (short, long))
        assert twice <= 2.2 * once + 300, (short[:60], once, twice)


@pytest.mark.parametrize("reward", REWARDS.values(), ids=REWARDS)
def test_four_times_the_text_takes_about_four_times_as_long(reward):
    """Inside one step nothing backtracks either: what is quadratic takes 16 times as long, the published
    pattern for claims years."""

    def seconds(text: str) -> float:
        record, start = RECORDS[TEMPORAL_MCQ if "<t>" in text else SPATIO_TEMPORAL], time.process_time()
        reward(text, record)
        return time.process_time() - start

    gc.disable()  # how long a collection takes has nothing to do with the text
    try:
        for short, long in zip(hostile(12_500), hostile(50_000), strict=True):
            ratios = (seconds(long) / (seconds(short) + 0.005) for _ in range(3))
            assert any(ratio < 9 for ratio in ratios), long[:60]
    finally:
        gc.enable()


def test_a_long_answer_is_judged_by_its_beginning():
    many = "He lifts the lid " * 300  # 1,200 words
    assert rouge(many, ANSWER) == rouge("He lifts the lid " * (MAX_WORDS // 4), ANSWER) > 0
    one = "a" * 2 * MAX_CHARACTERS
    assert rouge(f"{one} lid", "lid") == 0.0 and rouge(f"{one[:100]} lid", "lid") > 0
