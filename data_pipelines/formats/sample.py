"""The one record that every dataset is converted to."""

from __future__ import annotations

import dataclasses

from o3jax.grounding import Grounding, Interval


@dataclasses.dataclass(frozen=True)
class KeyFrame:
    """A frame of the video that somebody annotated, kept as a picture of its own."""

    index: int  # frame number at 25 fps in our own records; published ones count as their source did
    time: float  # seconds
    path: str | None = None  # of its jpg; None where there is none


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One of several answers to a question, with its evidence and how much it is preferred."""

    answer: str
    preference: float  # higher is better; only the order counts
    reasoning: str = ""
    mentions: tuple[Grounding, ...] = ()
    intervals: tuple[Interval, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sample:
    """One question about one video (or image), with its answer and its evidence.

    Boxes are normalised xyxy floats of the displayed frame, in the texts too: the prompt builder turns
    them into the coordinate space that the model reads. Times are float seconds. `reasoning` is the text
    between the think tags. Paths are relative to the data set's root folder.
    """

    id: str
    source: str
    task: str
    question: str
    answer: str
    video_path: str | None = None
    image_path: str | None = None
    image_size: tuple[int, int] | None = None  # (width, height) of the original, pixels
    duration: float | None = None  # seconds; `index.py` fills it in where a record of a video has none
    reasoning: str = ""
    mentions: tuple[Grounding, ...] = ()  # in the order in which `reasoning` names them
    intervals: tuple[Interval, ...] = ()  # when the answer's evidence is visible
    key_frames: tuple[KeyFrame, ...] = ()  # in the record's order
    candidates: tuple[Candidate, ...] = ()  # several answers, of which one is preferred
    language: str = "en"  # "en" or "zh"
    kind: str = ""  # the synthetic world's question kind; empty elsewhere
