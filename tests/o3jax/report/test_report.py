"""The printed answer, its JSON, and where boxes are over time."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3jax.report import (
    Answer,
    annotate,
    format_answer,
    question_language,
)
from o3jax.report.answer import Segment, plain_text, segments
from o3jax.verify.risk import Bound
from tests.support.answers import BOX, TEXT_BOX, make_evidence

CAR = make_evidence("红色汽车", 12.3, (0.25, 0.2, 0.35, 0.3), (320, 200, 450, 280), 0.93)
LATER = make_evidence("红色汽车", 14.5, (0.27, 0.2, 0.37, 0.3), (350, 210, 480, 290), 0.81)
CHINESE = Answer(
    question="红色汽车什么时候出现?",
    text="视频中12.3-15.6秒出现红色汽车。",
    evidence=(CAR, LATER),
    intervals=((12.3, 15.6),),
    confidence=0.87,
)
ENGLISH = dataclasses.replace(
    CHINESE, question="When does the red car appear?", text="A red car appears from 12.3 to 15.6 s."
)


def test_printed_form_in_chinese() -> None:
    assert format_answer(CHINESE) == (
        "答案:视频中12.3-15.6秒出现红色汽车。\n"
        "证据:\n"
        "- 时间戳:12.3秒(对应第308帧),边界框:(x1=320, y1=200, x2=450, y2=280)\n"
        "- 时间戳:14.5秒(对应第363帧),边界框:(x1=350, y1=210, x2=480, y2=290)\n"
        "置信度:0.87(高)"
    )


def test_printed_form_in_english() -> None:
    assert format_answer(ENGLISH) == (
        "Answer: A red car appears from 12.3 to 15.6 s.\n"
        "Evidence:\n"
        "- time 12.3 s (frame 308), box (x1=320, y1=200, x2=450, y2=280)\n"
        "- time 14.5 s (frame 363), box (x1=350, y1=210, x2=480, y2=290)\n"
        "Confidence: 0.87 (high)"
    )


def test_printed_form_with_reasons_to_check() -> None:
    for whole, last in (
        (ENGLISH, ["Confidence: 0.87 (low) needs review", "Check: no end; twice"]),
        (CHINESE, ["置信度:0.87(低) 需人工核实", "核实原因:no end;twice"]),
    ):
        answer = dataclasses.replace(whole, reasons=("no end", "twice"))
        assert format_answer(answer).splitlines()[-2:] == last
        assert answer.to_dict()["reasons"] == ["no end", "twice"] and answer.needs_review


def test_printed_form_of_a_calibrated_confidence() -> None:
    """Its reasons explain it, and do not decide: below 0.6 they say what to check."""
    bound = Bound(0.1, 0.95, 0.8, 0.625)
    for whole, because, promise, check in (
        (
            ENGLISH,
            "Because: agree; stays",
            "Of answers as sure (62% of all) at most 10% are wrong, with 95% certainty",
            "Check: agree; stays",
        ),
        (
            CHINESE,
            "依据:agree;stays",
            "同样把握的答案(占全部的62%)中至多10%是错的,此结论有95%的把握",
            "核实原因:agree;stays",
        ),
    ):
        answer = dataclasses.replace(
            whole, reasons=("agree", "stays"), confidence_kind="calibrated", bound=bound
        )
        assert format_answer(answer).splitlines()[-2:] == [because, promise]
        assert not answer.needs_review and answer.label == "high" and answer.calibrated
        found = answer.to_dict()
        assert found["bound"] == {"rate": 0.1, "certainty": 0.95, "threshold": 0.8, "coverage": 0.625}
        assert found["calibrated"] and not whole.to_dict()["calibrated"] and whole.to_dict()["bound"] is None
        doubtful = dataclasses.replace(answer, confidence=0.4)
        assert format_answer(doubtful).splitlines()[-1] == check and doubtful.needs_review


def test_printed_form_of_two_estimates() -> None:
    text = make_evidence("红色汽车", 12.6, (0.26, 0.2, 0.36, 0.3), (330, 200, 460, 280))
    both = (dataclasses.replace(CAR, text=text), LATER)
    assert format_answer(dataclasses.replace(ENGLISH, evidence=both)).splitlines()[2:5] == [
        "- time 12.3 s (frame 308), box (x1=320, y1=200, x2=450, y2=280)",
        "  the text says: time 12.6 s (frame 315), box (x1=330, y1=200, x2=460, y2=280)",
        "- time 14.5 s (frame 363), box (x1=350, y1=210, x2=480, y2=290)",
    ]
    assert format_answer(dataclasses.replace(CHINESE, evidence=both)).splitlines()[3] == (
        "  文本所述:12.6秒(对应第315帧),边界框:(x1=330, y1=200, x2=460, y2=280)"
    )


@pytest.mark.parametrize(
    ("confidence", "chinese", "english"),
    [
        (1.0, "置信度:1.00(高)", "Confidence: 1.00 (high)"),
        (0.8, "置信度:0.80(高)", "Confidence: 0.80 (high)"),
        (0.7999, "置信度:0.79(中)", "Confidence: 0.79 (medium)"),
        (0.6, "置信度:0.60(中)", "Confidence: 0.60 (medium)"),
        (0.5999, "置信度:0.59(低) 需人工核实", "Confidence: 0.59 (low) needs review"),
        (0.29, "置信度:0.29(低) 需人工核实", "Confidence: 0.29 (low) needs review"),
        (math.nan, "置信度:-(低) 需人工核实", "Confidence: - (low) needs review"),
    ],
)
def test_confidence_line(confidence: float, chinese: str, english: str) -> None:
    for answer, line in ((CHINESE, chinese), (ENGLISH, english)):
        answer = dataclasses.replace(answer, confidence=confidence)
        assert format_answer(answer).splitlines()[-1] == line
        assert answer.needs_review == (answer.label == "low") == ("review" in line or "核实" in line)


def test_printed_form_without_evidence_or_box() -> None:
    bare = dataclasses.replace(CAR, boxes=(), box_px=None)
    lines = format_answer(dataclasses.replace(ENGLISH, evidence=(bare,))).splitlines()
    assert lines[1:3] == ["Evidence:", "- time 12.3 s (frame 308)"]
    assert format_answer(dataclasses.replace(CHINESE, evidence=())).splitlines()[1] == "证据:无"
    assert format_answer(dataclasses.replace(ENGLISH, evidence=())).splitlines()[1] == "Evidence: none"


def test_no_control_character_reaches_the_terminal() -> None:
    printed = format_answer(dataclasses.replace(ENGLISH, text="\x1b[2Ja\x07b\ud800\u202e\nc"))
    assert printed.startswith("Answer: [2Jab?\nc\n")
    printed.encode()


def test_question_language() -> None:
    assert [question_language(q) for q in ("When?", "什么时候?", "Où est-ce?", "", "the 车", "𠀀")] == [
        *("en", "zh", "en", "en", "zh", "zh")
    ]


def test_json_round_trip() -> None:
    data = json.loads(CHINESE.to_json())
    assert data == CHINESE.to_dict()
    assert data["evidence"][0] == {
        "object": "红色汽车",
        "time_s": 12.3,
        "frame": 308,
        "box_px": [320, 200, 450, 280],
        "box": [0.25, 0.2, 0.35, 0.3],
        "confidence": 0.93,
        "spread_s": None,
        "interval": None,
        "text": None,
    }
    assert data["intervals"] == [[12.3, 15.6]]
    assert (data["language"], data["label"], data["needs_review"]) == ("zh", "high", False)
    assert data["confidence_kind"] == "mean token probability"
    assert "红色汽车" in CHINESE.to_json()


def test_segments_and_plain_text() -> None:
    text = "The <obj>dog</obj><box>[1,2,3,4]</box><box>[5,6,7,8]</box>at<t>3.0</t>s runs <t>4.5</t>s later."
    assert list(segments(text)) == [
        Segment("The "),
        Segment("dog", 3.0, is_object=True),
        Segment(" runs "),
        Segment("", 4.5),
        Segment(" later."),
    ]
    assert plain_text(text, "en") == "The dog (3.0 s) runs 4.5 s later."
    assert plain_text("From <t>3</t>s to <t>7.25</t>s", "en") == "From 3.0 s to 7.2 s"
    assert plain_text("从<t>3</t>秒到<t>7</t>s出现<obj>车</obj>", "zh") == "从3.0秒到7.0秒出现车"
    assert plain_text("<answer>at <t>soon</t> seconds</answer>", "en") == "at soon seconds"


pieces = st.sampled_from(
    ["<obj>", "</obj>", "<box>", "</box>", "at", "<t>", "</t>", "s", "1.5", "dog", " ", "<"]
)


@given(st.lists(pieces).map("".join) | st.text())
def test_any_text_becomes_plain(text: str) -> None:
    joined = "".join(segment.text for segment in segments(text))
    assert len(joined) <= len(text)
    plain_text(text, "zh")


@pytest.mark.parametrize("unit", ["<obj>", "<obj>a</obj> ", "<box>", " ", "<t>", "<", "at<t>1</t>", "<obj>a"])
def test_hostile_text_takes_linear_time(unit: str) -> None:
    """A quadratic step on 300,000 characters would hang the suite for minutes."""
    for text in (unit * (300_000 // len(unit)), "<obj>x</obj>" + unit * (300_000 // len(unit))):
        sum(1 for _ in segments(text))


def test_boxes_over_time() -> None:
    left, right, far = (0.0, 0.0, 0.2, 0.2), (0.4, 0.2, 0.6, 0.4), (0.8, 0.8, 1.0, 1.0)
    evidence = [
        make_evidence("car", 3.0, right),
        make_evidence("dog", 9.0, left),
        make_evidence("car", 2.0, left),
        make_evidence("dog", 9.0, far),
        make_evidence("car", 8.0, far),
        make_evidence("cat", 1.0, None),
    ]
    car, dog_1, dog_2 = annotate.tracks(evidence)
    assert [key[0] for key in car.keys] == [2.0, 3.0, 8.0]
    assert (dog_1.keys, dog_2.keys) == (((9.0, left),), ((9.0, far),))
    assert dog_1.color == dog_2.color != car.color
    expected = {1.4: None, 1.6: left, 2.0: left, 2.5: (0.2, 0.1, 0.4, 0.3), 3.0: right, 3.4: right, 3.6: None}
    expected |= {7.4: None, 7.6: far, 8.5: far, 8.6: None}
    for time_s, box in expected.items():
        shown = annotate.box_at(car, time_s)
        assert (shown is None) == (box is None) and (box is None or shown == pytest.approx(box)), time_s


def test_boxes_that_the_text_states_have_tracks_of_their_own() -> None:
    evidence = [
        dataclasses.replace(make_evidence("dog", 3.0, BOX), text=make_evidence("dog", 2.0, TEXT_BOX)),
        dataclasses.replace(make_evidence("dog", 1.0, BOX), text=make_evidence("dog", 1.2, BOX)),
        dataclasses.replace(make_evidence("cat", 1.0, None), text=make_evidence("cat", 1.0, TEXT_BOX)),
        dataclasses.replace(make_evidence("cow", 1.0, BOX), text=make_evidence("cow", 1.0, None)),
    ]
    found = annotate.tracks(evidence)
    assert [(t.object, t.stated, t.keys) for t in sorted(found, key=lambda t: (t.stated, t.object))] == [
        ("cow", False, ((1.0, BOX),)),
        ("dog", False, ((1.0, BOX), (3.0, BOX))),
        ("cat", True, ((1.0, TEXT_BOX),)),
        ("dog", True, ((1.2, BOX), (2.0, TEXT_BOX))),
    ]
    assert [t.stated for t in found] == sorted(t.stated for t in found)
    assert all(t.color == annotate.object_colors(evidence)[t.object] for t in found)


def test_relevance_curve() -> None:
    def curve(*pairs: tuple[float, float]) -> list[tuple[float, float]]:
        return annotate.relevance_curve(Answer(question="", text="", confidence=1, relevance=pairs), 4.0)

    assert curve() == curve((math.nan, 0.5), (1.0, math.inf)) == []
    assert curve((0.0, 0.3)) == [(0.0, 0.3), (0.0, 0.3), (4.0, 0.3)]  # one frame stands for the whole video
    inner = [(1.0, 0.2), (1.5, 0.9), (3.0, 0.4)]
    assert curve(inner[1], inner[0], (2.0, math.nan), inner[2]) == [(0.5, 0.2), *inner, (3.5, 0.4)]
    assert curve((-1.0, -3.0), (9.0, 3.0)) == [(0.0, 0.0), (0.0, 0.0), (4.0, 1.0), (4.0, 1.0)]


sides = st.tuples(*[st.integers(0, 20)] * 4).map(lambda b: tuple(v / 20 for v in b))


def test_display_size() -> None:
    for width, height in ((128, 128), (1280, 720), (161, 97), (720, 1280), (3840, 2160), (2000, 10), (3, 2)):
        w, h = annotate.display_size(width, height)
        assert w % 2 == h % 2 == 0 and min(w, h) >= 2 and max(w, h) <= 1920
        assert min(w, h) >= 360 or max(w, h) > 1900
        if min(width, height) > 50:
            assert w / h == pytest.approx(width / height, rel=0.01)
