"""Features of long videos on disk: one file a video and model, which may be deleted at any time.

A file names what it was made from: the video as it is now, the model, the settings and the code. What is
not whole, or was made from something else, is made anew, and a note says so.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

import o3jax.inputs
import o3jax.models
import o3jax.video
from o3jax.arrays import read_arrays, write_arrays
from o3jax.errors import UserError
from o3jax.files import code_hash, refusal
from o3jax.notes import Note
from o3jax.searched import Pass
from o3jax.video.files import find_file

VARIABLE = "O3JAX_CACHE"  # of the environment; empty: nothing is kept


def default_folder() -> str:
    """Returns where features are kept: $O3JAX_CACHE, or ~/.cache/o3jax/coarse; empty if nowhere."""
    return os.environ.get(VARIABLE, str(Path.home() / ".cache" / "o3jax" / "coarse"))


class Entry:
    """The file of one video as one model sees it.

    Attributes:
      notes: what a user should know of what was found there.
    """

    def __init__(
        self,
        model: Any,  # an `o3jax.inference.coarse.Asked`
        video: str | os.PathLike[str],
        folder: str | os.PathLike[str] | None,
    ):
        path = find_file(video)
        found = path.stat()
        tower = [
            (one.name, one.stat().st_size, one.stat().st_mtime_ns)
            for one in sorted(Path(model.folder).iterdir())
            if one.suffix in (".json", ".safetensors")
        ]
        dtype = str(model.backbone.text.embed.dtype)
        name = json.dumps([str(path), str(Path(model.folder).resolve())])
        self._key = json.dumps([name, found.st_size, found.st_mtime_ns, tower, dtype, code_version()])
        folder = default_folder() if folder is None else folder
        digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
        self.path = Path(folder) / f"{digest}.npz" if str(folder) else None
        self.notes: tuple[Note, ...] = ()

    def read(self) -> dict[str, Any] | None:
        """Returns the fields of what was kept; None where nothing is, or nothing that can be used."""
        if self.path is None or not self.path.exists():
            return None
        try:
            kept = read_arrays(self.path)
            head = json.loads(str(kept["head"]))
            arrays = {name: kept[name] for name in ("times_s", "features", "cells")}
            fields = head["fields"]
            passes = tuple(Pass(**one | {"intervals": ()}) for one in fields.pop("passes"))
            notes = tuple(Note(*parts) for parts in fields.pop("notes"))
            fields |= {"lost": tuple(fields["lost"]), "passes": passes, "notes": notes}
            sizes = {len(arrays["times_s"]), len(arrays["features"])}
            if head["key"] == self._key and len(sizes) == 1 and arrays["features"].ndim == 3:
                return arrays | fields
            self.notes = (Note("cache old"),)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.notes = (Note("cache damaged"),)
        return None

    def write(self, made: Any) -> None:
        """Keeps an `o3jax.inference.coarse.CoarseFeatures`; where that is refused, the log says so."""
        if self.path is None:
            return
        fields = {
            "duration_s": made.duration_s,
            "frames": made.frames,
            "forward": made.forward,
            "passes": [dataclasses.asdict(one) for one in made.passes],
            "lost": made.lost,
            "notes": [note.__reduce__()[1] for note in made.notes],
        }
        head = json.dumps({"key": self._key, "fields": fields}, default=str)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_arrays(
                self.path, head=np.array(head), times_s=made.times_s, features=made.features, cells=made.cells
            )
        except (OSError, UserError) as error:
            why = refusal(error) or error
            logging.warning(
                "what is seen of a video cannot be kept in %s (%s): the next question reads it again",
                self.path.parent,
                why,
            )


@functools.cache
def code_version() -> str:
    """Returns a hash of the code that reads and encodes videos."""
    roots = [Path(package.__file__).parent for package in (o3jax.video, o3jax.inputs, o3jax.models)]
    files = [path for root in roots for path in sorted(root.rglob("*.py"))]
    return code_hash([*files, Path(__file__), Path(__file__).with_name("coarse.py")], "av")
