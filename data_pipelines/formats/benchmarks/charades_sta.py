"""Charades-STA: sentences to find, in any of the three forms in which they are handed around.

The official text lines, the JSON object of videos (Time-R1, VTimeLLM), or lmms-eval's parquet files. 562 of
3,720 ends lie after the annotated duration; nothing is clipped.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from data_pipelines.formats.benchmarks import grounding, values
from data_pipelines.formats.benchmarks.item import TIME_R1_FRAMES, Item, Prompt
from data_pipelines.formats.benchmarks.media import Media
from data_pipelines.formats.benchmarks.tables import At, find, look, read_items, read_rows
from data_pipelines.formats.fields import wrong

LAYOUT = "Charades_sta_test.txt (or charades*.json, or test*.parquet) and Charades_v1/{id}.mp4"


def load(root: Path) -> list[Item]:
    """Returns the items."""
    media = Media(root)
    path = find(root, "Charades_sta_test.txt", "*harades*.json", "test*.parquet")
    read = {".txt": _lines, ".json": _object, ".parquet": _parquet}[path.suffix]
    return read(path, root, media)


def _lines(path: Path, root: Path, media: Media) -> list[Item]:
    lengths, items = {}, []
    if table := look(root, "Charades_v1_test.csv"):
        lengths = {row["id"]: values.number(row, "length") for row in read_rows(table) if "id" in row}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        if not line.strip():
            continue
        with At(path, number):
            head, mark, sentence = line.partition("##")
            parts = head.split()
            if not mark or len(parts) != 3:
                raise wrong("line", f"must be `VIDEO start end##sentence`, not {line!r:.60}")
            items.append(
                Item(
                    id=f"{parts[0]}_{number}",
                    video=media.video(parts[0], "Charades_v1"),
                    question=sentence.strip(),
                    intervals=(values.interval(parts[1:], "line"),),
                    duration=lengths.get(parts[0]),
                )
            )
    return items


def _object(path: Path, root: Path, media: Media) -> list[Item]:
    found = grounding.queries_by_video(path, "sentences", "timestamps")
    return [dataclasses.replace(item, video=media.video(name, "Charades_v1")) for name, _, _, item in found]


def _parquet(path: Path, root: Path, media: Media) -> list[Item]:
    def item(row: dict[str, Any], number: int) -> Item:
        video = values.text(row, "video")
        return Item(
            id=f"{Path(video).stem}_{number}",
            video=media.video(video, "Charades_v1_480"),
            question=values.text(row, "caption"),
            intervals=values.intervals(values.parsed(row, "timestamp"), "timestamp"),
        )

    return read_items(path, item)


# The typing error and the example, which is the first real annotation, are lmms-eval's.
_LMMS = (
    "Please find the visual event described by a sentence in the video, determining its starting and ending "
    "times. The format should be: 'The event happens in the start time - end time'. For example, The event "
    "'person turn a light on' happens in the 24.3 - 30.4 seonds. Now I will give you the textual sentence: "
    "{}. Please return its start time and end time."
)


def _lmms(item: Item) -> list[Prompt]:
    return [Prompt(_LMMS.replace("{}", item.question), max_new_tokens=50)]


PROMPTS = {"official": grounding.time_r1, "lmms": _lmms, "o3": grounding.o3}
FRAMES = {"official": TIME_R1_FRAMES}
