"""ActivityNet-Captions as grounding: sentences to find (`val_2.json` or `val_1.json`, videos by their key).

134 of 17,505 spans of val_1 are empty or out of range: nothing is clipped or dropped.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_pipelines.formats.benchmarks import grounding
from data_pipelines.formats.benchmarks.item import TIME_R1_FRAMES, Item
from data_pipelines.formats.benchmarks.media import Media
from data_pipelines.formats.benchmarks.tables import find

LAYOUT = "val_2.json (or val_1.json) and videos/{id}.mp4, .mkv or .webm"


def load(root: Path) -> list[Item]:
    """Returns the items; sentences are stripped of the blanks that many have in front."""
    media = Media(root)
    path = find(root, "val_2.json", "val_1.json", "activitynet*.json")
    found = grounding.queries_by_video(path, "sentences", "timestamps")
    return [dataclasses.replace(item, video=media.video(name)) for name, _, _, item in found]


PROMPTS = {"official": grounding.time_r1, "o3": grounding.o3}
FRAMES = {"official": TIME_R1_FRAMES}
