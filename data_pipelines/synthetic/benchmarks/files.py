"""What the questions of all made benchmarks are about, and the kinds of files that hold them."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av

from data_pipelines.formats.benchmarks.item import LETTERS
from data_pipelines.synthetic.scenes import COLORS, SHAPES, Object, Scene
from o3jax.files import write_text
from o3jax.grounding import Interval


class Fact(NamedTuple):
    """One object of a clip: what the questions are about."""

    number: int  # of all facts
    scene: Scene
    clip: Path  # its mp4
    thing: Object

    @property
    def name(self) -> str:
        return self.thing.name("en")

    @property
    def interval(self) -> Interval:
        return self.thing.visible[0]

    @property
    def middle(self) -> float:
        return round(sum(self.interval) / 2, 1)

    def options(self, count: int = 4) -> tuple[list[str], str]:
        """Returns options on its colour and shape, and the letter of the right one."""
        looks = [f"{color} {shape}" for color, shape in itertools.product(COLORS, SHAPES)]
        at = looks.index(f"{self.thing.color} {self.thing.shape}")
        right = self.number % count
        return [looks[(at + k - right) % len(looks)] for k in range(count)], LETTERS[right]


def place(fact: Fact, path: Path) -> None:
    """Puts the fact's clip at a path; another ending than mp4 is another container, encoded anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    if path.suffix == ".mp4":
        shutil.copyfile(fact.clip, path)
        return
    scene = fact.scene
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=scene.fps)
        stream.height, stream.width = scene.size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 1_000_000
        for frame in scene.render([number / scene.fps for number in range(scene.frame_count)]):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_zip(path: Path, facts: Sequence[Fact], name: Callable[[Fact], str]) -> None:
    """Writes a zip of the facts' clips under the names that they are given in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for inside, fact in {name(fact): fact for fact in facts}.items():
            archive.write(fact.clip, inside)


def write_tar(path: Path, facts: Sequence[Fact], name: Callable[[Fact], str]) -> None:
    """Writes a tar of clips, packed where its name ends so, under the names that they are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for inside, fact in {name(fact): fact for fact in facts}.items():
            archive.add(fact.clip, inside)


def write_jsonl(path: Path, rows: Sequence[Any]) -> None:
    """Writes a JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a csv or tsv file, by its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a parquet file."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def lettered(options: Sequence[str]) -> list[str]:
    """Returns options as `A. text`."""
    return [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)]
