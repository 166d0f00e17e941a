"""NExT-GQA: multiple choice with the segments that answer (`test.csv` and `gsub_test.json`, or `val`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.formats.benchmarks import values
from data_pipelines.formats.benchmarks.choice import LETTERS_LMMS, interval_and_letter
from data_pipelines.formats.benchmarks.item import Item, Prompt
from data_pipelines.formats.benchmarks.media import Media
from data_pipelines.formats.benchmarks.tables import find, look, read_items
from data_pipelines.formats.fields import wrong
from o3jax.files import read_json

LAYOUT = "datasets/nextgqa/test.csv, gsub_test.json, map_vid_vidorID.json and videos/{VidOR path}.mp4"


def load(root: Path) -> list[Item]:
    """Returns the items; of several segments of a question the best one counts."""
    media = Media(root)
    path = find(root, "test.csv", "val.csv")
    segments = read_json(find(root, f"gsub_{path.stem}.json"))
    mapped = look(root, "map_vid_vidorID.json")
    names = read_json(mapped) if mapped else {}

    def item(row: dict[str, Any], _: int) -> Item:
        vid, qid = values.text(row, "video_id"), values.text(row, "qid")
        about = segments.get(vid)
        if not isinstance(about, dict) or not isinstance(about.get("location"), dict):
            raise wrong("video_id", f"is {vid!r:.40}, which gsub_{path.stem}.json does not have")
        options = values.options([values.text(row, f"a{index}") for index in range(5)])
        return Item(
            id=f"{vid}_{qid}",
            video=media.video(str(names.get(vid, vid))),
            question=values.text(row, "question"),
            answer=values.letter(values.text(row, "answer"), options),
            options=options,
            intervals=values.intervals(about["location"].get(qid), "location"),
            duration=values.number(about, "duration"),
            tags={"type": values.text(row, "type", default="unknown")},
        )

    return read_items(path, item)


def _official(item: Item) -> list[Prompt]:
    lines = "\n".join(item.lettered)
    asked = f"Question: {item.question}\n{lines}"
    what = f"{asked}\n{LETTERS_LMMS}"
    when = (
        f"{asked}\nWhich time span of the video answers the question? Give it in the format 'start time - "
        "end time' in seconds."
    )
    return [Prompt(what, "answer"), Prompt(when, "interval")]


PROMPTS = {"official": _official, "o3": interval_and_letter}
