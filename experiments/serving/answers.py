"""The answers of a server, each with its JSON, its report if wanted, and what a person says of it."""

from __future__ import annotations

import collections
import dataclasses
import re
import secrets
import threading
from pathlib import Path
from typing import Any

from experiments.serving.errors import ApiError
from experiments.serving.files import Medium, named
from experiments.serving.videos import Videos
from o3jax.files import write_text
from o3jax.report import Answer, review

_ID = re.compile(r"answer-[0-9a-f]{24}")
_KEPT = 512  # answers whose reports can be made, and reports


class Answers:
    """Keeps answers in a folder."""

    def __init__(self, folder: Path, videos: Videos):
        self.folder, self.videos = folder, videos
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[str, tuple[Answer, Medium]] = collections.OrderedDict()

    def add(self, answer: Answer, medium: Medium) -> str:
        """Returns the id of an answer, whose JSON is written."""
        name = f"answer-{secrets.token_hex(12)}"
        # With the file itself, so that reviews can be trained on (`o3jax data from-reviews`).
        path = str(medium.path.resolve())
        write_text(self.folder / f"{name}.json", _about(answer, path).to_json() + "\n")
        with self._lock:
            self._kept[name] = _about(answer, medium.name), medium
            while len(self._kept) > _KEPT:
                old, _ = self._kept.popitem(last=False)
                (self.folder / f"{old}.html").unlink(missing_ok=True)
        return name

    def report(self, name: str) -> Path:
        """Returns the report page of an answer.

        Raises:
            ApiError: there is no such answer, or it is too long ago.
            UserError: its video cannot be read any more.
        """
        answer, medium = self._get(name)
        path = self.folder / f"{name}.html"
        if not path.exists():
            with named(medium.name, medium.path):
                self.videos.report(medium.path, answer, path)
        return path

    def review(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """Returns what a person says of an answer, and writes it beside that.

        Raises:
            ApiError: there is no such answer.
            UserError: it is no review.
        """
        self._get(name)
        said = review.from_dict(values)
        review.write_review(review.review_path(self.folder / f"{name}.json"), said)
        return said.to_dict()

    def _get(self, name: str) -> tuple[Answer, Medium]:
        with self._lock:
            found = self._kept.get(name) if _ID.fullmatch(name) else None
        if found is None:
            raise ApiError(404, f"there is no answer {name[:100]!r} any more", "not_found")
        return found


def _about(answer: Answer, path: str) -> Answer:
    """Returns the answer with another name of its video."""
    return dataclasses.replace(answer, video=answer.video | {"path": path})
