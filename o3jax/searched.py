"""What was searched of a long video before it was asked about: as data, in JSON and in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from o3jax import notes
from o3jax.grounding import Interval
from o3jax.notes import Note
from o3jax.printing import clock


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """Frames that were read in one go."""

    name: str  # coarse, cues, refine, fine or uniform
    every_s: float  # about how far its frames are apart; 0 where single ones were chosen
    read: int  # frames that were encoded, those of the dense stream too
    decoded: int  # frames that went through the decoder; 0 where they were kept from an earlier question
    intervals: tuple[Interval, ...] = ()  # seconds it went over; nothing means the whole video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """How a video that is too long to be read whole was searched for the evidence of a question."""

    passes: tuple[Pass, ...]
    intervals: tuple[Interval, ...]  # seconds that were read closely; none if the reading was uniform
    uniform: bool  # whether frames from all over the video were read, because nothing seemed relevant
    why: str  # why these intervals, or why a uniform reading
    frames: int  # of the video
    budget: int  # frames that might be decoded
    lost: tuple[float, ...] = ()  # seconds that could not be decoded, and were searched around
    unread: int = 0  # relevant stretches that there was no room to read
    cached: bool = False  # whether what does not depend on the question was kept from an earlier one
    relevance: tuple[tuple[float, float], ...] = ()  # (seconds, probability) of each frame looked at

    @property
    def decoded(self) -> int:
        """Frames that were decoded for this question."""
        return sum(one.decoded for one in self.passes)

    @property
    def encoded(self) -> int:
        """Frames that were encoded for this question."""
        return sum(one.read for one in self.passes if one.decoded or not self.cached)

    def to_dict(self) -> dict[str, Any]:
        """Returns every field, and `decoded` and `encoded`, as JSON types."""
        fields = dataclasses.asdict(self)
        fields["relevance"] = [[round(t, 3), round(p, 4)] for t, p in self.relevance]
        return fields | {"decoded": self.decoded, "encoded": self.encoded}

    def text(self, language: str) -> str:
        """Returns in "en" or "zh" what was read, in one sentence."""
        share = 100 * self.decoded / max(self.frames, 1)
        said = Note("search", self.decoded, self.frames, round(share, 1))
        return f"{said.text(language)}; {notes.text(self.why, language)}"


@dataclasses.dataclass(frozen=True)
class Event:
    """How far a search is; `text` says it."""

    stage: str  # coarse, cues, refine or fine
    done_s: float  # where in the video it is
    total_s: float  # how long the video is

    def text(self, language: str = "en") -> str:
        """Returns it in "en" or "zh"."""
        return Note(f"searching {self.stage}", clock(self.done_s), clock(self.total_s)).text(language)


Progress = Callable[[Event], None]
