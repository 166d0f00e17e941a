"""Prompts word for word as the published evaluations have them, from notes on their code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipelines.formats.benchmarks import registry
from data_pipelines.formats.benchmarks.item import BoxesAt, Item
from experiments.evaluation.benchmarks import judge

PUBLISHED = json.loads(Path(__file__).with_name("published_prompts.json").read_text(encoding="utf-8"))
_SYSTEM, _JUDGE = PUBLISHED.pop("videozerobench/system"), PUBLISHED.pop("vstar/judge")
BOXES = [{"timestamp": 2, "frame_index": 50, "xmin": 10, "ymin": 20, "xmax": 30, "ymax": 40}] * 2
ITEM = Item(
    "1",
    "v.mp4",
    "What does the man open?",
    "B",
    ("a door", "a box", "a book", "a jar"),
    intervals=((1.5, 4.25), (6.0, 7.0)),
    boxes=(BoxesAt(2.5, ((0.1, 0.2, 0.3, 0.4),)),),
    duration=60.52,
    tags={
        "temporal_question": "When?",
        "spatial_question": "Where is it?",
        "spatial_question_2": "Where is it?",
        "width": 640,
        "height": 360,
        "bboxes": BOXES,
        "language": "en",
        "track": "Adaptation",
        "image": None,
    },
)
FILLED = {
    "question": ITEM.question,
    "options": "A. a door\nB. a box\nC. a book\nD. a jar",
    "temporal_question": "When?",
    "spatial_question": "Where is it?",
    "seconds": "60.52",
    "whole_seconds": "61",
    "whole": "[2, 3, 4]",  # from ceil(1.5) to floor(4.25)
    "first": "2",
    "n": "2",
    "bboxes": "[[10, 20, 30, 40], [10, 20, 30, 40]]",
    "w": "640",
    "h": "360",
}


@pytest.mark.parametrize("key", PUBLISHED)
def test_prompts_are_the_published_ones(key):
    name, harness, part = key.split("/")
    published = PUBLISHED[key]
    for placeholder, value in FILLED.items():
        published = published.replace(f"{{{placeholder}}}", value)
    (prompt,) = (one for one in registry.FORMATS[name].prompts[harness](ITEM) if one.part == part)
    assert prompt.text == published
    if name in ("vstar", "videozerobench"):
        assert prompt.system == (_SYSTEM if name == "videozerobench" else "You are a helpful assistant.")


def test_the_judge_is_asked_as_published():
    assert judge.SYSTEM == _JUDGE
    assert judge.USER.format("q", "g", "c") == (
        "Question: q\nGroundtruth answer: g\nCandidate answer: c\nYour response: "
    )


def test_chinese_questions_are_asked_in_chinese():
    chinese = Item("1", "v.mp4", "几个?", "3", tags={"language": "cn"})
    (prompt,) = (
        p for p in registry.FORMATS["videozerobench"].prompts["official"](chinese) if p.part == "level3"
    )
    assert prompt.text.endswith("\n请直接输出问题的最终答案。")
