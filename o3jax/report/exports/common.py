"""What several formats share: names of files, numbers of frames, boxes in pixels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from o3jax.grounding import Box
from o3jax.prompts.coords import frame_index
from o3jax.report.moments import Moment, VideoMoments

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Run = Callable[..., Any]  # calls a function that reads a video


def named(videos: Sequence[VideoMoments]) -> Iterator[tuple[str, VideoMoments]]:
    """Yields each video with a name for its files: that of its own file, with a number where it is taken."""
    taken: set[str] = set()
    for video in videos:
        stem = Path(video.file).stem.encode(errors="replace").decode()[:100]
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        yield name, video


def labels(videos: Sequence[VideoMoments]) -> list[str]:
    """Returns the labels of all moments, in order."""
    return sorted({moment.label for video in videos for moment in video.moments})


def frames_of(video: VideoMoments) -> int:
    """Returns how many frames a video has, at its own rate."""
    return max(1, round(video.duration_s * video.fps))


def frame_at(video: VideoMoments, time_s: float) -> int:
    """Returns the number of the frame that a video shows at a time, inside the video."""
    return min(max(frame_index(time_s, video.fps), 0), frames_of(video) - 1)


def pixels(video: VideoMoments, box: Box) -> Box:
    """Returns a box in pixels, inside the picture, with two decimals."""
    width, height = video.size
    return tuple(
        round(min(max(c, 0.0), 1.0) * side, 2)
        for c, side in zip(box, (width, height, width, height), strict=True)
    )


def boxes(moment: Moment) -> list[tuple[float, Box]]:
    """Returns the first box of each time that has one, in the order of time."""
    found = {e.time_s: e.box for e in reversed(moment.evidence) if e.box is not None and e.time_s is not None}
    return sorted(found.items())


def xml_text(text: str) -> str:
    """Returns a text without the characters that XML does not have."""
    return _NOT_XML.sub("?", text)
