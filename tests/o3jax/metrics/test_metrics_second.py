"""V-STaR and TVGBench metrics against a second implementation, and on any input."""

from __future__ import annotations

import copy
import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3jax.metrics import tvg, vstar
from o3jax.metrics.boxes import box_iou, interval_iou
from o3jax.metrics.parsers.boxes import json_part, vstar_json
from tests.o3jax.metrics.test_metrics import _item
from tests.support.vstar import subgroups


def _raster_interval_iou(a: list[int], b: list[int]) -> float:
    """Counts unit cells: those in both over those between the first start and the last end."""
    cells = range(-50, 50)
    both = sum(a[0] <= c < a[1] and b[0] <= c < b[1] for c in cells)
    hull = sum(min(a[0], b[0]) <= c < max(a[1], b[1]) for c in cells)
    return both / hull if both else 0.0


def _raster_box_iou(a: list[int], b: list[int]) -> float:
    masks = np.zeros((2, 16, 16), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, (a, b), strict=True):
        mask[y1:y2, x1:x2] = True
    union = masks.any(0).sum()
    return masks.all(0).sum() / union if union else 0.0


def _brute_score(items: list[dict]) -> dict[str, float]:
    """Follows the definitions item by item on integer grids, with arrays and no shared code."""
    total, answered = len(items), [item for item in items if item["answer_vqa"]]
    right = np.array([item["VQA_score"] >= 2 for item in answered])
    out = {"Acc": right.sum() / total}
    for chain, suffix in ((1, ""), (2, "_2")):
        t = np.array(
            [_raster_interval_iou(item["timestamps"], item[f"answer_temporal{suffix}"]) for item in answered]
        )
        v, ap = [], []
        for item in answered:
            ious = []
            for box in item["bboxes"]:
                corners = [box[name] for name in ("xmin", "ymin", "xmax", "ymax")]
                value = item[f"answer_spatial{suffix}"].get(str(box["timestamp"]), [])
                ious.append(max([_raster_box_iou(corners, candidate) for candidate in value], default=0.0))
            v.append(np.mean(ious))
            ap.append([(np.array(ious) >= thr).mean() for thr in (0.1, 0.3, 0.5, 0.7, 0.9)])
        v, means = np.array(v), np.mean(ap, axis=0)
        out |= {f"m_tIoU_c{chain}": t.mean(), f"m_vIoU_c{chain}": v.mean()}
        out |= {f"R1@{thr}_c{chain}": (t >= thr).mean() for thr in (0.3, 0.5, 0.7)}
        out |= {f"AP@{thr}_c{chain}": m for thr, m in zip((0.1, 0.3, 0.5, 0.7, 0.9), means, strict=True)}
        out[f"joint_vqa_temp_c{chain}"] = (right & (t >= 0.3)).sum() / total
        out[f"joint_vqa_spat_c{chain}"] = (right & (v >= 0.1)).sum() / total
        out[f"joint_temp_spat_c{chain}"] = ((v >= 0.1) & (t >= 0.3)).sum() / total
        out[f"joint_vqa_temp_spat_c{chain}"] = (right & (v >= 0.1) & (t >= 0.3)).sum() / total
        terms = np.array([out["Acc"], t.mean(), v.mean()])
        out |= {f"AM{chain}": terms.mean(), f"LGM{chain}": -np.log(1 - terms).mean()}
    return out | {"mAM": (out["AM1"] + out["AM2"]) / 2, "mLGM": (out["LGM1"] + out["LGM2"]) / 2}


def _random_item(rng: random.Random) -> dict:
    def interval() -> list[int]:
        start = rng.randint(0, 20)
        return [start, start + rng.randint(1, 12)]

    def box() -> list[int]:
        x, y = rng.randint(0, 8), rng.randint(0, 8)
        return [x, y, x + rng.randint(1, 8), y + rng.randint(1, 8)]

    def prediction() -> dict[str, list[list[int]]]:
        return {str(second): [box() for _ in range(rng.randint(0, 2))] for second in rng.sample(range(6), 4)}

    truth = [
        {"timestamp": second, **dict(zip(("xmin", "ymin", "xmax", "ymax"), box(), strict=True))}
        for second in rng.sample(range(6), rng.randint(1, 4))
    ]
    return _item(
        rng.randint(-1, 3),
        answer_vqa=rng.choice(["", "x", "x", "x"]),
        timestamps=interval(),
        bboxes=truth,
        answer_temporal=interval(),
        answer_temporal_2=interval(),
        answer_spatial=prediction(),
        answer_spatial_2=prediction(),
    )


@pytest.mark.parametrize("seed", range(8))
def test_score_equals_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    items = [_random_item(rng) for _ in range(40)]
    untouched = copy.deepcopy(items)
    scores = vstar.score(items)
    expected = _brute_score(items)
    assert scores.keys() == expected.keys()
    assert scores == pytest.approx(expected, abs=1e-12)
    assert items == untouched
    rng.shuffle(items)
    assert vstar.score(items) == pytest.approx(scores, abs=1e-12)
    json.dumps(scores)


def _published_parse_times(text: str) -> list[float]:
    """The published steps with plain regular expressions; fine for short texts."""
    if inner := re.search(r"<answer>(.*?)</answer>", text, re.DOTALL):
        text = inner.group(1).strip()
    for clock in re.findall(r"\d+:\d+", text):
        minutes, seconds = map(int, clock.split(":"))
        text = text.replace(clock, f"<t>{60 * minutes + seconds}</t>s")
    numbers = re.findall(r"\b\d+(?:\.\d+)?\b", text)
    return [float(n) for n in numbers] if len(numbers) == 2 else []


@settings(max_examples=250, deadline=None)
@given(st.lists(st.sampled_from(["1", "1:10", "11:10", ":", ".", " ", "s", "<answer>", "</answer>", "٣"])))
def test_parse_times_equals_the_published_steps(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert vstar.parse_times(text) == _published_parse_times(text)


def _published_json_text(text: str) -> str | None:
    fenced = re.search(r"```json\s*\n(\[.*?\]|\{.*?\})\s*\n```", text, re.DOTALL)
    match = fenced or re.search(r"(\[[\s\S]*\]|\{[\s\S]*\})", text)
    return match.group(1) if match else None


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["```json\n", "\n```", "[", "]", "{", "}", "'3':", "1", " ", "\n", "a"])))
def test_the_json_part_is_the_published_one(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert json_part(text) == _published_json_text(text)


@settings(max_examples=250, deadline=None)
@given(st.lists(st.sampled_from(["1", "2.5", "3.", ".", " to ", " and ", " ", "to", "s", "7"])))
def test_tvg_official_equals_the_published_pattern(pieces: list[str]) -> None:
    text = "".join(pieces)
    found = re.findall(r"(\d+\.?\d*) (to|and) (\d+\.?\d*)", text)
    assert tvg.parse(text) == ([float(found[-1][0]), float(found[-1][2])] if found else None)


any_number = st.floats() | st.integers() | st.just(10**400)
any_json = st.recursive(
    st.none() | st.booleans() | any_number | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["3", "4", "x"]), inner),
    max_leaves=12,
)


@given(st.tuples(any_number, any_number), st.tuples(any_number, any_number))
def test_interval_iou_is_bounded_and_symmetric(a: tuple, b: tuple) -> None:
    assert 0 <= interval_iou(a, b) <= 1
    assert interval_iou(a, b) == interval_iou(b, a)


@given(st.tuples(*[any_number] * 4), st.tuples(*[any_number] * 4))
def test_box_iou_is_bounded_and_symmetric(a: tuple, b: tuple) -> None:
    assert 0 <= box_iou(a, b) <= 1
    assert box_iou(a, b) == pytest.approx(box_iou(b, a))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([*_item(), "answer_temporal", "answer_spatial", "answer_spatial_2"]), any_json
        ).map(lambda odd: _item() | {k: v for k, v in odd.items() if k not in ("timestamps", "bboxes")}),
        max_size=4,
    )
)
def test_any_prediction_gives_bounded_metrics(items: list[dict]) -> None:
    for name, value in vstar.score(items).items():
        assert (value is None or value >= 0) if "LGM" in name else 0 <= value <= 1
    subgroups(items)


@given(st.text())
def test_parsers_take_any_text(text: str) -> None:
    assert len(vstar.parse_times(text)) in (0, 2)
    boxes = vstar_json(text)
    assert boxes is None or isinstance(boxes, dict | list)
    for mode in ("official", "o3"):
        assert tvg.parse(text, mode) is None or len(tvg.parse(text, mode)) == 2


@pytest.mark.parametrize(
    "unit",
    [
        *(
            "1",
            " ",
            "\n",
            "9:9 ",
            "1.",
            "1 to ",
            "1 to",
            "1  to  ",
            "1" + " " * 50,
            ":",
            "<answer>",
            "[",
            "{",
        ),
        *(
            "]",
            "}",
            "[{",
            "```json\n[",
            "```json\n{",
            "]\n",
            "```json\n",
            "[1,",
            '{"a":',
            "'",
            "1\n``",
            "</t>",
        ),
        *("<t>1</t>", "1 </t> s ", "-", "1-"),
    ],
)
def test_hostile_text_is_parsed_in_linear_time(unit: str) -> None:
    """A quadratic step on 200,000 characters would hang the suite for minutes."""
    text = unit * (200_000 // len(unit))
    for hostile in (text, text + "x", "<answer>" + text, '{"3": [' + text, text + "]", "1" + text + "s"):
        vstar.parse_times(hostile)
        vstar_json(hostile)
        tvg.parse(hostile)
        tvg.parse(hostile, mode="o3")
