"""What every benchmark is made of: items, and the prompts that ask about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from o3jax.grounding import Box, Interval

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class BoxesAt(NamedTuple):
    """Where something is at a time."""

    time_s: float
    boxes: tuple[Box, ...]


@dataclasses.dataclass(frozen=True)
class Item:
    """One question of a benchmark about one video."""

    id: str
    video: str  # a path, or `archive.zip::member`, see `media.Media`; what is expected where there is none
    question: str
    answer: str = ""  # a letter where there are options; empty where the answer is an interval
    options: tuple[str, ...] = ()  # their texts without letters, in order
    intervals: tuple[Interval, ...] = ()  # seconds, as annotated: an end may lie after the video's
    boxes: tuple[BoxesAt, ...] = ()
    group: str = ""  # questions that are scored together
    subtitles: str | None = None  # their file, written as `video` is
    duration: float | None = None  # seconds, as annotated
    # What tables are grouped by, and what a prompt or scorer of this benchmark needs besides.
    tags: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def letters(self) -> str:
        """The letters of the options."""
        return LETTERS[: len(self.options)]

    @property
    def lettered(self) -> tuple[str, ...]:
        """The options as they are printed: `A. text`."""
        return tuple(f"{letter}. {text}" for letter, text in zip(LETTERS, self.options, strict=False))


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One generation that an item asks for.

    `<video>` in the text says where the video stands; without it the video comes first.
    """

    text: str
    part: str = "answer"  # which of the item's generations
    question: str | None = None  # the question in the text, where it is not the item's
    system: str | None = None
    task: str | None = None  # asked in the model's own style, see `o3jax.prompts.templates.messages`
    key_times: tuple[float, ...] = ()  # seconds of frames that the model must see beside the usual ones
    image: bytes | None = None  # an encoded picture that is shown after the video
    max_new_tokens: int | None = None  # where the published run cuts a response off


VIDEO = "<video>"

PromptBuilder = Callable[[Item], Sequence[Prompt]]


@dataclasses.dataclass(frozen=True)
class Frames:
    """Which frames of a video a published run shows to its model, and how large.

    They are, with n of all frames at the file's own rate:
      ends: of `linspace(0, n - 1, most)` the whole parts;
      inner: the whole parts of the i-th of `most + 1` equal steps, i from 1;
      rate: `fps` a second, an even number from `least` to `most`, evenly (qwen-vl-utils);
      seconds: the first of each second, or `ends` where the video lasts longer than `most` seconds.
    """

    sampling: Literal["ends", "inner", "rate", "seconds"]
    most: int
    fps: float = 2.0
    least: int = 4
    # Their size is the model's own rule, or this height, or an area within the limits of one frame and of
    # all of them (qwen-vl-utils; two frames count as one).
    height: int | None = None
    pixels: tuple[int, int] | None = None
    all_pixels: int = 24576 * 28 * 28


# Time-R1's evaluation; a frame has at most the default of qwen-vl-utils.
TIME_R1_FRAMES = Frames("rate", 768, pixels=(16 * 28**2, 768 * 28**2), all_pixels=3584 * 28**2)
# Open-o3 Video's evaluation of multiple choice; a frame has at least the default of qwen-vl-utils.
OPEN_O3_FRAMES = Frames("rate", 64, pixels=(128 * 28**2, 262144))
