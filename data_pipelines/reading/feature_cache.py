"""What a frozen vision tower made of the clips of a data set, kept for later epochs and runs.

Rows are made where there is no accelerator. So a row says which entry of the cache is each clip's own: where
there is one, the row holds it, and zeros for frames that need not be decoded; where there is none, the
training process makes it of the frames and puts it there (`experiments.training.features`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from data_pipelines.reading.frame_cache import ArrayCache, Arrays, code_version, json_default
from o3jax.models.config import VisionConfig

# A row's features, and which array tells of what clip each of their frame groups is.
STREAMS = {"visual_features": "visual_clip", "dense_tokens": "dense_clip"}


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """The features of clips.

    An entry is `visual_features` of the clip's frame groups, [n, tokens, 1 + taps, D], and where there is a
    dense stream `dense_tokens` [m, tokens, D] and the times [m] of its pairs.

    Attributes:
      cache: where they are.
      tower: names the tower, and all else but the clip that features depend on.
      dtype: of the features, by name.
    """

    cache: ArrayCache
    tower: str
    dtype: str

    def find(self, files: Sequence[Path], *asked: Any) -> tuple[str, Arrays | None]:
        """Returns the key of a clip's entry, and the entry if there is one; no key if a file is missing.

        Args:
            files: what is read of the clip.
            asked: what of them, and how.
        """
        try:
            found = [(str(file), (s := os.stat(file)).st_size, s.st_mtime_ns) for file in files]
        except OSError:
            return "", None
        text = json.dumps((code_version(), self.tower, self.dtype, found, asked), default=json_default)
        key = hashlib.sha256(text.encode()).hexdigest()
        return key, self.cache.get(key)

    def rows(
        self,
        c: VisionConfig,
        row: dict[str, np.ndarray],
        keys: Sequence[str],
        kept: Sequence[Arrays | None],
        clips: int,
    ) -> dict[str, np.ndarray]:
        """Returns the features of a row, zeros where they are to be made, and `feature_key` [clips, 64].

        Args:
            row: the arrays of its pixels.
            keys: of each clip's entry that is to be made; empty where none is.
            kept: the entries that there are.
            clips: that a row has room for.
        """
        frame_pairs, patches = row["patches"].shape[:2]
        sizes = {
            "visual_features": (frame_pairs, patches // c.merge_unit, 1 + len(c.deepstack_visual_indexes))
        }
        if "dense_patches" in row:
            frame_pairs, patches = row["dense_patches"].shape[:2]
            sizes["dense_tokens"] = (frame_pairs, patches // c.merge_unit)
        out = {name: np.zeros((*size, c.out_hidden_size), self.dtype) for name, size in sizes.items()}
        out["feature_key"] = np.zeros((clips, 64), np.uint8)
        for number, (key, entry) in enumerate(zip(keys, kept, strict=True)):
            out["feature_key"][number, : len(key)] = np.frombuffer(key.encode(), np.uint8)
            for name, features in zip(sizes, entry or (), strict=False):
                out[name][groups_of(row, name, number), : features.shape[1]] = features
        return out


def groups_of(row: dict[str, np.ndarray], stream: str, number: int) -> Int[np.ndarray, " n"]:
    """Returns which frame groups of a row are of its clip `number`, counted from 0."""
    return np.flatnonzero(row[STREAMS[stream]] == number + 1)
