"""TVGBench: 800 events to find (`tvgbench.json` of Time-R1, videos by the `path` of each row)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from data_pipelines.formats.benchmarks import grounding, values
from data_pipelines.formats.benchmarks.item import TIME_R1_FRAMES, Item, Prompt
from data_pipelines.formats.benchmarks.media import Media
from data_pipelines.formats.benchmarks.tables import find, read_items

LAYOUT = "tvgbench.json and videos/ with the path of each row"


def load(root: Path) -> list[Item]:
    """Returns the items. The truth is `answer`: `start` and `end` tell the clip's cut out of its source."""
    path, media = find(root, "tvgbench.json"), Media(root)
    return read_items(path, lambda row, number: _item(row, number, media))


def _item(row: dict[str, Any], number: int, media: Media) -> Item:
    video = values.text(row, "path")
    bins = row.get("bins") if isinstance(row.get("bins"), dict) else {}
    return Item(
        id=f"{PurePosixPath(video).stem}_{number}",
        video=media.video(video),
        question=values.text(row, "question"),
        intervals=(values.interval(row.get("answer"), "answer"),),
        duration=values.number(row, "duration"),
        tags={
            "type": values.text(row, "qsemtype", default="unknown"),
            # 168 rows have no dataset_name.
            "dataset": values.text(row, "dataset_name", default=str(bins.get("dataset", "unknown"))),
        },
    )


_THINK = (
    "Output your thought process within the <think> </think> tags, including analysis with either specific "
    "time ranges (xx.xx to xx.xx) in <timestep> </timestep> tags.\n\nThen, provide "
)


def _r1(item: Item) -> list[Prompt]:
    text = grounding.TIME_R1.replace("Provide ", _THINK, 1).replace("{}", item.question)
    return [Prompt(text, max_new_tokens=1024)]


PROMPTS = {"official": grounding.time_r1, "r1": _r1, "o3": grounding.o3}
FRAMES = dict.fromkeys(PROMPTS, TIME_R1_FRAMES)  # Open-o3 Video's authors take Time-R1's code
