"""TimeLens-Bench: three grounding benchmarks, annotated anew (`{set}-timelens.json`, or parquet)."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

from data_pipelines.formats.benchmarks import grounding, values
from data_pipelines.formats.benchmarks.item import Frames, Item, Prompt
from data_pipelines.formats.benchmarks.media import Media
from data_pipelines.formats.benchmarks.tables import find, read_items

LAYOUT = "{set}-timelens.json and videos/{set}/{id}.mp4 (or video_shards/*.tar.gz)"


def load(root: Path, name: str) -> list[Item]:
    """Returns the items of one of the three sets."""
    media, folder = Media(root), f"videos/{name}"
    path = find(root, f"{name}-timelens.json", f"{name}*.parquet")
    if path.suffix == ".json":
        found = grounding.queries_by_video(path, "queries", "spans")
        items = [
            dataclasses.replace(item, video=media.video(f"{name}/{video}", folder))
            for video, _, _, item in found
        ]
    else:
        items = read_items(path, lambda row, number: _item(row, number, media, folder))
    return [dataclasses.replace(item, question=_clean(item.question)) for item in items]


LOADERS = {
    f"timelens_{name}": functools.partial(load, name=name)
    for name in ("charades", "activitynet", "qvhighlights")
}


def _item(row: dict[str, Any], number: int, media: Media, folder: str) -> Item:
    video = values.text(row, "video_path")
    span = values.intervals(values.parsed(row, "span"), "span")
    found = media.video(video, folder)
    return Item(f"{Path(video).stem}-{number}", found, values.text(row, "query"), intervals=span)


def _clean(query: str) -> str:
    return re.sub(r"\s+", " ", query).strip().rstrip(".")


_PROMPT = (
    "Please find the visual event described by the sentence '{}', determining its starting and ending times. "
    "The format should be: 'The event happens in <start time> - <end time> seconds'."
)
# For models that read the times as text between the frames, as Qwen3-VL does.
_TIMES = (
    "You are given a video with multiple frames. The numbers before each video frame indicate its sampling "
    "timestamp (in seconds). "
)


def _official(item: Item) -> list[Prompt]:
    return [Prompt(_TIMES + _PROMPT.replace("{}", item.question), max_new_tokens=512)]


def _lmms(item: Item) -> list[Prompt]:
    return [Prompt(_PROMPT.replace("{}", item.question), max_new_tokens=50)]


PROMPTS = {"official": _official, "lmms": _lmms, "o3": grounding.o3}
FRAMES = {"official": Frames("rate", 768, pixels=(64 * 32**2, 768 * 32**2), all_pixels=14336 * 32**2)}
