"""LongVideo-Reason-eval: multiple choice on long videos (rows with `videos`, `problem`, `answer`)."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from data_pipelines.formats.benchmarks import values
from data_pipelines.formats.benchmarks.item import Item, Prompt
from data_pipelines.formats.benchmarks.media import Media
from data_pipelines.formats.benchmarks.tables import find, read_items

LAYOUT = "the annotations (test*.parquet, .json or .jsonl) and longvila_videos/{videos}"
_ANSWER = re.compile(r"\s*<answer>([^<]*)</answer>\s*")
_OPTION = re.compile(r"^\(?([A-Z])[).:] *(\S.*)$", re.MULTILINE)


def load(root: Path) -> list[Item]:
    """Returns the items; the options are lines of the problem, and are read out of it for parsers alone."""
    names = [name + end for name in ("*eval*", "test*") for end in (".parquet", ".jsonl", ".json")]
    path, media = find(root, *names), Media(root)
    seen: Counter[str] = Counter()
    return read_items(path, lambda row, _: _item(row, media, seen))


def _item(row: dict[str, Any], media: Media, seen: Counter[str]) -> Item:
    """Returns an item; `seen` counts the questions about each video, for those without an id."""
    given = row.get("videos")
    video = str(given[0]) if isinstance(given, list) and given else values.text(row, "videos", "video")
    problem, answer = values.text(row, "problem"), values.text(row, "answer")
    inside, found = _ANSWER.fullmatch(answer), _OPTION.findall(problem)
    letters = "".join(letter for letter, _ in found)
    options = tuple(text for _, text in found) if "ABCDEFGHIJ".startswith(letters) else ()
    answer = (inside[1] if inside else answer).strip()
    stem = Path(video).stem
    seen[stem] += 1
    return Item(
        id=values.text(row, "problem_id", "id", default=f"{stem}-{seen[stem]}"),
        video=media.video(video, "longvila_videos"),
        question=problem,
        answer=values.letter(answer, options) if options else answer,
        options=options,
        tags={"type": values.text(row, "problem_type", "type", default="unknown")},
    )


_PROMPT = (
    "You are a helpful assistant. The user asks a question, and then you solves it.\n\nPlease first think "
    "deeply about the question based on the given video, and then provide the final answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>.\n\n Question: "
)


def _official(item: Item) -> list[Prompt]:
    return [Prompt(f"{_PROMPT}{item.question}")]


PROMPTS = {"official": _official, "o3": _official}
