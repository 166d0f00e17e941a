"""V-STaR metrics: what (answer), when (interval) and where (boxes), along two chains of questions.

The definitions, quirks included, are those of the scoring script that Open-o3 Video publishes
(eval/test/eval_vstar.py) and of its output parsers (eval/test/test_vstar_multi_images.py). Two things
differ on purpose: a logarithm of zero is None instead of an exception, and nothing that a model or a
result file holds can raise or take more than linear time.

An item is one row of the published result file. Fields read here: `answer_vqa`, `VQA_score` (the
judge's 0-3, or -1 for a reply that was no number), `timestamps`, `bboxes`, `answer_temporal`,
`answer_temporal_pre`, `answer_spatial`, the last three again with `_2` for the second chain. A field
that is missing scores 0.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from o3jax.metrics.boxes import box_iou, interval_iou

RECALL_THRESHOLDS = (0.3, 0.5, 0.7)
PRECISION_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
CORRECT_SCORE = 2  # of the judge's 0 to 3
JOINT_TIOU = 0.3  # an answer counts as found in time, or in space, from here in the joint shares
JOINT_VIOU = 0.1

Item = Mapping[str, Any]

# Possessive quantifiers and the look-behind keep the search linear on a long run of digits.
_CLOCK = re.compile(r"(?<!\d)\d++:\d++")
_NUMBER = re.compile(r"\b\d+(?:\.\d+)?\b")


def parse_answer(text: str) -> str:
    """Returns the stripped content of the first <answer> element, or the whole text without one."""
    start = text.find("<answer>") + len("<answer>")
    end = text.find("</answer>", start)
    return text[start:end].strip() if start >= len("<answer>") and end >= 0 else text


def parse_times(text: str) -> list[float]:
    """Returns [start, end] in seconds if the answer holds exactly two numbers, else [].

    `1:10` counts as 70 seconds. As published, a number glued to a letter (`3s`) is no number, and a
    clock time that is part of another (`1:10` before `11:10`) splits it, which then makes three.
    """
    text = parse_answer(text)
    clocks = list(islice(_CLOCK.finditer(text), 3))
    if len(clocks) > 2:  # each leaves at least one number, so that two are no longer possible
        return []
    for clock in clocks:
        minutes, seconds = clock.group().split(":")
        if len(minutes) + len(seconds) > 300:  # beyond any float
            return []
        text = text.replace(clock.group(), f"<t>{int(minutes) * 60 + int(seconds)}</t>s")
    numbers = [float(match.group()) for match in islice(_NUMBER.finditer(text), 3)]
    return numbers if len(numbers) == 2 and all(map(math.isfinite, numbers)) else []


def score_item(item: Item) -> dict[str, Any]:
    """Returns what the published scorer adds to one judged item, under its names.

    `temporal_IoU`, `spatial_mIoU` and `AP1@0.1:0.9` (one share of truth boxes for each threshold) for
    chain 1; `temporal_IoU_2`, `spatial_mIoU_2` and `AP2@0.1:0.9` for chain 2.
    """
    scores: dict[str, Any] = {}
    for chain, suffix in ((1, ""), (2, "_2")):
        ious = _box_ious(item.get("bboxes") or [], item.get(f"answer_spatial{suffix}"))
        scores[f"temporal_IoU{suffix}"] = _temporal_iou(item, suffix)
        scores[f"spatial_mIoU{suffix}"] = _mean(ious)
        scores[f"AP{chain}@0.1:0.9"] = [_share(ious, threshold) for threshold in PRECISION_THRESHOLDS]
    return scores


def score(items: Sequence[Item]) -> dict[str, float | None]:
    """Returns every metric of V-STaR over all items, as fractions (published tables show them x 100).

    Keys: `Acc`; `AM1, AM2, mAM` = mean of accuracy, m_tIoU and m_vIoU; `LGM1, LGM2, mLGM` = mean of
    their -log(1 - x), None where one of them is 1; and with `_c1`, `_c2` for the two chains `m_tIoU,
    m_vIoU, R1@0.3/0.5/0.7, AP@0.1/0.3/0.5/0.7/0.9, joint_vqa_temp, joint_vqa_spat, joint_temp_spat,
    joint_vqa_temp_spat`. As published, items whose `answer_vqa` is empty count in the denominator of
    `Acc` and of the joint shares, but not in the other means. Without items every metric is 0.
    """
    judged = [item for item in items if item.get("answer_vqa")]
    scores = [score_item(item) for item in judged]
    correct = [_is_correct(item) for item in judged]
    total = max(len(items), 1)
    accuracy = sum(correct) / total
    result: dict[str, float | None] = {"Acc": accuracy}
    chains: dict[str, float] = {}
    for chain, suffix in ((1, ""), (2, "_2")):
        t_ious = [row[f"temporal_IoU{suffix}"] for row in scores]
        v_ious = [row[f"spatial_mIoU{suffix}"] for row in scores]
        precisions = [row[f"AP{chain}@0.1:0.9"] for row in scores]
        parts = (accuracy, _mean(t_ious), _mean(v_ious))
        result[f"AM{chain}"] = sum(parts) / 3
        result[f"LGM{chain}"] = None if 1.0 in parts else sum(0.0 - math.log1p(-part) for part in parts) / 3
        metrics = {"m_tIoU": parts[1], "m_vIoU": parts[2]}
        metrics |= {f"R1@{threshold}": _share(t_ious, threshold) for threshold in RECALL_THRESHOLDS}
        for index, threshold in enumerate(PRECISION_THRESHOLDS):
            metrics[f"AP@{threshold}"] = _mean([row[index] for row in precisions])
        hits = [
            (c, t >= JOINT_TIOU, v >= JOINT_VIOU) for c, t, v in zip(correct, t_ious, v_ious, strict=True)
        ]
        metrics["joint_vqa_temp"] = sum(c and t for c, t, _ in hits) / total
        metrics["joint_vqa_spat"] = sum(c and v for c, _, v in hits) / total
        metrics["joint_temp_spat"] = sum(t and v for _, t, v in hits) / total
        metrics["joint_vqa_temp_spat"] = sum(map(all, hits)) / total
        chains |= {f"{name}_c{chain}": value for name, value in metrics.items()}
    result["mAM"] = (result["AM1"] + result["AM2"]) / 2
    logs = (result["LGM1"], result["LGM2"])
    result["mLGM"] = None if None in logs else sum(logs) / 2
    return result | chains


def _is_correct(item: Item) -> bool:
    judgement = item.get("VQA_score")
    return isinstance(judgement, int | float) and judgement >= CORRECT_SCORE


def _temporal_iou(item: Item, suffix: str) -> float:
    predicted, truth = item.get(f"answer_temporal{suffix}"), item.get("timestamps")
    if predicted == []:
        predicted = parse_times(str(item.get(f"answer_temporal_pre{suffix}", "")))
    if isinstance(predicted, str):
        predicted = _literal(predicted)
    return interval_iou(truth, predicted) if _numbers(predicted, 2) and _numbers(truth, 2) else 0.0


def _box_ious(truth: Sequence[Mapping[str, Any]], predicted: Any) -> list[float]:
    """Returns one IoU for each truth box: that of the box under its second, 0 where there is none."""
    by_second = predicted if isinstance(predicted, dict) else {}
    corners = ("xmin", "ymin", "xmax", "ymax")
    return [
        _best_iou([box.get(corner) for corner in corners], by_second.get(str(box.get("timestamp"))))
        for box in truth
    ]


def _best_iou(truth: Sequence[Any], predicted: Any) -> float:
    """Returns the IoU of a box, or the best one of a list of boxes; 0 for anything else.

    As published, one box of four things that are not all numbers voids its whole list.
    """
    if not isinstance(predicted, list | tuple) or not _numbers(truth, 4):
        return 0.0
    boxes = [predicted] if _numbers(predicted, 4) else predicted
    quadruples = [box for box in boxes if isinstance(box, list | tuple) and len(box) == 4]
    if not all(_numbers(box, 4) for box in quadruples):
        return 0.0
    return max((box_iou(truth, box) for box in quadruples), default=0.0)


def _numbers(value: Any, length: int) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == length
        and all(isinstance(number, int | float) for number in value)
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _share(values: Iterable[float], threshold: float) -> float:
    return _mean([float(value >= threshold) for value in values])


def _literal(text: str) -> Any:
    """Returns the Python literal that a short text holds, else None."""
    try:
        # The length limit bounds the nesting, with which the parser's stack grows.
        return ast.literal_eval(text) if len(text) <= 200 else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
