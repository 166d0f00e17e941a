"""WorldSense: multiple choice of three or four about picture and sound (`WorldSense.tsv`).

The benchmark is audio-visual; a model that only sees answers without the sound, and the table says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.formats.benchmarks import choice, values
from data_pipelines.formats.benchmarks.item import OPEN_O3_FRAMES, Item, Prompt
from data_pipelines.formats.benchmarks.media import Media
from data_pipelines.formats.benchmarks.tables import find, read_items

LAYOUT = "WorldSense.tsv (or lmms-eval's parquet) and videos/{video}.mp4 or worldsense_videos*.zip"
TABLES = ("duration", "domain", "sub_category", "task_domain", "task_type")


def load(root: Path) -> list[Item]:
    """Returns the items; some questions have three options only."""
    path, media = find(root, "WorldSense.tsv", "test*.parquet", "*orld*ense*.parquet"), Media(root)
    return read_items(path, lambda row, number: _item(row, number, media))


def _item(row: dict[str, Any], number: int, media: Media) -> Item:
    options = values.options(values.parsed(row, "candidates"), "candidates")
    audio = values.parsed(row, "audio_class") or []
    return Item(
        id=values.text(row, "index", default=str(number)),
        video=media.video(values.text(row, "video_path", "video")),
        question=values.text(row, "question"),
        answer=values.letter(values.text(row, "answer"), options),
        options=options,
        subtitles=media.subtitles(values.text(row, "subtitle_path", "video")),
        tags={name: values.text(row, name, default="unknown") for name in TABLES}
        | {"audio": "+".join(map(str, audio)) if isinstance(audio, list) else str(audio)},
    )


_SYSTEM = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the "
    "best option that accurately addresses the question."
)
_SELECT = "Select the best answer to the multiple-choice question based on the video. "


def _text(item: Item, last: str) -> str:
    spoken = "\n".join(choice.subtitle_lines(item.subtitles))
    words = f"\n\n{spoken}\n" if spoken else "\nThis video does not have audio transcripts. "
    lines = "\n".join(item.lettered)
    frames = "These are the frames of a video. Audio transcripts of the video:"
    return f"{_SYSTEM}\n{frames}{words}\nQuestion: {item.question}\n{lines}\n{last}"


def _official(item: Item) -> list[Prompt]:
    """Returns VLMEvalKit's prompt with subtitles where there are some."""
    last = f"{_SELECT}Respond with only the letter ({choice.names(item)}) of the correct option. "
    return [Prompt(_text(item, last))]


def _lmms(item: Item) -> list[Prompt]:
    text = (
        "These are the frames of a video and the corresponding audio. Select the best answer to the "
        "following multiple-choice question based on the video. Respond with only the letter "
        f"({choice.names(item)}) of the correct option.\n{choice.question(item)}\n{choice.LETTERS_LMMS}"
    )
    return [Prompt(text, max_new_tokens=1024)]


def _think(item: Item) -> list[Prompt]:
    last = (
        f"{_SELECT}{choice.THINK}In the answer part, respond with only the letter ({choice.names(item)}) "
        "of the correct option. "
    )
    return [Prompt(_text(item, last))]


PROMPTS = {"official": _official, "lmms": _lmms, "o3": _think}
FRAMES = {"o3": OPEN_O3_FRAMES}
