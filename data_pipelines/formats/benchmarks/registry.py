"""The benchmarks by name, and how one is read. A new one is a file here and a line in `FORMATS`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data_pipelines.formats.benchmarks import (
    activitynet,
    charades_sta,
    extremewhenbench,
    longvideo_reason,
    media,
    nextgqa,
    rextime,
    timelens,
    tvgbench,
    videomme,
    videomme_v2,
    videommmu,
    videozerobench,
    vstar,
    worldsense,
)
from data_pipelines.formats.benchmarks.item import Frames, Item, PromptBuilder
from o3jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Format:
    """A benchmark on disk."""

    load: Callable[[Path], list[Item]]
    layout: str  # what its folder is expected to hold
    prompts: Mapping[str, PromptBuilder]  # by the name of the harness
    frames: Mapping[str, Frames]  # of the harnesses that publish theirs


# The order is that of `--benchmark=all`.
_MODULES = (vstar, videozerobench, tvgbench, charades_sta, activitynet, timelens, extremewhenbench, rextime)
_MODULES += (nextgqa, videomme, videomme_v2, worldsense, videommmu, longvideo_reason)
FORMATS = {
    name: Format(load, module.LAYOUT, module.PROMPTS, getattr(module, "FRAMES", {}))
    for module in _MODULES
    for name, load in getattr(module, "LOADERS", {module.__name__.rpartition(".")[2]: module.load}).items()
}


def load(name: str, root: Path) -> list[Item]:
    """Returns the items of a benchmark, in the order of its files, whether or not their videos are there.

    Raises:
        UserError: if the annotations are missing or wrong, or two items have one id.
    """
    form = FORMATS[name]
    if not root.is_dir():
        raise UserError(f"{root} is no folder: {name} needs one with {form.layout}")
    try:
        items = form.load(root)
    except UserError as error:
        if "download the annotations" not in str(error):
            raise
        raise UserError(f"{error} ({name}: {form.layout})") from None
    doubled = [one for one, count in Counter(item.id for item in items).items() if count > 1]
    if doubled:
        raise UserError(f"{root}: {name} has the id {doubled[0]!r:.60} twice: restore the annotations")
    return items


def missing_videos(items: Sequence[Item]) -> list[Item]:
    """Returns the items whose videos are not there."""
    there = {video: media.exists(video) for video in {item.video for item in items}}
    return [item for item in items if not there[item.video]]


def folder_of(name: str, data_root: Path, several: bool) -> Path:
    """Returns a benchmark's folder: the data root itself, or of several the one of its name in it."""
    own, shared = data_root / name, data_root / "timelens"  # whose three sets come in one
    # Video-MME's own layout has a folder of its name, with the annotations alone.
    if own.is_dir() and (several or not list(own.glob("test*.parquet"))):
        return own
    if name.startswith("timelens_") and shared.is_dir():
        return shared
    return own if several else data_root
