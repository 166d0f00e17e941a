"""The published rewards a second time, with the published patterns as they stand, on short texts."""

from __future__ import annotations

import functools
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from o3jax.rewards import open_o3
from o3jax.tasks import FREE_FORM, MCQ, SPATIO_TEMPORAL, TASKS, TEMPORAL, TEMPORAL_MCQ, VISUAL
from tests.o3jax.rewards.test_rewards_open_o3 import HALF, MAN, RECORDS, SPATIAL, claim


def area_iou(a, b) -> float:
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    sizes = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return width * height / (sum(sizes) - width * height) if width * height else 0.0


def four(text: str):
    try:
        box = json.loads(text)
        return box if len(box) == 4 and all(math.isfinite(v) for v in box) else None
    except (ValueError, TypeError):
        return None


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.DOTALL)
    return match[1] if match else ""


def published(text: str, task: str, step: float) -> dict[str, float]:
    terms = dict.fromkeys(open_o3.TERMS, 0.0)
    think, answer = found("<think>(.*?)</think>", text), found(r"<answer>\s*(.*?)\s*</answer>", text)
    wanted_box = [50, 20, 100, 40]
    if task == MCQ:
        terms["ans_acc"] = answer.strip() in ("B", "B.", "(B)", "[B]")
    if task in (FREE_FORM, SPATIO_TEMPORAL):
        terms["ans_acc"] = library_rouge(answer)
    if task in (TEMPORAL, TEMPORAL_MCQ):
        if match := re.search(r"<t>(\d+\.?\d*)</t>s to <t>(\d+\.?\d*)</t>s", answer):
            s, e = map(float, match.groups())
            terms["ans_tiou"] = max(0, min(e, 20) - max(s, 10)) / (max(e, 20) - min(s, 10)) if e >= s else 0
        if task == TEMPORAL_MCQ and "Correct Option:" in answer:
            terms["ans_acc"] = answer.split("Correct Option:", 1)[1].strip() in ("B", "B.", "(B)", "[B]")
    if task == VISUAL:
        first = re.search(r"<box>(\[.*?\])</box>", answer)
        terms["ans_viou"] = area_iou(wanted_box, four(first[1])) if first and four(first[1]) else 0
        boxes = filter(None, map(four, re.findall(r"<box>(\[.*?\])</box>", think)))
        both = "<answer>" in text and "</answer>" in text.split("<answer>", 1)[1]
        terms["thk_spatial"] = max((area_iou(wanted_box, b) for b in boxes), default=0) if both else 0
    try:
        times = [float(t) for t in re.findall(r"<t>([\d.]+)</t>s", think)]
    except ValueError:
        times = []
    if task in (TEMPORAL, TEMPORAL_MCQ) and times:
        terms["thk_temporal_segment"] = sum(10 <= t <= 20 for t in times) / len(times)
    if task == SPATIO_TEMPORAL and times:
        sigma = 4 * (1 - step) if step < 0.75 else 1
        near = [min(abs(t - 5.0), abs(t - 9.2)) for t in times]
        terms["thk_temporal_point"] = sum(math.exp(-(d**2) / (2 * sigma**2)) for d in near) / len(near)
    if task == SPATIO_TEMPORAL and "<answer>" in text and "</answer>" in text.split("<answer>", 1)[1]:
        terms["thk_spatial"] = published_claims(think)
    terms["format"] = published_format(text, task)
    return {name: float(value) for name, value in terms.items()}


def published_format(text: str, task: str) -> float:
    def even(part: str, *tags: str) -> bool:
        return all(len(re.findall(f"<{t}>", part)) == len(re.findall(f"</{t}>", part)) for t in tags)

    think = re.search("<think>(.*?)</think>", text, re.DOTALL)
    answer = re.search("<answer>(.*?)</answer>", text, re.DOTALL)
    if not (think and answer and even(text, "think", "answer") and even(think[1], "obj", "t", "box")):
        return 0.0
    if task in (TEMPORAL, TEMPORAL_MCQ):
        return 1.0 if think[1].count("<t>") >= 2 else 0.5
    named = task == VISUAL and re.search(r"<obj>(\w+)</obj><box>(\[.*?\])</box>", text)
    shown = all(think[1].count(tag) for tag in ("<obj>", "<t>", "<box>"))
    return 1.0 if named or shown or task in (MCQ, FREE_FORM) else 0.5


def published_claims(think: str) -> float:
    scores = []
    pattern = r"<obj>(.*?)</obj>((?:<box>\[.*?\]</box>)+)at<t>(.*?)</t>s"
    for _, boxes, time in re.findall(pattern, think, re.DOTALL):
        claimed = [four(b) for b in re.findall(r"<box>(\[.*?\])</box>", boxes)]
        try:
            seconds = float(time)
        except ValueError:
            continue
        if not claimed or None in claimed:
            continue
        frames = [f for f in SPATIAL["key_frames"] if f["time"] - seconds < 1.0]
        if not frames:
            scores.append(0.0)
            continue
        frame = min(frames, key=lambda f: abs(f["time"] - seconds))
        objects = SPATIAL["key_items"][str(frame["idx"])].values()
        scaled = [[[v * s for v, s in zip(b, (400, 200) * 2, strict=True)] for b in o] for o in objects]
        scores.append(max(sum(max(area_iou(b, c) for c in claimed) for b in o) / len(o) for o in scaled))
    return sum(scores) / len(scores) if scores else 0.0


@functools.cache
def library_rouge(answer: str) -> float:
    kinds = ["rouge1", "rouge2", "rougeL"]
    scores = rouge_scorer.RougeScorer(kinds, use_stemmer=True).score("He stirs the soup.", answer)
    return sum(scores[kind].fmeasure for kind in kinds) / 3


PIECES = [
    *(
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<obj>",
        "</obj>",
        "<box>[",
        "]</box>",
        "<box>",
        "</box>",
    ),
    *(
        "at<t>",
        "</t>s",
        "<t>",
        "</t>",
        "100,40,200,160",
        "50,20,75,40",
        "5",
        "9.2",
        "12",
        "1.2.3",
        " to ",
        "\n",
    ),
    *("B", "Correct Option: ", "soup", "man", " ", "]", claim(5), claim(8, "[0,0,100,100]"), claim(2, HALF)),
    *(f"<box>{MAN}</box>", "<t>12</t>s to <t>30.5</t>s", "</think><answer>"),
    *("<obj>two men</obj>", "<obj>pot</obj>"),
]


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=14).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.booleans(),
    st.sampled_from(TASKS),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_published_patterns_give_the_same(think, answer, whole, task, step):
    text = f"<think>{think}</think><answer>{answer}</answer>" if whole else think + answer
    assert open_o3.score(text, RECORDS[task], step) == pytest.approx(published(text, task, step))
