"""The frozen tower beside a training run: it makes the features that the feature cache does not have."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from data_pipelines.reading.feature_cache import STREAMS, FeatureCache, groups_of
from data_pipelines.reading.frame_cache import ArrayCache
from data_pipelines.rows.clips import Clip, FolderClips
from o3jax.errors import UserError
from o3jax.inputs import collate, dense
from o3jax.models import layers, qwen3_vl, rope, vision
from o3jax.models.attention import kernels as attention
from o3jax.models.qwen3_vl import DENSE_KEYS, VISION_KEYS, Batch, Qwen3VL, dense_tokens, visual_features
from o3jax.models.vision import VisionTower

_KEYS = dict(zip(STREAMS, (VISION_KEYS, DENSE_KEYS), strict=True))


class Features:
    """The tower as it computes, and the cache of what it makes.

    Each clip is computed for itself, so that its features do not depend on what shares its row.
    """

    def __init__(self, tower: VisionTower, cache: ArrayCache, dtype: str, *shape: int):
        self.tower = jax.tree.map(lambda a: jnp.array(a, dtype), tower)  # training gives its own away
        self.cache = FeatureCache(cache, _fingerprint(self.tower, shape), dtype)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the batch with features in place of pixels; those that are missing are made and kept."""
        made = {name: np.array(batch[name]) for name in STREAMS if name in batch}
        for row, number in np.argwhere(batch["feature_key"].any(-1)):
            arrays, entry = {key: array[row] for key, array in batch.items()}, []
            for name, out in made.items():
                at = groups_of(arrays, name, number)
                features = self._make(name, {key: arrays[key][at] for key in _KEYS[name]})
                out[row, at, : features.shape[1]] = features
                entry.append(features)
            if "dense_tokens" in made:
                entry.append(arrays["dense_times"][at])
            self.cache.cache.put(arrays["feature_key"][number].tobytes().decode(), tuple(entry))
        used = {"feature_key"}.union(*(_KEYS[name] for name in made)) - {"patch_length", "dense_length"}
        return {key: array for key, array in batch.items() if key not in used} | made

    def _make(self, stream: str, frame_pairs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the features of some frame groups, as many tokens of each as the largest has."""
        lengths = next(array for key, array in frame_pairs.items() if key.endswith("length"))
        count, most = len(lengths), lengths.max() // self.tower.config.merge_unit
        pad = collate.bucket(count) - count
        padded = {
            key: np.pad(array, [(0, pad)] + [(0, 0)] * (array.ndim - 1))[None]
            for key, array in frame_pairs.items()
        }
        encode_visuals = _visual if stream == "visual_features" else _dense
        return np.asarray(encode_visuals(self.tower, padded))[0, :count, :most]


@jax.jit
def _visual(tower: VisionTower, batch: Batch) -> Float[Array, "B T P K D"]:
    tokens, taps = tower(*[batch[key] for key in VISION_KEYS])
    return visual_features(tokens, taps, batch["patch_length"].shape[1])


@jax.jit
def _dense(tower: VisionTower, batch: Batch) -> Float[Array, "B T P D"]:
    return dense_tokens(tower, batch)


def _fingerprint(tower: VisionTower, shape: Sequence[int]) -> str:
    """Returns a hash of all that features depend on beside the clip: weights, code, sizes, the machine."""
    device = jax.devices()[0].device_kind
    facts = (tower.config, shape, jax.__version__, device, jax.config.jax_default_matmul_precision)
    digest = hashlib.sha256(repr(facts).encode())
    for module in (attention, layers, qwen3_vl, rope, vision, collate, dense):
        digest.update(Path(module.__file__).read_bytes())
    for leaf in jax.tree.leaves(tower):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def open_features(config: ConfigDict, model: Qwen3VL, clips: Sequence[Clip]) -> Features | None:
    """Returns what makes and keeps features, where the config names a folder for them.

    Raises:
        UserError: if the tower is trained, clips never come twice, or several hosts share the run.
    """
    if not config.feature_cache:
        return None
    if config.lr_multipliers.vision:
        raise UserError(
            "config.feature_cache keeps what a frozen tower makes, but this one is trained: set "
            "config.lr_multipliers.vision=0, or leave config.feature_cache empty"
        )
    if not isinstance(clips, FolderClips):
        raise UserError(
            f"config.feature_cache keeps the clips of a data set, but those of {config.data_path} never come "
            "twice: leave config.feature_cache empty"
        )
    if jax.process_count() > 1:
        raise UserError("config.feature_cache works on one host: leave it empty")
    cache = ArrayCache(config.feature_cache, int(config.feature_cache_gib * 2**30))
    patches = config.row_patches, config.evidence_shape.patches
    return Features(model.vision, cache, config.compute_dtype, *patches)
