"""Conversions between coordinate spaces of boxes, and between seconds and frames. Nobody else converts.

Inside the code a box is normalised xyxy floats in [0, 1] of the displayed frame. At the edges there
are other spaces: 0-1000 integers (Qwen3-VL text), integer pixels of the original video (JSON and
reports), pixels of the resized input (published Open-o3 Video text). Each is one `Space`.
"""

from __future__ import annotations

import dataclasses
import math
import re

from o3jax.errors import UserError
from o3jax.grounding import Box

# A box of four numbers is never longer; a longer text between box tags is not worth reading.
_MAX_BOX_CHARS = 200
_NUMBER = re.compile(r"-?[0-9]{1,9}(?:\.[0-9]{0,18})?")
_BOX_TAG = re.compile(r"</?box>")
BOX = re.compile(r"<box>([^<]*)</box>")


@dataclasses.dataclass(frozen=True)
class Space:
    """How a box is written: the frame is `width` x `height` large; `step` > 0 rounds to its multiples."""

    width: float
    height: float
    step: int = 0  # 0: floats
    decimals: int = 3  # of the floats in a text

    def __post_init__(self) -> None:
        if not (self.width > 0 and self.height > 0):
            raise UserError(f"a coordinate space needs a positive size, not {self.width} x {self.height}")


NORMALISED = Space(1, 1)
FINE = Space(1, 1, decimals=6)  # for boxes that come from pixels, so that they find back to them


def per_mille(step: int = 1) -> Space:
    """Returns the 0-1000 integer space of Qwen3-VL text.

    Args:
        step: grid of the integers. 10 writes 0, 10, .. 1000: fewer different numbers for a tiny model.

    Raises:
        UserError: if `step` does not divide 1000.
    """
    if step < 1 or 1000 % step:
        raise UserError(f"box_step must divide 1000, and {step} does not")
    return Space(1000, 1000, step)


PER_MILLE = per_mille()


def pixels(width: int, height: int) -> Space:
    """Returns the space of integer pixels of a frame (original or resized) of this size."""
    return Space(width, height, 1)


def convert(box: Box, source: Space, target: Space) -> Box:
    """Returns the box in another space, clipped to the frame; ints (as rounded) where the target has a step.

    Ties are rounded half to even, as Python's `round` does in the published data preparation.
    """
    sizes = ((source.width, target.width), (source.height, target.height)) * 2
    return tuple(_convert(v, old, new, target.step) for v, (old, new) in zip(box, sizes, strict=True))


def _convert(value: float, old: float, new: float, step: int) -> float:
    value = min(max(value / old, 0.0), 1.0) * new
    return round(value / step) * step if step else value


def frame_index(time_s: float, fps: float) -> int:
    """Returns the index of the frame shown at `time_s` seconds at `fps`: floor(t * fps + 0.5)."""
    return math.floor(time_s * fps + 0.5)


def parse_number(text: str) -> float | None:
    """Returns the plain decimal number that `text` is, or None (also for nan, inf, 1e5, endless digits)."""
    text = text.strip()
    return float(text) if len(text) <= 30 and _NUMBER.fullmatch(text) else None


def parse_box(text: str) -> Box | None:
    """Returns the four numbers of a text like `[x1, y1, x2, y2]`, or None where it is anything else."""
    if len(text) > _MAX_BOX_CHARS:
        return None
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    numbers = [parse_number(part) for part in text[1:-1].split(",")]
    return tuple(numbers) if len(numbers) == 4 and None not in numbers else None


def boxes_in(text: str) -> list[Box]:
    """Returns the readable boxes of a text's `<box>[..]</box>`, in any space."""
    return [box for found in BOX.finditer(text) if (box := parse_box(found[1])) is not None]


def format_box(box: Box, space: Space) -> str:
    """Returns `[x1,y1,x2,y2]` for a box that is already in `space`: ints, or floats."""
    return "[" + ",".join(str(int(v)) if space.step else f"{v:.{space.decimals}f}" for v in box) + "]"


def rewrite_boxes(text: str, source: Space, target: Space) -> str:
    """Returns `text` with every `<box>[..]</box>` rewritten from one space to another, in linear time.

    A malformed box stays as it is.
    """
    pieces, copied, opened = [], 0, None
    for tag in _BOX_TAG.finditer(text):
        if tag.group() == "<box>":
            opened = tag.end()
            continue
        box = None if opened is None else parse_box(text[opened : tag.start()])
        if box is not None:
            pieces += [text[copied:opened], format_box(convert(box, source, target), target)]
            copied = tag.start()
        opened = None
    return "".join([*pieces, text[copied:]])
