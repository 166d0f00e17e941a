"""A run on one benchmark as a folder: beside what every run's folder has, its items and figures.

items.jsonl     the items with their truth, so that any number can be computed again without data or model
judge.jsonl     what a judge replied
result.json     the figures
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.formats.benchmarks.item import BoxesAt, Item
from experiments.library.records import RunFolder, lines
from o3jax.errors import UserError
from o3jax.files import whole_file


class Run(RunFolder):
    """The folder of one benchmark's run."""

    may_differ = ("versions", "data_root")

    def __init__(self, folder: Path, suffix: str = "", items: Sequence[Item] = ()):
        super().__init__(folder, suffix)
        self._items = items

    def prepare(self) -> None:
        with whole_file(self.folder / "items.jsonl") as temporary:
            texts = (json.dumps(_to_json(item), ensure_ascii=False) + "\n" for item in self._items)
            temporary.write_text("".join(texts), encoding="utf-8")

    def items(self) -> list[Item]:
        """Returns the items as they were when the run began; UserError if one of them cannot be read."""
        path = self.folder / "items.jsonl"
        found = [_from_json(row) for row in lines(path)]
        if not found or len(path.read_bytes().splitlines()) != len(found):  # it is written whole
            raise UserError(f"{path} is cut off: restore it, or choose another --workdir and ask again")
        return found


def _to_json(item: Item) -> dict[str, Any]:
    fields = dataclasses.asdict(item)
    fields["tags"] = {name: value for name, value in item.tags.items() if not isinstance(value, bytes)}
    return fields


def _from_json(row: dict[str, Any]) -> Item:
    fields = dict(row)
    fields["options"] = tuple(row["options"])
    fields["intervals"] = tuple(map(tuple, row["intervals"]))
    fields["boxes"] = tuple(BoxesAt(time, tuple(map(tuple, boxes))) for time, boxes in row["boxes"])
    return Item(**fields)
