"""Files of annotation records, all of which must be right."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from data_pipelines.formats.article import from_article
from data_pipelines.formats.fields import Record, RecordError
from data_pipelines.formats.sample import Sample
from data_pipelines.formats.stgr import from_stgr
from o3jax.errors import UserError
from o3jax.files import read_json


def load_stgr(path: str | os.PathLike) -> list[Sample]:
    """Returns the samples of a JSON file of published records."""
    return _load(Path(path), lambda record, _: from_stgr(record))


def load_article(path: str | os.PathLike) -> list[Sample]:
    """Returns the samples of a JSON file of the article's records, with ids "<file>-<number>"."""
    return _load(Path(path), from_article)


def _load(path: Path, read: Callable[[Record, str], Sample]) -> list[Sample]:
    samples = []
    for i, record in enumerate(read_json(path, list)):
        if not isinstance(record, dict):
            raise UserError(f"{path} must hold a JSON list of objects, one for each question")
        try:
            samples.append(read(record, f"{path.stem}-{i}"))
        except RecordError as error:
            raise UserError(f"{path} record {i}: {error}") from error
    return samples
