"""V-STaR and TVGBench metrics against worked examples."""

from __future__ import annotations

import math

import pytest

from o3jax.metrics import tvg, vstar
from o3jax.metrics.parsers.boxes import vstar_json
from tests.support.vstar import subgroups

# ---------------------------------------------------------------- worked examples


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("<answer>From <t>3.0</t>s to <t>7.5</t>s</answer>", [3.0, 7.5]),
        ("<think>at 1 s</think><answer>From <t>3.0</t>s to <t>7.5</t>s</answer>", [3.0, 7.5]),
        ("From 0:03 to 1:10", [3.0, 70.0]),
        ("From 0:03 to 0:03", [3.0, 3.0]),
        ("From 1:10 to 11:10", []),  # the first splits the second: 70, 1, 70
        ("From 11:10 to 1:10", [670.0, 70.0]),
        ("3s", []),
        ("3s to 7s", []),
        ("1 2 3", []),
        ("from 1.5 to 2.25 .", [1.5, 2.25]),
        ("", []),
        (f"{'9' * 400} to 5", []),
        (f"{'9' * 9000}:10 to 5", []),
        (f"{'9' * 400}:10 to 5", []),
    ],
)
def test_parse_times(text: str, times: list[float]) -> None:
    assert vstar.parse_times(text) == times


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ('{"3":[1,2,3,4],"4":[[5,6,7,8]]}', {"3": [1, 2, 3, 4], "4": [[5, 6, 7, 8]]}),
        ("<answer>{'3': [1, 2, 3, 4]}</answer> {}", {"3": [1, 2, 3, 4]}),
        ('Boxes: [{"3":[1,2,3,4]},{"4":[5,6,7,8]}].', {"3": [1, 2, 3, 4], "4": [5, 6, 7, 8]}),
        ('[["3",[1,2,3,4]],[4,[5,6,7,8]]]', {"3": [1, 2, 3, 4], "4": [5, 6, 7, 8]}),
        ('{"3":[1,2,3,4],"4":[5,6', [1, 2, 3, 4]),
        ('{"3":[1,2,3,4],"4":{"5":[6,7,8,9]}', {"3": [1, 2, 3, 4], "4": {"5": [6, 7, 8, 9]}}),
        ('see [1]\n```json\n{"3":[1,2,3,4]}\n```', {"3": [1, 2, 3, 4]}),
        ('```json\n[["3",[1,2,3,4]]]\n```\n```json\n{}\n```', {"3": [1, 2, 3, 4]}),
        ("[]", {}),
        ("[1, 2", None),
        ("no box", None),
        ("] and [", None),
        ("[not json]", None),
        ("{'a': 'it's'}", None),
    ],
)
def test_parse_boxes(text: str, boxes: dict | list | None) -> None:
    assert vstar_json(text) == boxes


TRUTH = [{"timestamp": 3, "frame_index": 75, "xmin": 0, "ymin": 0, "xmax": 12, "ymax": 10}]
WHOLE, HALF, THIRD = [0, 0, 12, 10], [0, 0, 6, 10], [0, 0, 4, 10]


def _item(judgement: int = 3, **fields: object) -> dict:
    return {
        "vid": "a",
        "domain": "Sports",
        "fps": 25.0,
        "frame_count": 1000,
        "question": "What?",
        "answer": "this",
        "timestamps": [10.0, 20.0],
        "bboxes": TRUTH,
        "answer_vqa": "that",
        "VQA_score": judgement,
        "answer_temporal": [],
        "answer_temporal_pre": "",
        "answer_temporal_2": [],
        "answer_temporal_pre_2": "",
        "answer_spatial": None,
        "answer_spatial_2": None,
    } | fields


def test_published_summary_figures() -> None:
    """The four-item example: Acc .5, tIoU .75 and .3125, vIoU 1/3 and .2083."""
    hit = [10.0, 20.0]
    items = [
        _item(
            3,
            answer_temporal=hit,
            answer_temporal_2=hit,
            answer_spatial={"3": WHOLE},
            answer_spatial_2={"3": HALF},
        ),
        _item(
            2,
            answer_temporal=hit,
            answer_temporal_2=[10.0, 12.5],
            answer_spatial={"3": THIRD},
            answer_spatial_2={"3": THIRD},
        ),
        _item(1, answer_temporal=hit),
        _item(-1),
    ]
    scores = vstar.score(items)
    assert scores["Acc"] == 0.5
    assert (scores["m_tIoU_c1"], scores["m_tIoU_c2"]) == (0.75, 0.3125)
    assert (scores["m_vIoU_c1"], scores["m_vIoU_c2"]) == pytest.approx((1 / 3, 0.8333333 / 4))
    expected = {"AM1": 0.5278, "AM2": 0.3403, "mAM": 0.4340, "LGM1": 0.8283, "LGM2": 0.4338, "mLGM": 0.6311}
    assert {name: round(scores[name], 4) for name in expected} == expected
    assert scores["R1@0.7_c1"] == 0.75 and scores["R1@0.3_c2"] == 0.25
    assert scores["AP@0.3_c1"] == 0.5 and scores["AP@0.5_c2"] == 0.25 and scores["AP@0.9_c1"] == 0.25
    assert scores["joint_vqa_temp_c1"] == scores["joint_vqa_temp_spat_c1"] == 0.5
    assert scores["joint_temp_spat_c2"] == 0.25 and scores["joint_vqa_spat_c2"] == 0.5


def test_the_published_means_give_the_published_scores() -> None:
    """Open-o3-Video-7B: Acc .610, tIoU .245 and .240, vIoU .254 and .060 were published as 33.7 and 46.6."""
    wide = [{**TRUTH[0], "xmax": 1000}]
    said = {"answer_temporal": [0, 245], "answer_temporal_2": [0, 240]}
    said |= {"answer_spatial": {"3": [0, 0, 254, 10]}, "answer_spatial_2": {"3": [0, 0, 60, 10]}}
    items = [_item(3 * (n < 61), timestamps=[0, 1000], bboxes=wide, **said) for n in range(100)]
    scores = vstar.score(items)
    assert (scores["m_tIoU_c2"], scores["m_vIoU_c1"]) == pytest.approx((0.24, 0.254))
    assert (scores["mAM"], scores["mLGM"]) == pytest.approx((0.337, 0.466), abs=1e-3)


def test_logarithm_of_zero_is_none() -> None:
    scores = vstar.score([_item(3, answer_temporal=[10, 15])])
    assert scores["Acc"] == 1 and scores["LGM1"] is None and scores["mLGM"] is None
    assert scores["AM1"] == 0.5 and scores["m_tIoU_c1"] == 0.5
    one_chain = vstar.score([_item(3, answer_temporal=[10, 20]), _item(0, answer_temporal=[10, 20])])
    assert one_chain["LGM1"] is None and one_chain["LGM2"] > 0 and one_chain["mLGM"] is None


def test_unanswered_items_count_for_accuracy_only() -> None:
    answered = _item(3, answer_temporal=[10, 15])
    scores = vstar.score([answered, _item(3, answer_vqa=""), _item(3, answer_vqa=None), {}])
    assert scores["Acc"] == 0.25 and scores["m_tIoU_c1"] == 0.5 and scores["joint_vqa_temp_c1"] == 0.25
    for empty in ([], [{}]):
        assert all(value in (0, 0.0) for value in vstar.score(empty).values())
    assert subgroups([{}]) == {"duration": {}, "domain": {}}


def test_times_fall_back_to_the_raw_output_of_an_empty_list_only() -> None:
    raw = "<think>..</think>from 10 to 15"
    assert vstar.score_item(_item(answer_temporal_pre=raw))["temporal_IoU"] == 0.5
    assert vstar.score_item(_item(answer_temporal=None, answer_temporal_pre=raw))["temporal_IoU"] == 0
    assert vstar.score_item(_item(answer_temporal_2="[10, 15]"))["temporal_IoU_2"] == 0.5
    for bad in ("[10", "(" * 150, "-" * 10**6 + "1", [1], [1, "2"], [20, 10], [math.nan, math.nan], 7):
        assert vstar.score_item(_item(answer_temporal=bad))["temporal_IoU"] == 0


def test_spatial_quirks() -> None:
    def viou(predicted: object, truth: list[dict] = TRUTH) -> float:
        return vstar.score_item(_item(answer_spatial=predicted, bboxes=truth))["spatial_mIoU"]

    assert viou({"3": [THIRD, HALF, [5]]}) == 0.5  # the best of a list; a wrong length is ignored
    assert viou({"3": [HALF, ["a", 0, 0, 0]]}) == 0  # but four non-numbers void it
    assert viou({"3.0": WHOLE}) == 0  # keys are compared as text
    assert viou(WHOLE) == 0  # no key
    assert viou({"3": WHOLE, "4": WHOLE}) == 1  # extra boxes cost nothing
    assert viou({"3": HALF}, [*TRUTH, {**TRUTH[0], "timestamp": 4}]) == 0.25
    assert viou({"3": WHOLE}, []) == 0
    for bad in ([12, 10, 0, 0], [0, 0, 12], "0,0,12,10", None, {}, [math.nan] * 4, [10**400] * 4, [[]], 3):
        assert viou({"3": bad}) == 0


def test_subgroups() -> None:
    items = [
        _item(3, frame_count=25 * 59, domain="A"),
        _item(0, frame_count=25 * 60, domain="A"),
        _item(0, frame_count=25 * 180, domain="B"),
        _item(2, frame_count=25 * 7200),
        _item(3, fps=0),
        _item(3, answer_vqa=""),
    ]
    groups = subgroups(items)
    sizes = {kind: {name: group["N"] for name, group in of.items()} for kind, of in groups.items()}
    assert sizes == {
        "duration": {"Short": 1, "Medium": 1, "Long": 2, "unknown": 1},
        "domain": {"A": 2, "B": 1, "Sports": 2},
    }
    assert groups["duration"]["Long"]["Acc"] == 0.5 and groups["domain"]["Sports"]["Acc"] == 1


def test_tvg_parse() -> None:
    assert tvg.parse("12.5 and 13") == [12.5, 13.0]
    assert tvg.parse("1 to 2, or rather 3. to 4.5") == [3.0, 4.5]
    assert tvg.parse("1.2.3 to 4.5.6 to 7") == [6.0, 7.0]
    for text in ("From <t>3</t>s to <t>4</t>s", "12.5s to 17.8s", "0:03 - 0:05", "", f"{'9' * 400} to 5"):
        assert tvg.parse(text) is None
    assert tvg.parse("<think>1 to 2</think><answer>From <t>3</t>s to <t>4</t>s</answer>", "o3") == [3.0, 4.0]
    for text in ("12.5s to 17.8s", "12.5 and 17.8", "12.5 seconds - 17.8", "从<t>12.5</t>秒到<t>17.8</t>秒"):
        assert tvg.parse(text, mode="o3") == [12.5, 17.8]
    assert tvg.parse("at 12.5s", mode="o3") is None
    with pytest.raises(ValueError, match="mode 'x' is unknown"):
        tvg.parse("", mode="x")


def test_tvg_score() -> None:
    truth = (0.0, 10.0)
    pairs = [([0.0, 5.0], truth), ([0.0, 7.0], truth), (None, truth), ([20.0, 30.0], truth), ([9, 1], truth)]
    assert tvg.score(pairs) == pytest.approx({"mIoU": 0.24, "R1@0.3": 0.4, "R1@0.5": 0.2, "R1@0.7": 0.0})
    assert tvg.score([]) == {"mIoU": 0.0, "R1@0.3": 0.0, "R1@0.5": 0.0, "R1@0.7": 0.0}


# ---------------------------------------------------------------- a second implementation


# ---------------------------------------------------------------- properties
