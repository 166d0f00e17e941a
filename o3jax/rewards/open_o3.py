r"""The published Open-o3 Video rewards (marinero4972/Open-o3-Video, `reward_func.py`): 7 terms, 6 tasks.

    term                    MCQ    free-form  temporal  temporal MCQ  visual    spatio-temporal
    ans_acc                 exact  ROUGE      -         exact         -         ROUGE
    ans_tiou                -      -          IoU       IoU           -         -
    ans_viou                -      -          -         -             IoU       -
    thk_temporal_point      -      -          -         -             -         Gaussian
    thk_temporal_segment    -      -          fraction  fraction      -         -
    thk_spatial             -      -          -         -             best IoU  gated IoU
    format                  0, 1   0, 1       0, .5, 1  0, .5, 1      0, .5, 1  0, .5, 1

The published patterns are read by searching for their fixed parts, one after the other: the same matches in
linear time, where the pattern for claims doubles its time with each box that no time follows.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Sequence

from o3jax.errors import UserError
from o3jax.grounding import Box, Interval
from o3jax.metrics.boxes import box_iou, interval_iou
from o3jax.prompts import coords, grammar
from o3jax.prompts.coords import Space
from o3jax.rewards import records
from o3jax.rewards.records import Record
from o3jax.rewards.rouge import rouge
from o3jax.tasks import FREE_FORM, MCQ, SPATIO_TEMPORAL, TEMPORAL, TEMPORAL_MCQ, VISUAL

TERMS = (
    *("ans_acc", "ans_tiou", "ans_viou", "thk_temporal_point", "thk_temporal_segment", "thk_spatial"),
    "format",
)
MODES = ("compat", "paper")
LATE_S = 1.0  # compat: how much earlier than a key frame a claim may be; however late is no matter
NEAR_S = 3.0  # paper: the gate of a claim, earlier or later

# Possessive, so that long runs of digits take linear time.
_INTERVAL = re.compile(r"<t>(\d++\.?+\d*+)</t>s to <t>(\d++\.?+\d*+)</t>s")
_STAMP = re.compile(r"<t>([\d.]++)</t>s")
_OBJECT = {
    "compat": re.compile(r"<obj>\w++</obj><box>\["),  # of one word: the published pattern takes no spaces
    "paper": re.compile(r"<obj>[^<\n]++</obj><box>\["),
}


_Claim = tuple[float, Sequence[Box]]  # seconds, and boxes in the space in which they are read


def score(
    completion: str,
    sample: Record,
    step_percent: float = 0.0,
    mode: str = "compat",
    space: Space | None = None,
) -> dict[str, float]:
    """Returns the seven terms, each in [0, 1]; the published reward is their sum. In linear time.

    Mode "compat" is the published code, bug for bug; where it divides by zero or lacks an annotation, 0.
    Mode "paper" differs in these points:
    - a claim is near a key frame within 3 s before or after it; in compat a claim may be at most 1 s early,
      but any time late. Claims with a time but no readable box count in the mean, with 0;
    - claims, times and intervals are read by our grammar: white space between the tags, the Chinese interval,
      and one unreadable time does not void the others. Its boxes are ordered, plain and cut at the frame;
    - the object of an image's answer may have a name of several words (format);
    - ROUGE knows Chinese characters.

    Args:
        completion: what the model printed.
        sample: the published RL record: `task`, `answer`, `key_frames`, `key_items`, `image_size`.
        step_percent: share of the training that is over; it narrows the Gaussian of the times.
        mode: "compat" or "paper".
        space: how the completion writes boxes, or None for what the record's `box_space` says: "per_mille",
            "normalised", or as published "pixels" of what the model saw (`image_size`, for images
            `image_size_refine`), which is the default.

    Raises:
        UserError: if the mode or task is unknown, or a field that the task needs is missing.
    """
    _check(mode)
    task = records.task_of(sample)
    think, answer = records.block(completion, "think"), records.block(completion, "answer")
    terms = dict.fromkeys(TERMS, 0.0) | answer_terms((answer or "").strip(), sample, mode, space)
    if think is not None and task == SPATIO_TEMPORAL:
        written = _written(sample, space)
        times, claims = _read(think, mode, written)
        terms["thk_temporal_point"] = _near_key_frames(times, sample, step_percent)
        if answer is not None:
            terms["thk_spatial"] = _claimed_boxes(claims, sample, mode, written)
    elif think is not None and task in (TEMPORAL, TEMPORAL_MCQ):
        terms["thk_temporal_segment"] = _inside(_read(think, mode, coords.NORMALISED)[0], sample)
    elif think is not None and task == VISUAL and answer is not None:
        terms["thk_spatial"] = _best_box(think, sample, space)
    terms["format"] = format_term(completion, sample, mode)
    return terms


score_paper = functools.partial(score, mode="paper")


def answer_terms(
    answer: str, sample: Record, mode: str = "compat", space: Space | None = None
) -> dict[str, float]:
    """Returns those of the three terms for the answer which the task has; see `score`.

    Args:
        answer: what stands between the answer tags.
    """
    task, truth = records.task_of(sample), records.field(sample, "answer")
    if task == MCQ:
        return {"ans_acc": float(records.is_option(answer, records.option(truth)))}
    if task in (SPATIO_TEMPORAL, FREE_FORM):
        return {"ans_acc": rouge(answer, truth, chinese=mode == "paper")}
    if task == VISUAL:
        box, wanted = records.first_box(answer), _image_box(sample, space)
        return {"ans_viou": 0.0 if box is None or wanted is None else box_iou(wanted, box)}
    said, wanted = _said_interval(answer, mode), records.interval(truth)
    terms = {"ans_tiou": 0.0 if said is None or wanted is None else interval_iou(said, wanted)}
    if task == TEMPORAL_MCQ:
        terms["ans_acc"] = float(records.is_option(records.said_option(answer), records.option(truth)))
    return terms


def format_term(completion: str, sample: Record, mode: str = "compat") -> float:
    """Returns 0 for missing or unbalanced tags, else 1 for a text with the task's evidence, 0.5 without.

    Evidence are two `<t>` in the reasoning for temporal tasks, one each of `<obj>`, `<t>`, `<box>` for the
    spatial ones or, for questions about an image, an object with a box anywhere. General tasks need none.

    Args:
        sample: the published record; its `task` is read.
        mode: "compat" or "paper", which reads names of several words before such a box.
    """
    _check(mode)
    think, answer = records.block(completion, "think"), records.block(completion, "answer")
    if think is None or answer is None:
        return 0.0
    if not (_balanced(completion, "think", "answer") and _balanced(think, "obj", "t", "box")):
        return 0.0
    task = records.task_of(sample)
    if task in (TEMPORAL, TEMPORAL_MCQ):
        return 1.0 if think.count("<t>") >= 2 else 0.5
    if task in (SPATIO_TEMPORAL, VISUAL):
        shown = all(f"<{tag}>" in think for tag in ("obj", "t", "box"))
        return 1.0 if shown or (task == VISUAL and _has_box(completion, _OBJECT[mode])) else 0.5
    return 1.0


def _check(mode: str) -> None:
    if mode not in MODES:
        raise UserError(f"mode {mode!r:.80} of the open_o3 rewards is unknown; use one of {', '.join(MODES)}")


def _balanced(text: str, *tags: str) -> bool:
    return all(text.count(f"<{tag}>") == text.count(f"</{tag}>") for tag in tags)


def _has_box(text: str, named: re.Pattern[str]) -> bool:
    """Whether an object with its box stands in one line."""
    return any(
        (found := named.search(line)) and line.rfind("]</box>") >= found.end() for line in text.split("\n")
    )


def _said_interval(answer: str, mode: str) -> Interval | None:
    if mode == "paper":
        return next(iter(grammar.parse(answer).intervals), None)
    found = _INTERVAL.search(answer)
    return (float(found[1]), float(found[2])) if found else None


def _read(think: str, mode: str, written: Space) -> tuple[list[float], list[_Claim]]:
    """Returns the times and the claims of the reasoning.

    In compat there are no times at all where one is no number, and boxes stay in the space in which they are
    written; in paper they become normalised.
    """
    if mode == "paper":
        said = grammar.parse(think, written)
        return list(said.times), [(c.time_s, c.boxes) for c in said.claims if c.time_s is not None]
    try:
        times = [float(stamp) for stamp in _STAMP.findall(think)]
    except ValueError:  # such as 1.2.3
        times = []
    return times, list(_claims(think))


def _near_key_frames(times: list[float], sample: Record, step_percent: float) -> float:
    """Returns the mean over the times of a Gaussian of the distance to the nearest key frame."""
    frames = [frame["time"] for frame in records.field(sample, "key_frames")]
    if not times or not frames:
        return 0.0
    sigma = 4 * (1 - step_percent) if step_percent < 0.75 else 1.0
    distances = [min(abs(time - frame) for frame in frames) for time in times]
    return math.fsum(math.exp(-distance * distance / (2 * sigma**2)) for distance in distances) / len(times)


def _inside(times: list[float], sample: Record) -> float:
    """Returns the share of the times that are inside the true interval, its ends included."""
    wanted = records.interval(records.field(sample, "answer"))
    if not times or wanted is None:
        return 0.0
    return sum(wanted[0] <= time <= wanted[1] for time in times) / len(times)


def _image_box(sample: Record, space: Space | None) -> Box | None:
    """Returns the true box of a question about an image, in the space of the completion."""
    wanted = records.answer_box(sample)
    return None if wanted is None else coords.convert(*wanted, _written(sample, space))


def _best_box(think: str, sample: Record, space: Space | None) -> float:
    wanted = _image_box(sample, space)
    boxes = [box for text in records.box_texts(think) if (box := records.load_box(text)) is not None]
    return max((box_iou(wanted, box) for box in boxes), default=0.0) if wanted is not None else 0.0


def _claimed_boxes(claims: Sequence[_Claim], sample: Record, mode: str, written: Space) -> float:
    """Returns the mean over the claims of their boxes' IoU with what is on the key frame near their time."""
    space = written if mode == "compat" else coords.NORMALISED
    objects = {
        idx: [[coords.convert(box, coords.NORMALISED, space) for box in boxes] for boxes in named.values()]
        for idx, named in (sample.get("key_items") or {}).items()
    }
    total = 0.0
    for time, boxes in claims:
        early = {frame["idx"]: frame["time"] - time for frame in records.field(sample, "key_frames")}
        near = {
            idx: abs(seconds)
            for idx, seconds in early.items()
            if (seconds < LATE_S if mode == "compat" else abs(seconds) <= NEAR_S)
        }
        if near and boxes:
            total += max(
                (
                    sum(max(box_iou(wanted, box) for box in boxes) for wanted in truth) / len(truth)
                    for truth in objects.get(str(min(near, key=near.get)), ())
                    if truth
                ),
                default=0.0,
            )
    return total / len(claims) if claims else 0.0


def _claims(think: str) -> Iterator[_Claim]:
    r"""Yields what `<obj>(.*?)</obj>((?:<box>\[.*?\]</box>)+)at<t>(.*?)</t>s` matches, newlines included.

    The group of boxes may hold anything between its first `<box>[` and its last `]</box>`, so a match is the
    next occurrence of each of four fixed strings, and without one of them nothing later matches either. A
    claim whose time or boxes cannot be read is left out.
    """
    at = 0
    while (
        (name := think.find("<obj>", at)) >= 0
        and (boxes := think.find("</obj><box>[", name + 5)) >= 0
        and (time := think.find("]</box>at<t>", boxes + 12)) >= 0
        and (end := think.find("</t>s", time + 12)) >= 0
    ):
        at = end + 5
        found = [records.load_box(text) for text in records.box_texts(think[boxes + 6 : time + 7])]
        try:
            seconds = float(think[time + 12 : end])
        except ValueError:
            continue
        if found and None not in found:
            yield seconds, found


def _written(sample: Record, space: Space | None) -> Space:
    """Returns the space of the completion's boxes, in which the truth is not rounded."""
    return Space(space.width, space.height) if space else records.written_space(sample, "pixels")
