"""ReXTime: multiple choice with the interval that answers (`rextime_val.jsonl`; options from HF)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.formats.benchmarks import values
from data_pipelines.formats.benchmarks.choice import LETTERS_LMMS, interval_and_letter
from data_pipelines.formats.benchmarks.item import Item, Prompt
from data_pipelines.formats.benchmarks.media import Media
from data_pipelines.formats.benchmarks.tables import find, read_items, read_rows
from data_pipelines.formats.fields import wrong
from o3jax.errors import UserError

LAYOUT = "data/rextime_val.jsonl, a file with the options (of ReXTime/ReXTime) and videos/{vid}.mp4"


def load(root: Path) -> list[Item]:
    """Returns the items of the validation split; the test split's answers are not public."""
    path, media = find(root, "rextime_val.jsonl"), Media(root)
    options = _options(root, path) if any(row.get("options") is None for row in read_rows(path)) else {}
    return read_items(path, lambda row, _: _item(row, options, media))


def _options(root: Path, annotations: Path) -> dict[str, Any]:
    """Returns the options of each question by its qid, from whichever other file has them."""
    for ending in ("*.jsonl", "*.parquet", "*.json"):
        for path in sorted(root.rglob(ending)):
            if path != annotations and "test" not in path.name:
                rows = read_rows(path)
                if {"qid", "options"} <= rows[0].keys():
                    return {str(row["qid"]): row["options"] for row in rows}
    raise UserError(
        f"{root} has no file with the options of ReXTime's questions: download the data set ReXTime/ReXTime "
        "from Hugging Face into it"
    )


def _item(row: dict[str, Any], options: dict[str, Any], media: Media) -> Item:
    qid, vid = values.text(row, "qid"), values.text(row, "vid")
    choices = values.options(row.get("options") or options.get(qid))
    windows = values.intervals(row.get("relevant_windows"), "relevant_windows")
    if not windows:
        raise wrong("relevant_windows", "is missing; without one there is nothing to score")
    return Item(
        id=qid,
        video=media.video(vid),
        question=values.text(row, "query", "question"),
        answer=values.letter(values.text(row, "ans", "answer"), choices, "ans"),
        options=choices,
        intervals=windows,
        duration=values.number(row, "duration"),
        tags={"source": "ActivityNet" if vid.startswith("v_") else "QVHighlights"},
    )


def _official(item: Item) -> list[Prompt]:
    """Returns the two questions: the interval, then the letter."""
    when = (
        f"{item.question}\nFind the time span in the video that answers the question. Give it in the format "
        "'start time to end time' in seconds."
    )
    lines = "\n".join(item.lettered)
    what = f"Question: {item.question}\n{lines}\n{LETTERS_LMMS}"
    return [Prompt(when, "interval"), Prompt(what, "answer")]


PROMPTS = {"official": _official, "o3": interval_and_letter}
