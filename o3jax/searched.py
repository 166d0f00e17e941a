"""What was searched of a long video before it was asked: as data, in JSON and in words."""

from __future__ import annotations

import dataclasses
from typing import Any

from o3jax.grounding import Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """Frames that were read in one go."""

    name: str  # coarse, cues, refine, fine, dense or uniform
    every_s: float  # about how far its frames are apart; 0 where single frames were chosen
    read: int  # frames that were kept and encoded
    decoded: int  # frames that went through the decoder for it
    intervals: tuple[Interval, ...] = ()  # seconds it went over; nothing means the whole video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """How a video that is too long to be read whole was searched for the evidence of a question."""

    passes: tuple[Pass, ...]
    intervals: tuple[Interval, ...]  # seconds that were read closely; none if the reading was uniform
    uniform: bool  # whether frames from all over the video were read, because nothing seemed relevant
    why: str  # why these intervals, or why a uniform reading: a note in English, see `o3jax.notes`
    frames: int  # of the video
    budget: int  # frames that might be decoded
    lost: tuple[float, ...] = ()  # seconds of frames that could not be decoded, and were searched around
    cached: bool = False  # whether the coarse passes were kept from an earlier question

    @property
    def decoded(self) -> int:
        """Frames that were decoded for this question."""
        return sum(one.decoded for one in self.passes)

    @property
    def encoded(self) -> int:
        """Frames that were encoded for this question."""
        return sum(one.read for one in self.passes)

    def to_dict(self) -> dict[str, Any]:
        """Returns every field, and `decoded` and `encoded`, as JSON types."""
        return dataclasses.asdict(self) | {"decoded": self.decoded, "encoded": self.encoded}
