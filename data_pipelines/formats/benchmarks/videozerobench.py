"""VideoZeroBench: answers, intervals and boxes on five levels (`VideoZeroBench_500_v0.tsv`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.formats.benchmarks import values
from data_pipelines.formats.benchmarks.item import BoxesAt, Frames, Item, Prompt
from data_pipelines.formats.benchmarks.media import Media
from data_pipelines.formats.benchmarks.tables import find, read_items
from data_pipelines.formats.fields import wrong
from o3jax.prompts import coords

LAYOUT = "VideoZeroBench_500_v0.tsv and compressed.zip, or what is in it as compressed/"


def load(root: Path) -> list[Item]:
    """Returns the items."""
    path, media = find(root, "VideoZeroBench_500_v0.tsv", "VideoZeroBench*.tsv"), Media(root)
    return read_items(path, lambda row, number: _item(row, number, media))


def _item(row: dict[str, Any], number: int, media: Media) -> Item:
    windows = values.parsed(row, "evidence_windows") or []
    found = values.parsed(row, "evidence_boxes") or []
    for name, value in (("evidence_windows", windows), ("evidence_boxes", found)):
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise wrong(name, "must be a list of objects")
    by_time: dict[float, list[Any]] = {}
    for one in found:
        box = one.get("box")
        if not isinstance(box, list) or len(box) != 4:
            raise wrong("evidence_boxes", "must hold boxes of four numbers")
        time = values.number(one, "time")
        if time is None:
            raise wrong("evidence_boxes", "must tell the time of each box")
        by_time.setdefault(round(time, 2), []).append(tuple(map(float, box)))
    return Item(
        id=values.text(row, "index", "id", default=f"{number}"),
        video=media.video(values.text(row, "video"), "compressed"),
        question=values.text(row, "question"),
        answer=values.text(row, "answer"),
        intervals=tuple(
            values.interval([one.get("start"), one.get("end")], "evidence_windows") for one in windows
        ),
        boxes=tuple(BoxesAt(time, tuple(boxes)) for time, boxes in sorted(by_time.items())),
        tags={
            "language": values.text(row, "language", default="en"),
            "domain": values.text(row, "domain", "category", default="unknown"),
        },
    )


_SYSTEM = (
    "You are a video understanding assistant. Based on the user's question, answer according to the video "
    "content and strictly follow the required output format specified by the user."
)
_DIRECT = {"en": "\nPlease directly output the final answer.", "cn": "\n请直接输出问题的最终答案。"}
_THINK = (
    "\nFirstly provide your detailed reasoning between the <think> and </think> tags, and then give your "
    "final answer between the <answer> and </answer> tags."
)


def _prompts(item: Item, think: bool) -> list[Prompt]:
    """Returns the five levels' prompts; the block on sampling is written by who samples (`{sampling}`)."""
    when = "; ".join(f"From <{s:.2f} seconds> to <{e:.2f} seconds>" for s, e in item.intervals)
    where = "; ".join(
        f"Time=<{at.time_s:.2f} seconds>, Normalized Box={_per_mille(box)}"
        for at in item.boxes
        for box in at.boxes
    )
    when_hint = f"\nThe temporal evidence for answering the question is: {when}." if when else ""
    where_hint = f"\nThe spatial evidence for answering the question is: {where}." if where else ""
    last = _THINK if think else _DIRECT["cn" if item.tags["language"] == "cn" else "en"]
    asked = f"{{sampling}}Question: {item.question}"
    prompts = [
        Prompt(f"{asked}{when_hint}{where_hint}{last}", "level1", system=_SYSTEM),
        Prompt(f"{asked}{when_hint}{last}", "level2", system=_SYSTEM),
        Prompt(f"{asked}{last}", "level3", system=_SYSTEM),
    ]
    if item.intervals:
        text = (
            f"{asked}\nOutput the time segments that hold the evidence for answering the question, at most "
            "20, each in the format `From <X seconds> to <Y seconds>.`, in absolute seconds, separated by "
            "one space, without any explanation."
        )
        prompts.append(Prompt(text, "level4", system=_SYSTEM))
    if item.boxes:
        times = tuple(at.time_s for at in item.boxes)
        listed = ", ".join(f"<{time:.2f} seconds>" for time in times)
        text = (
            f"{asked}\nThe times of the key frames are: {listed}. For each of these times, output the "
            "boxes of the evidence as a bare JSON array: "
            '[{"time": ..., "bbox_2d":[[x_min,y_min,x_max,y_max],...]}, ...]'
            ", with coordinates from 0 to 1000."
        )
        prompts.append(Prompt(text, "level5", system=_SYSTEM, key_times=times))
    return prompts


def _per_mille(box: tuple[float, ...]) -> str:
    return coords.format_box(coords.convert(box, coords.NORMALISED, coords.PER_MILLE), coords.PER_MILLE)


PROMPTS = {"official": lambda item: _prompts(item, False), "o3": lambda item: _prompts(item, True)}
FRAMES = dict.fromkeys(PROMPTS, Frames("ends", 384, height=128))  # the preset for Qwen3-VL


def thinned(indices: Sequence[int], keys: set[int], most: int) -> list[int]:
    """Returns frames of a level 5 prompt: the key frames, and of the others as many as there is room for,
    evenly (`linspace` of their places, as published)."""
    if len(indices) <= most:
        return sorted(indices)
    others = [index for index in indices if index not in keys]
    room = max(most - len(keys), 0)
    kept = np.linspace(0, len(others) - 1, room, dtype=int) if room and others else []
    return sorted(keys | {others[place] for place in kept})
