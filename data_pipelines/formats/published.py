"""What the published STGR files leave unsaid: where media lie, and how answers and boxes are written.

Paths of a record are relative to a folder that its `source` decides (`roots`). A `Sample` holds the answers
that the prompts ask for; published records spell some of them otherwise (`read_answer`, `write_answer`):

task                 cold start (SFT)                         reinforcement learning (RL)
temporal QA          From <t>10.0</t>s to <t>20.0</t>s        [10.0, 20.0]
temporal QA (MCQ)    -                                        B, and in the next line [10.0, 20.0]

Boxes are 0-1 of the frame, but in the texts of visual QA pixels of `image_size`; a record whose boxes
contradict that rule is refused, never guessed at.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from data_pipelines.formats.fields import wrong
from data_pipelines.formats.sample import Sample
from o3jax.grounding import Box, Interval
from o3jax.prompts import coords, grammar
from o3jax.tasks import TEMPORAL, TEMPORAL_MCQ, VISUAL

Stage = Literal["sft", "rl"]

_PAIR = re.compile(r"\[([^][,]{1,30}),([^][,]{1,30})\]")
_CHOICE = re.compile(r"([A-Z])\n(\[[^][]{1,62}\])")
_OPTION = re.compile(r"(.{1,90})\nCorrect Option: ([A-Z])")


class Roots(NamedTuple):
    """The folders, inside that of the data set, which the paths of a record are relative to."""

    media: str
    key_frames: str


OWN = Roots("", "kfs/")


def roots(source: str, task: str) -> Roots:
    """Returns where a published record's media lie; RecordError if no published data have such a source."""
    if source == "videoespresso_train_video":
        return Roots("videos/videoespresso/videos/", "videos/videoespresso/kfs/")
    if "STR_plm" in source:
        return Roots("videos/stgr/plm/videos/", "videos/stgr/plm/kfs/")
    if source.startswith("STR"):
        return Roots("videos/stgr/temporal_grounding/videos/", "videos/stgr/temporal_grounding/kfs/")
    for start, folder in (("timerft", "timerft"), ("gqa", "gqa"), ("TVG", "tvg_r1"), ("videor1", "videor1")):
        if source.startswith(start):
            return Roots(f"videos/{folder}/", f"videos/{folder}/")
    if task == VISUAL:
        return Roots("videos/treevgr/", "videos/treevgr/")
    raise wrong(
        "source",
        f"names no data set: nothing published has the source {source!r:.80}, so its videos cannot be found; "
        "write STR_.., TVG_.., videor1_.., timerft, gqa or videoespresso_train_video, or use stgr.json",
    )


def read_answer(text: str, task: str, language: str) -> tuple[str, tuple[Interval, ...]]:
    """Returns the answer as the prompts ask for it, and the intervals that a temporal answer tells.

    Raises:
        RecordError: if it tells an interval that ends before it starts.
    """
    if task == TEMPORAL and (pair := _pair(text.strip())):
        return grammar.render_interval(*pair, language), (pair,)
    if task == TEMPORAL_MCQ and (choice := _CHOICE.fullmatch(text.strip())) and (pair := _pair(choice[2])):
        return f"{grammar.render_interval(*pair)}.\nCorrect Option: {choice[1]}", (pair,)
    timed = task in (TEMPORAL, TEMPORAL_MCQ)
    return text, grammar.parse(text, coords.NORMALISED).intervals if timed else ()


def write_answer(sample: Sample, stage: Stage) -> str:
    """Returns a temporal answer as a published file of that stage spells it, another one as it is."""
    if stage == "sft" or not sample.intervals:
        return sample.answer
    start, end = sample.intervals[0]
    pair, said = f"[{start}, {end}]", grammar.render_interval(start, end, sample.language)
    if sample.task == TEMPORAL and sample.answer == said:
        return pair
    option = _OPTION.fullmatch(sample.answer)
    if sample.task == TEMPORAL_MCQ and option and option[1].rstrip(".") == said:
        return f"{option[2]}\n{pair}"
    return sample.answer


def _pair(text: str) -> Interval | None:
    """Returns the interval that `[start, end]` tells; None where the text is anything else."""
    found = _PAIR.fullmatch(text)
    numbers = [coords.parse_number(part) for part in found.groups()] if found else [None]
    if None in numbers:
        return None
    start, end = numbers
    if start > end or start < 0:
        backwards = f"tells an interval that ends before it starts: {start:g} to {end:g} s"
        early = f"tells the time {start:g} s, but a video starts at 0"
        raise wrong("answer", backwards if start > end else early)
    return start, end


def from_pixels(text: str, size: tuple[int, int] | None, field: str) -> str:
    """Returns a text of visual QA with its boxes in 0-1 of the image.

    Args:
        size: (width, height) of the image, pixels.

    Raises:
        RecordError: if a box is reversed, not in pixels of the image, or the size is missing.
    """
    boxes = coords.boxes_in(text)
    if not boxes:
        return text
    size = checked_size(size)
    for box in boxes:
        check_pixels(box, size, field)
    return coords.rewrite_boxes(text, coords.Space(*size), coords.FINE)


def to_pixels(text: str, size: tuple[int, int] | None) -> str:
    """Returns a text with its 0-1 boxes in whole pixels, as the published files space them."""
    if not coords.BOX.search(text):
        return text
    text = coords.rewrite_boxes(text, coords.NORMALISED, coords.pixels(*checked_size(size)))
    return coords.BOX.sub(lambda box: box.group().replace(",", ", "), text)


def checked_size(size: tuple[int, int] | None) -> tuple[int, int]:
    """Returns the size; RecordError where there is none."""
    if size is None:
        raise wrong("image_size", "is missing; add [width, height] of the image in pixels")
    return size


def check_pixels(box: Box, size: tuple[int, int], field: str) -> None:
    """RecordError if a box is not one of pixels of a picture of this (width, height)."""
    shown = [round(v, 4) for v in box]
    if max(box) <= 1:
        raise wrong(
            field,
            f"has the box {shown}, which seems to be 0-1, but it needs pixels of image_size; multiply by "
            f"{size[0]} and {size[1]}",
        )
    if min(box) < 0 or box[2] > size[0] or box[3] > size[1] or box[0] > size[0] or box[1] > size[1]:
        raise wrong(
            field,
            f"has the box {shown}, which is outside of image_size {list(size)}; write pixels of the original "
            "image",
        )
    if box[0] > box[2] or box[1] > box[3]:
        raise wrong(field, f"has the box {shown}, which is reversed; x1 <= x2 and y1 <= y2")
