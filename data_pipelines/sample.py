"""The one record that every dataset is converted to."""

from __future__ import annotations

import dataclasses

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in [0, 1] of the displayed frame
Interval = tuple[float, float]  # start, end in seconds from the first presented frame

ST_TASK = "temporal-spatial free-form QA"
TEMPORAL_TASK = "temporal QA"
TEMPORAL_MCQ_TASK = "temporal QA (MCQ)"
VISUAL_TASK = "visual QA"
MCQ_TASK = "General video QA MCQ"
FREE_FORM_TASK = "General video QA Free-form"
TASKS = (ST_TASK, TEMPORAL_TASK, TEMPORAL_MCQ_TASK, VISUAL_TASK, MCQ_TASK, FREE_FORM_TASK)


@dataclasses.dataclass(frozen=True)
class Mention:
    """One `<obj>` mention: what is where, and when."""

    object: str
    time: float | None = None  # seconds; None where the annotation has no time (visual QA)
    boxes: tuple[Box, ...] = ()  # empty where the annotation has no box


@dataclasses.dataclass(frozen=True)
class Sample:
    """One question about one video (or image), with its answer and its evidence.

    Boxes are normalised xyxy floats of the displayed frame, times are float seconds. `reasoning`
    is the text between the think tags, with its boxes still normalised: the prompt builder turns
    them into the coordinate space that the model reads.
    """

    id: str
    source: str
    task: str
    question: str
    answer: str
    video_path: str | None = None
    image_path: str | None = None
    image_size: tuple[int, int] | None = None  # (width, height) of the original, pixels
    duration: float | None = None  # seconds
    reasoning: str = ""
    mentions: tuple[Mention, ...] = ()  # in the order in which `reasoning` names them
    intervals: tuple[Interval, ...] = ()  # when the answer's evidence is visible
    language: str = "en"  # "en" or "zh"
    kind: str = ""  # the synthetic world's question kind; empty elsewhere
