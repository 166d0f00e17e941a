"""Video-MME: multiple choice of four (`videomme/test*.parquet`, `data/{videoID}.mp4` or its zips)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.formats.benchmarks import choice, values
from data_pipelines.formats.benchmarks.item import OPEN_O3_FRAMES, Frames, Item, Prompt
from data_pipelines.formats.benchmarks.media import Media
from data_pipelines.formats.benchmarks.tables import find, read_items

LAYOUT = (
    "videomme/test-00000-of-00001.parquet, data/{videoID}.mp4 or videos_chunked_*.zip, subtitle/ or its zip"
)
TABLES = ("duration", "domain", "sub_category", "task_type")


def load(root: Path) -> list[Item]:
    """Returns the items."""
    path, media = find(root, "videomme/test*.parquet", "test*.parquet"), Media(root)
    return read_items(path, lambda row, _: _item(row, media))


def _item(row: dict[str, Any], media: Media) -> Item:
    video = values.text(row, "videoID", "video_id")
    options = values.options(row.get("options"))
    return Item(
        id=values.text(row, "question_id"),
        video=media.video(video, "data"),
        question=values.text(row, "question"),
        answer=values.letter(values.text(row, "answer"), options),
        options=options,
        subtitles=media.subtitles(video),
        tags={name: values.text(row, name, default="unknown") for name in TABLES},
    )


_SELECT = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with "
    "only the letter (A, B, C, or D) of the correct option.\n"
)


def _official(item: Item) -> list[Prompt]:
    """Returns the prompt of Qwen3-VL's evaluation, without subtitles."""
    lines = "\n".join(item.lettered)
    return [Prompt(f"{_SELECT}Question: {item.question}\n{lines}\nThe best answer is:")]


def _lmms(item: Item) -> list[Prompt]:
    """Returns lmms-eval's default; it speaks of subtitles also where there are none."""
    select = _SELECT.replace("based on the video", "based on the video and the subtitles")
    return [Prompt(f"{select}{choice.question(item)}\n{choice.LETTERS_LMMS}", max_new_tokens=16)]


def _think(item: Item) -> list[Prompt]:
    """Returns the prompt of Open-o3 Video's evaluation."""
    text = (
        f"Question:{choice.question(item)}\nSelect the best answer to the multiple-choice question based "
        f"on the video. {choice.THINK} In the answer part, respond with only the letter "
        f"({choice.names(item)}) of the correct option."
    )
    return [Prompt(text)]


PROMPTS = {"official": _official, "lmms": _lmms, "o3": _think}
FRAMES = {
    "official": Frames("rate", 512, pixels=(3584, 401408), all_pixels=19267584),  # Qwen3-VL's
    "o3": OPEN_O3_FRAMES,
}
