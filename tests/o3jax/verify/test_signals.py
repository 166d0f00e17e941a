"""Signals of answers, by hand; what contradicts an answer never raises a confidence."""

from __future__ import annotations

import dataclasses
import math

import pytest

from o3jax.grounding import Grounding
from o3jax.notes import Note
from o3jax.verify import signals
from o3jax.verify.confidence_model import Calibration, Predictor
from o3jax.verify.signals import Observed, answer_signals, evidence_signals, sameness
from o3jax.verify.verdict import CALIBRATED, UNCALIBRATED, verdict

TEXT = (
    "<think><obj>red circle</obj><box>[100,200,300,400]</box>at<t>2.0</t>s</think>"
    "<answer>From <t>1.0</t>s to <t>3.0</t>s</answer>"
)
SEEN = Observed(
    question="When is the red circle visible?",
    text=TEXT,
    ends=tuple(range(1, len(TEXT) + 1)),  # a token is a character
    probabilities=tuple(0.9 if at < TEXT.index("<answer>") else 0.8 for at in range(len(TEXT))),
    duration_s=8.0,
    estimates=(Grounding(time_s=2.4, interval=(1.0, 3.5), boxes=((0.1, 0.2, 0.3, 0.4),), confidence=0.75),),
    spreads_s=(0.3,),
    proposed=(0.8, 0.5),
    curve=((0.0, 0.1), (2.5, 0.9), (5.0, 0.2)),
    candidates=((1.0, 3.0), (5.0, 7.0)),
    kept="From <t>1.0</t>s to <t>3.0</t>s",
    hidden="From <t>4.0</t>s to <t>6.0</t>s",
)


def test_evidence_by_hand():
    (found,) = evidence_signals(SEEN)
    assert dataclasses.asdict(found) == pytest.approx(
        {
            "likelihood": math.log(0.9),
            "least": math.log(0.9),
            "stated": 1.0,
            "relevance": 0.9,
            "time_gap_s": 0.4,
            "box_overlap": 1.0,
            "inside": 1.0,
            "spread_s": 0.3,
            "score": math.log(3),
            "length_s": 2.5,
        }
    )


def test_answer_by_hand():
    found = answer_signals(SEEN, full=True)
    assert tuple(found) == signals.names(full=True)
    wanted = {
        "answer_likelihood": math.log(0.8),
        "answer_overlap": 2.0 / 2.5,  # 1-3 s and 1-3.5 s
        "answer_gap_s": (0.0 + 0.5) / 2,
        "searched": 4 / 8,
        "best_relevance": 0.9,
        "proposed": math.log(4),
        "margin": math.log(4),
        "fits": 1.0,
        "named": 1.0,
        "asks_when": 1.0,
        "asks_where": 0.0,
        "kept": 1.0,
        "without": 0.0,
        "sound": 1.0,
        "claims": 1.0,
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert tuple(answer_signals(SEEN, full=False)) == signals.names(full=False)


def test_what_is_missing_is_the_worst():
    bare = dataclasses.replace(
        SEEN, text="nothing", ends=(7,), probabilities=(0.5,), estimates=(), spreads_s=(), curve=(), kept=None
    )
    found, whole = answer_signals(dataclasses.replace(bare, hidden=None), True), answer_signals(SEEN, True)
    for name in signals.RISING:
        assert found[name] <= whole[name], name
    for name in signals.FALLING - {"answer_gap_s"}:
        assert found[name] >= whole[name], name


@pytest.mark.parametrize(
    "text", ["", "<answer>", "<obj></obj>", "<obj>a</obj>at<t>1.0</t>s" * 30, "</answer><answer>" * 3]
)
def test_any_text_has_finite_signals(text):
    seen = Observed("?", text, tuple(range(1, len(text) + 1)), (0.0,) * len(text), 0.0)
    assert all(math.isfinite(value) for value in answer_signals(seen, True).values())


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("From <t>0.0</t>s to <t>2.0</t>s", "From <t>1.0</t>s to <t>3.0</t>s", 1 / 3),
        ("At <t>2.0</t>s", "在<t>2.4</t>s", 0.6),
        ("At <t>2.0</t>s", "At <t>9.0</t>s", 0.0),
        ("<obj>a</obj><box>[0,0,500,500]</box>", "<obj>b</obj><box>[0,0,500,250]</box>", 0.5),
        ("Red  circle", "red circle", 1.0),
        ("red circle", "red star", 0.0),
        ("", "", 0.0),  # two silences do not confirm each other
    ],
)
def test_sameness(one, other, same):
    assert sameness(one, other) == pytest.approx(same)


@pytest.mark.parametrize(
    "question, answer, fits",
    [
        ("How many red objects are there?", "2", 1),
        ("How many red objects are there?", "At <t>1.0</t>s", 0),
        ("视频中有几个红色物体?", "两", 1),
        ("Where is the star at 2.0 s?", "<obj>star</obj><box>[1,2,30,40]</box>", 1),
        ("Where is the star at 2.0 s?", "red", 0),
        ("红色圆形什么时候出现?", "在<t>1.0</t>s", 1),
        ("What color is it?", "red", 1),
        ("What color is it?", "At <t>1.0</t>s", 0),
    ],
)
def test_an_answer_of_the_form_that_is_asked_for(question, answer, fits):
    seen = dataclasses.replace(SEEN, question=question, text=f"<think></think><answer>{answer}</answer>")
    assert answer_signals(seen, False)["fits"] == fits


def fitted() -> Calibration:
    """Returns a calibration that lets each signal speak in its direction, and promises nothing."""

    def predictor(names):
        weights = [0.3 * ((name in signals.RISING) - (name in signals.FALLING)) for name in names]
        return Predictor(tuple(names), 1.0, tuple(weights), (0.0,) * len(names), (1.0,) * len(names))

    return Calibration(
        predictor(signals.names(True)), predictor(signals.names(False)), predictor(signals.evidence_names())
    )


def changed(**values):
    estimate = dataclasses.replace(SEEN.estimates[0], **values)
    return dataclasses.replace(SEEN, estimates=(estimate,))


@pytest.mark.parametrize(
    "worse, reason",
    [
        (changed(time_s=5.0), "text and decoder are 3.0 s apart"),
        (changed(boxes=((0.6, 0.6, 0.9, 0.9),)), "their boxes hardly overlap (IoU 0.00)"),
        (dataclasses.replace(SEEN, spreads_s=(2.5,)), "the decoder is unsure of the time (± 2.5 s)"),
        (
            dataclasses.replace(SEEN, kept="At <t>7.0</t>s"),
            "the answer changes when only its evidence is shown",
        ),
        (
            dataclasses.replace(SEEN, hidden=SEEN.kept),
            "the answer stays the same when its evidence is hidden",
        ),
        (dataclasses.replace(SEEN, faults=(Note("loop"),)), "the response repeats itself"),
    ],
)
def test_contradicting_evidence_lowers_the_confidence_and_says_why(worse, reason):
    good, bad = (verdict(seen, fitted(), full=True) for seen in (SEEN, worse))
    assert bad.confidence < good.confidence and bad.reasons[0] == reason
    assert reason not in good.reasons and good.kind == bad.kind == CALIBRATED
    assert good.reasons == (
        "text and decoder agree within 0.4 s",
        "their boxes overlap (IoU 1.00)",
        "the answer stays when only this evidence is shown",
        "the answer changes when this evidence is hidden",
    )


def test_without_a_calibration_the_confidence_is_the_tokens():
    found = verdict(SEEN, None)
    assert found.confidence == pytest.approx(sum(SEEN.probabilities) / len(SEEN.probabilities))
    assert (found.kind, found.reasons, found.claims) == (UNCALIBRATED, (), None)
    faulty = verdict(dataclasses.replace(SEEN, faults=(Note("loop"),)), None)
    assert faulty.confidence == 0.59 and faulty.reasons == ("the response repeats itself",)
