"""Video-MME-v2: multiple choice of eight, four questions a group (`test.parquet`, zips of the videos)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.formats.benchmarks import choice, values
from data_pipelines.formats.benchmarks.item import Frames, Item, Prompt
from data_pipelines.formats.benchmarks.media import Media
from data_pipelines.formats.benchmarks.tables import find, read_items
from data_pipelines.formats.fields import wrong

LAYOUT = "test.parquet, the zips of the videos or {video_id}.mp4, subtitle/{video_id}.jsonl"
TABLES = ("group_type", "level", "second_head", "third_head")


def load(root: Path) -> list[Item]:
    """Returns the items; the group of a question is its video."""
    path, media = find(root, "test.parquet", "test*.parquet"), Media(root)
    return read_items(path, lambda row, _: _item(row, media))


def _item(row: dict[str, Any], media: Media) -> Item:
    video, qid = values.text(row, "video_id"), values.text(row, "question_id")
    if not qid.rpartition("-")[2].isdigit():
        raise wrong("question_id", f"must end in its number in the group, not {qid!r:.40}")
    options = values.options(row.get("options"))
    return Item(
        id=qid,
        video=media.video(video),
        question=values.text(row, "question"),
        answer=values.letter(values.text(row, "answer"), options),
        options=options,
        group=video,
        subtitles=media.subtitles(video),
        tags={
            **{name: values.text(row, name, default="unknown") for name in TABLES},
            "group_structure": values.text(row, "group_structure", default="[1, 2, 3, 4]"),
        },
    )


def _official(item: Item) -> list[Prompt]:
    return [Prompt(_text(item, ""))]


def _with_subtitles(item: Item) -> list[Prompt]:
    words = " ".join(choice.subtitle_lines(item.subtitles))
    return [Prompt(_text(item, f"This video's subtitles are listed below:\n{words}\n" if words else ""))]


def _text(item: Item, subtitles: str) -> str:
    lines = "\n".join(item.lettered)
    return (
        f"These are the frames of a video.\n{subtitles}Select the best answer to the following "
        "multiple-choice question based on the video.\nRespond with only the letter "
        f"({choice.names(item)}) of the correct option.\nQuestion: {item.question}\n{lines}"
    )


def _reasoning(item: Item) -> list[Prompt]:
    text = (
        "Please perform a detailed reasoning based on the provided video frames to answer the following "
        f"multiple-choice question selecting the best option from {item.letters[0]} through "
        f"{item.letters[-1]} and providing your final response strictly in the format: 'Final Answer: "
        f"<letter>.\n{choice.question(item)}"
    )
    return [Prompt(text)]


PROMPTS = {
    "official": _official,
    "subtitles": _with_subtitles,
    "reasoning": _reasoning,
    "lmms": _official,
    "o3": choice.own_style,
}
FRAMES = dict.fromkeys(("official", "subtitles", "reasoning"), Frames("inner", 64))
