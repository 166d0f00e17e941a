"""The registry of rewards, and the published term for the format on hand-made completions."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3jax.errors import UserError
from o3jax.rewards import registry
from o3jax.rewards.open_o3 import format_term
from o3jax.tasks import TASKS

SPATIO_TEMPORAL, TEMPORAL, TEMPORAL_MCQ, VISUAL, MCQ, FREE = TASKS
CLAIM = "<obj>man</obj><box>[1,2,3,4]</box>at<t>5.0</t>s"


@pytest.mark.parametrize(
    ("think", "answer", "task", "score"),
    [
        ("", "A", MCQ, 1.0),
        ("it is", "A man", FREE, 1.0),
        (CLAIM, "A man", SPATIO_TEMPORAL, 1.0),
        ("it is", "A man", SPATIO_TEMPORAL, 0.5),
        ("<obj>man</obj> at <t>5</t>s", "A man", SPATIO_TEMPORAL, 0.5),  # no box
        ("<obj>man at <t>5</t>s", "A man", SPATIO_TEMPORAL, 0.0),
        ("<t>5</t>s to <t>6</t>s", "From <t>5</t>s to <t>6</t>s", TEMPORAL, 1.0),
        ("<t>5</t>s", "From <t>5</t>s to <t>6</t>s", TEMPORAL, 0.5),  # those of the answer do not count
        ("<t>5</t>s <t>6</t>s", "A", TEMPORAL_MCQ, 1.0),
        ("<t>5</t>s <t>6</t>s</t>", "A", TEMPORAL_MCQ, 0.0),
        ("", "<obj>dog</obj><box>[1, 2, 3, 4]</box>", VISUAL, 1.0),
        ("", "<obj>big dog</obj><box>[1, 2, 3, 4]</box>", VISUAL, 0.5),  # as the published pattern has it
        ("", "<obj>dog</obj><box>[1, 2,\n3, 4]</box>", VISUAL, 0.5),
        ("", "<obj>dog</obj>", SPATIO_TEMPORAL, 0.5),  # tags in the answer are not judged
        ("", "<obj>dog", SPATIO_TEMPORAL, 0.5),
    ],
)
def test_the_published_format(think, answer, task, score):
    text = f"<think>{think}</think>\n<answer>{answer}</answer>"
    assert format_term(text, {"task": task}) == score
    assert registry.total("format", text, {"task": task}) == score


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "<think>a</think>",
        "<answer>a</answer>",
        "<think>a<answer>b</answer>",
        "<think>a</think><think>b</think></think><answer>c</answer>",
        "<think>a</think><answer>b</answer></answer>",
    ],
)
def test_without_both_blocks_it_is_nothing(text):
    assert format_term(text, {"task": MCQ}) == 0.0


PIECES = ["<obj>", "</obj>", "<box>", "</box>", "[1]", "[", "]", "dog", " ", "\n", "<obj>dog</obj><box>["]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_the_line_search_is_the_published_pattern(text):
    published = re.search(r"<obj>(\w+)</obj><box>(\[.*?\])</box>", text)
    wrapped = f"<think>x</think><answer>{text}</answer>"
    assert (format_term(wrapped, {"task": VISUAL}) == 1.0) == bool(published)


def test_names_of_several_words_are_the_papers():
    text = "<think></think><answer><obj>big dog</obj><box>[1, 2, 3, 4]</box></answer>"
    assert format_term(text, {"task": VISUAL}, "paper") == 1.0
    assert format_term(text.replace("big", "big\n"), {"task": VISUAL}, "paper") == 0.5


def test_rewards_are_found_by_name(monkeypatch):
    with pytest.raises(UserError, match="'good' is unknown; use one of format"):
        registry.total("good", "", {})
    monkeypatch.setitem(registry.REWARDS, "terms", lambda text, sample: {"a": 1, "total": len(text)})
    assert registry.total("terms", "four", {}) == 4.0
    monkeypatch.setitem(registry.REWARDS, "sum", lambda text, sample: {"a": 1, "b": len(text)})
    assert registry.total("sum", "four", {}) == 5.0
    record = {"task": MCQ, "answer": "B", "duration": 5.0, "evidence": []}
    for name in (
        "open_o3",
        "open_o3_paper",
        "article",
        "article_literal",
        "tests.o3jax.rewards.test_rewards:own",
    ):
        assert registry.total(name, "<think></think><answer>B</answer>", record) == 2.0


def own(text, sample):
    return 2
