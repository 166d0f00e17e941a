"""The evaluation on the synthetic world: scores against hand-worked cases."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.formats.sample import Sample
from data_pipelines.synthetic import scenes as synthetic
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import Object, Scene, Span, make_scene, scene_seed
from experiments.evaluation import figures, scores
from experiments.evaluation.scores import Question
from o3jax.grounding import Grounding
from o3jax.prompts import templates

# Two objects that stand still: red circle at [0.25, 0.5]^2 from 1 to 3 s, blue star at [0.5, 1]^2 from 2
# to 5 s.
SCENE = Scene(
    seed=2,
    level=1,
    duration=6.0,
    size=(128, 128),
    objects=(
        Object(
            "red", "circle", (215, 30, 40), (Span(25, 75, (48.0, 48.0), (0.0, 0.0), 32.0, 0.0),), (128, 128)
        ),
        Object(
            "blue", "star", (35, 75, 225), (Span(50, 125, (96.0, 96.0), (0.0, 0.0), 64.0, 0.0),), (128, 128)
        ),
    ),
    kinds=("interval", "where"),
)


def ask(kind: str, answer: str = "", language: str = "en") -> Question:
    """Returns a question that the red circle answers, with evidence at 2 s."""
    name = {"en": "red circle", "zh": "红色圆形"}[language]
    mention = Grounding(name, 2.0, boxes=((0.25, 0.25, 0.5, 0.5),))
    sample = Sample(
        f"q-{kind}", "test", "", "?", answer, mentions=(mention,), intervals=((1.0, 3.0),), kind=kind,
        language=language,
    )  # fmt: skip
    return Question(sample, SCENE)


def say(answer: str, think: str = "") -> str:
    return f"<think>{think}</think><answer>{answer}</answer>"


def unseen(count: int, level: int = 1) -> list[Question]:
    scenes = [make_scene(scene_seed("test", i), level) for i in range(-(-count // 2))]
    return [Question(sample, scene) for scene in scenes for sample in make_samples(scene)][:count]


def report(questions: list[Question], texts: list[str]) -> dict:
    return figures.report([scores.score(*pair) for pair in zip(questions, texts, strict=True)])


# The three scores of one generation


@pytest.mark.parametrize(
    ("kind", "truth", "answer", "right"),
    [
        ("interval", "", "From <t>1.0</t>s to <t>3.0</t>s", True),
        ("interval", "", "从<t>1.0</t>秒到<t>2.0</t>秒", True),  # IoU 1/2
        ("interval", "", "From <t>1.0</t>s to <t>1.9</t>s", False),
        ("interval", "", "From <t>4.0</t>s to <t>5.0</t>s, from <t>1.0</t>s to <t>3.0</t>s", False),
        ("interval", "", "1.0 to 3.0", False),
        ("appears", "", "At <t>1.5</t>s", True),
        ("appears", "", "在<t>0.5</t>s", True),
        ("appears", "", "At <t>1.6</t>s", False),
        ("appears", "", "At <t>0.4</t>s", False),
        ("appears", "", "soon", False),
        ("where", "", "<obj>it</obj><box>[250,250,500,500]</box>", True),
        ("where", "", "<obj>it</obj><box>[250,250,500,380]</box>", True),  # 0.52
        ("where", "", "<obj>it</obj><box>[250,250,500,370]</box>", False),  # 0.48
        ("where", "", "<obj>it</obj><box>[500,500,1000,1000]</box>", False),  # the other object
        ("where", "", "<obj>it</obj>", False),
        ("attribute", "red", " RED\n", True),
        ("attribute", "red", "ＲＥＤ", True),
        ("attribute", "red", "red circle", False),
        ("attribute", "红色", "红色", True),
        ("first", "red circle", "Red Circle", True),
        ("first", "red circle", "blue star", False),
        ("count", "2", "２", True),
        ("mcq", "B", "b", True),
        ("mcq", "B", "", False),
    ],
)
def test_answers_are_judged_by_the_rule_of_their_kind(kind, truth, answer, right):
    assert scores.score(ask(kind, truth), say(answer)).correct is right


@pytest.mark.parametrize(
    ("think", "t_iou", "v_iou", "v_iou_answer", "time_off"),
    [
        # The claim is inside the interval, the interval's end is 1 s off.
        ("<obj>red circle</obj><box>[250,250,500,500]</box>at<t>1.5</t>s From <t>1.0</t>s to <t>2.0</t>s",
         0.5, 1.0, 1.0, 1.0),
        # Half of the box; only the first claim and the first interval count.
        ("<obj>红色圆形</obj><box>[250,250,500,375]</box>at<t>2.0</t>s "
         "<obj>red circle</obj><box>[250,250,500,500]</box>at<t>2.0</t>s "
         "From <t>3.0</t>s to <t>5.0</t>s. From <t>1.0</t>s to <t>3.0</t>s", 0.0, 0.5, 0.5, 2.0),
        # The other object, truly where it is said to be; it is no answer.
        ("<obj>blue star</obj><box>[500,500,1000,1000]</box>at<t>2.0</t>s From <t>2.0</t>s to <t>5.0</t>s",
         0.25, 1.0, 0.0, 2.0),
        # No such object: the box is compared with that of the object that answers.
        ("<obj>green square</obj><box>[250,250,500,500]</box>at<t>2.0</t>s", 0.0, 1.0, 1.0, 0.0),
        # The red circle is gone at 4 s, also where the annotation looks; and at 9 s the clip is over.
        ("<obj>red circle</obj><box>[250,250,500,500]</box>at<t>4.0</t>s", 0.0, 0.0, 0.0, 1.0),
        ("<obj>red circle</obj><box>[250,250,500,500]</box>at<t>9.0</t>s", 0.0, 0.0, 0.0, 6.0),
        # No time, no box, nothing; what stands in the answer alone is no reasoning.
        ("<obj>red circle</obj><box>[250,250,500,500]</box>", 0.0, 0.0, 0.0, None),
        ("<obj>red circle</obj>at<t>0.5</t>s", 0.0, 0.0, 0.0, 0.5),
        ("red circle 1.0-3.0", 0.0, 0.0, 0.0, None),
    ],
)  # fmt: skip
def test_when_and_where_are_judged_on_the_reasoning(think, t_iou, v_iou, v_iou_answer, time_off):
    answer = "<obj>red circle</obj><box>[250,250,500,500]</box>at<t>2.0</t>s From <t>1.0</t>s to <t>3.0</t>s"
    scored = scores.score(ask("where"), say(answer, think))
    assert (scored.t_iou, scored.v_iou, scored.v_iou_answer) == pytest.approx((t_iou, v_iou, v_iou_answer))
    assert scored.time_off_s == (None if time_off is None else pytest.approx(time_off))


@pytest.mark.parametrize("time", ["1.5", "3.5"])
def test_a_claim_of_what_is_not_visible_finds_nothing(time):
    """Also at the annotated moment: the box of the object that answers is not that of the one claimed."""
    question = ask("where")
    mention = dataclasses.replace(question.sample.mentions[0], time_s=1.5)
    question = dataclasses.replace(question, sample=dataclasses.replace(question.sample, mentions=(mention,)))
    name = "blue star" if time == "1.5" else "red circle"  # seen from 2 s, and to 3 s
    text = say("", f"<obj>{name}</obj><box>[250,250,500,500]</box>at<t>{time}</t>s")
    scored = scores.score(question, text)
    assert scored.v_iou == 0.0
    assert scored.v_iou_answer == (1.0 if time == "1.5" else 0.0)  # whatever the claim calls it
    assert report([question], [text])["metrics"]["m_vIoU"] == 0.0


def test_a_moving_box_is_compared_at_the_claimed_time():
    span = Span(0, 150, (32.0, 64.0), (10.0, 0.0), 32.0, 0.0)
    scene = dataclasses.replace(SCENE, objects=(Object("red", "circle", (215, 30, 40), (span,), (128, 128)),))
    question = dataclasses.replace(ask("where"), scene=scene)
    # At 3.2 s it has moved by 32 px, a quarter of the frame.
    text = say("", "<obj>red circle</obj><box>[375,375,625,625]</box>at<t>3.2</t>s")
    assert scores.score(question, text).v_iou == pytest.approx(1.0)


# Metrics over several


def test_metrics_and_errors_of_hand_made_generations():
    """Answers: right, wrong, wrong, right; tIoU 1, 1/2, 0, 0; vIoU 1, 0, 0, 1/2."""
    box = "<obj>red circle</obj><box>[250,250,500,500]</box>at"
    half = "<obj>red circle</obj><box>[250,250,500,375]</box>at<t>2.0</t>s"
    questions = [ask("interval"), ask("interval"), ask("appears"), ask("attribute", "红色", "zh")]
    texts = [
        say("From <t>1.0</t>s to <t>3.0</t>s", f"{box}<t>2.0</t>s From <t>1.0</t>s to <t>3.0</t>s"),
        say("From <t>1.0</t>s to <t>1.8</t>s", f"{box}<t>6.5</t>s From <t>1.0</t>s to <t>2.0</t>s"),
        "",
        f"{half} <answer>红色</answer> and more",
    ]
    questions[1] = dataclasses.replace(
        questions[1], sample=dataclasses.replace(questions[1].sample, id="far")
    )
    result = report(questions, texts)
    m = result["metrics"]
    assert (m["N"], m["accuracy"], m["m_tIoU"]) == (4, 0.5, pytest.approx(1.5 / 4))
    # The last one's reasoning has no tags at all, so there is none.
    assert m["m_vIoU"] == m["m_vIoU_answer"] == pytest.approx(1 / 4)
    assert m["mAM"] == pytest.approx((0.5 + 0.375 + 0.25) / 3)
    assert m["mLGM"] == pytest.approx(-np.log([0.5, 0.625, 0.75]).mean())
    assert (m["time_error_mean_s"], m["time_error_median_s"]) == (pytest.approx(0.25), pytest.approx(0.0))
    assert m["tvg"] == {
        "mIoU": pytest.approx(0.7), "R1@0.3": 1.0, "R1@0.5": 0.5, "R1@0.7": 0.5, "N": 2,
    }  # fmt: skip
    errors = result["errors"]
    assert errors["wrong_answer"] == 0.5
    assert errors["time_off_more_than_3s"] == errors["no_claim"] == 0.25
    assert errors["no_time"] == errors["malformed"] == 0.5
    assert [case["id"] for case in errors["worst"]] == ["q-appears", "far", "q-attribute", "q-interval"]
    assert result["by_kind"]["interval"]["accuracy"] == 0.5
    assert {name: group["N"] for name, group in result["by_language"].items()} == {"en": 3, "zh": 1}


def test_silence_lowers_the_means():
    perfect = say(
        "red",
        "<obj>red circle</obj><box>[250,250,500,500]</box>at<t>2.0</t>s From <t>1.0</t>s to <t>3.0</t>s",
    )
    m = report([ask("attribute", "red")] * 2, [perfect, ""])["metrics"]
    assert m["accuracy"] == m["m_tIoU"] == m["m_vIoU"] == 0.5


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_the_truth_as_text_is_right(level):
    questions = unseen(84 if level > 1 else 40, level)
    result = report(questions, [templates.response(q.sample) for q in questions])
    m, errors = result["metrics"], result["errors"]
    assert set(result["by_kind"]) == set(synthetic.LEVELS[level].kinds)
    assert m["accuracy"] == 1.0
    # Text has 0.1 s; frames have 0.04 s, so that an end is off by 0.04 s at the most.
    assert m["time_error_mean_s"] <= 0.04 and m["m_tIoU"] > 0.96 and m["m_vIoU"] > 0.98
    assert m["tvg"]["R1@0.7"] == 1.0 and m["mLGM"] is None
    shares = {name: value for name, value in errors.items() if name != "worst"}
    assert set(shares.values()) == {0.0}


def test_what_never_appears_has_an_answer_and_no_evidence():
    questions = [q for q in unseen(60, 4) if q.sample.kind == "never"]
    assert len(questions) == 12
    silent = report(questions, [say(answer) for answer in ("It never appears.", "它从未出现。")] * 6)
    assert silent["metrics"]["accuracy"] == 1.0 and silent["metrics"]["m_tIoU"] is None
    for wrong in ("", "At <t>1.0</t>s", "never before <t>1.0</t>s", "red circle"):
        assert report(questions, [say(wrong)] * 12)["metrics"]["accuracy"] == 0.0


def test_exact_times_have_an_iou_of_one():
    for question in unseen(20):
        start, end = question.sample.intervals[0]
        text = say("", f"From <t>{start:.2f}</t>s to <t>{end:.2f}</t>s")
        assert scores.score(question, text).t_iou == pytest.approx(1.0)


_PIECES = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "<obj>", "</obj>", "red circle", "<box>", "</box>",
     "[1,2,", "[250,250,500,500]", "3,4]", "at", "<t>", "</t>", "s", " to ", "到", "2.0", "-1",
     "999999999", "nan", "]", "{"]
)  # fmt: skip


@given(st.one_of(st.text(), st.lists(_PIECES, max_size=40).map("".join)))
def test_no_text_raises(text):
    kinds = ("interval", "appears", "where", "attribute", "first", "count", "mcq")
    result = report([ask(kind, "red") for kind in kinds], [text] * len(kinds))
    json.dumps(result, allow_nan=False)
    assert 0 <= result["metrics"]["mAM"] <= 1
