"""ExtremeWhenBench: moments in hour-long videos of LVBench, MLVU and VideoMME (which come without it)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.formats.benchmarks import grounding, values
from data_pipelines.formats.benchmarks.item import Frames, Item, Prompt
from data_pipelines.formats.benchmarks.media import Media
from data_pipelines.formats.benchmarks.tables import find, read_items

LAYOUT = (
    "the annotations (.jsonl, .json or .parquet) and {lvbench/all_videos,mlvu,videomme/data}/{video_id}.mp4"
)
_FOLDERS = {"LVBench": "lvbench/all_videos", "MLVU": "mlvu", "VideoMME": "videomme/data"}


def load(root: Path) -> list[Item]:
    """Returns the items."""
    media = Media(root)
    names = ("*extreme*when*{}", "test*{}", "data/*{}")
    path = find(root, *(name.format(end) for name in names for end in (".jsonl", ".parquet", ".json")))
    return read_items(path, lambda row, _: _item(row, media))


def _item(row: dict[str, Any], media: Media) -> Item:
    corpus, video = values.text(row, "source_corpus"), values.text(row, "video_id")
    return Item(
        id=values.text(row, "qid"),
        video=media.video(f"{_FOLDERS.get(corpus, 'videos')}/{video}", ""),
        question=values.text(row, "question"),
        intervals=(values.interval(values.parsed(row, "correct_interval"), "correct_interval"),),
        duration=values.number(row, "video_duration_s"),
        tags={"corpus": corpus, "category": values.text(row, "category", default="unknown")},
    )


# The line with the length is worth about 40 % of the mean IoU.
_PROMPT = (
    "[Video Temporal Grounding]\nYou are watching a {:.0f}-second long video.\n"
    "Please find the moment described by the following question, determining its starting and ending "
    "times. The format should be: 'The event happens in the start time - end time'. For example, The event "
    "'person turn a "
    'light on\' happens in the 24.3 - 30.4 seconds. Now I will give you the question: "{}"\n'
    "Please return its start time and end time."
)


def _official(item: Item) -> list[Prompt]:
    return [Prompt(_PROMPT.format(item.duration or 0, item.question))]


PROMPTS = {"official": _official, "lmms": _official, "o3": grounding.o3}
FRAMES = dict.fromkeys(("official", "lmms"), Frames("rate", 768))
