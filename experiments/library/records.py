"""A run over many videos as a folder that goes on where it stopped.

run.json        what it was made with: another run does not go on here
records*.jsonl  a line for each piece of work that is done, a file for each process
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from o3jax.errors import UserError
from o3jax.files import append_text, read_json, write_json

Record = dict[str, Any]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which part of the videos a process takes."""

    number: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Returns the shard of `0/4`; UserError if it is none."""
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count) <= 10**6):
            raise UserError(f"--shard must be such as 0/4, the first of four, not {text!r:.40}")
        return cls(int(number), int(count))

    @property
    def suffix(self) -> str:
        """What its file of records is called by."""
        return "" if self.count == 1 else f"-{self.number}-of-{self.count}"

    def of(self, items: Sequence[T]) -> list[T]:
        """Returns the items that are this process' share, in their order."""
        return list(items[self.number :: self.count])


class RunFolder:
    """The folder of a run."""

    flag = "--workdir"  # names it on the command line
    may_differ: Collection[str] = ("versions",)  # between a run and its continuation

    def __init__(self, folder: Path, suffix: str = ""):
        self.folder = folder
        self._own = folder / f"records{suffix}.jsonl"  # of this process alone

    def begin(self, made_with: dict[str, Any]) -> None:
        """Makes the folder, or checks that it holds this very run; UserError if it holds another one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "run.json"
        if path.exists():
            self._check(read_json(path), json.loads(json.dumps(made_with)))
            return
        try:
            self.prepare()
            write_json(path, made_with, indent=1)
        except FileNotFoundError:  # another process has just written the same
            if not path.exists():
                raise

    def prepare(self) -> None:
        """Writes what must be there before run.json is."""

    def _check(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        for name in [*wanted, *found]:
            if name not in self.may_differ and found.get(name) != wanted.get(name):
                raise UserError(
                    f"{self.folder} holds a run of another {name} ({_short(found.get(name))}, now "
                    f"{_short(wanted.get(name))}): choose another {self.flag}, or take the flags of that run"
                )

    def made_with(self) -> dict[str, Any]:
        """Returns what the run was made with; UserError if the folder holds no run."""
        if not (self.folder / "run.json").is_file():
            raise UserError(f"{self.folder} holds no run: name the folder that has a run.json")
        return read_json(self.folder / "run.json")

    def records(self) -> dict[str, Record]:
        """Returns the last record of each id, of all processes; a line that was cut off counts nothing."""
        found: dict[str, Record] = {}
        for path in sorted(self.folder.glob("records*.jsonl")):
            for line in lines(path):
                for record in line.get("records", ()):
                    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
                        continue  # as little as a line that was cut off
                    if "error" not in record or record["id"] not in found:
                        found[record["id"]] = record
        return found

    def add(self, records: Sequence[Record]) -> None:
        """Writes the records of one piece of work, in one line: all of them are there, or none."""
        append_line(self._own, {"records": records})


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Adds a line of JSON to a file, behind a line that a killed process may have left unfinished."""
    cut = False
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, 2)
            cut = file.read() != b"\n"
    append_text(path, "\n" * cut + json.dumps(value, ensure_ascii=False) + "\n")


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file of JSON lines; what was cut off is passed over."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue  # written when the process was killed
        if isinstance(value, dict):
            yield value


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:80]
