"""Rows of json, jsonl, csv, tsv and parquet files, or one sentence on what is wrong with the file."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data_pipelines.formats.fields import RecordError
from o3jax.errors import UserError
from o3jax.files import read_json

Row = dict[str, Any]
T = TypeVar("T")


def find(root: Path, *names: str) -> Path:
    """Returns the first file that one of the names, which may be patterns, finds in the folder or below.

    Raises:
        UserError: if there is none; it says what is expected where.
    """
    found = look(root, *names)
    if found is None:
        raise UserError(f"{root} has no {' or '.join(names[:3])}: download the annotations into it")
    return found


def look(root: Path, *names: str) -> Path | None:
    """Returns what `find` does, None where there is nothing."""
    if not root.is_dir():
        raise UserError(f"{root} is no folder: name the one that holds the benchmark's files")
    for pattern in (*names, *(f"**/{name}" for name in names)):
        if found := sorted(path for path in root.glob(pattern) if path.is_file()):
            return found[0]
    return None


def read_rows(path: Path) -> list[Row]:
    """Returns the rows of a file by its ending; UserError if it is cut off, or no table of objects."""
    reader = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    if path.suffix not in reader:
        raise UserError(f"{path} has an unknown ending: give a {', '.join(reader)} file")
    try:
        rows = list(reader[path.suffix](path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): download it again") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}): download it again") from None
    if not rows:
        raise UserError(f"{path} holds no rows: download it again")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {number + 1} is no object, but {row!r:.60}: download it again")
    return rows


def read_items(path: Path, item: Callable[[Row, int], T]) -> list[T]:
    """Returns what `item` makes of each row and its number.

    Raises:
        UserError: as `read_rows`; and with the file and the row, where a field is wrong.
    """
    items = []
    for number, row in enumerate(read_rows(path)):
        with At(path, number):
            items.append(item(row, number))
    return items


def _json(path: Path) -> Sequence[Row]:
    return read_json(path, list)


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path}: line {number + 1} is not valid JSON ({error}): download it again"
                ) from None


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(
                        f"{path}: line {reader.line_num} has not the {len(reader.fieldnames or ())} fields "
                        "of the header: download it again"
                    )
                yield row
        except csv.Error as error:
            raise UserError(
                f"{path}: line {reader.line_num} is no row ({error}): download it again"
            ) from None


def _parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"{path} is no whole parquet file ({reason}): download it again") from None


class At:
    """Adds to the error of a row the file and the number of the row."""

    def __init__(self, path: Path, number: int | str):
        self.place = f"{path}: row {number + 1}" if isinstance(number, int) else f"{path}: {number!r:.80}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        if isinstance(error, RecordError):
            raise UserError(f"{self.place}: {error}") from None
