"""Safetensors of a Qwen3-VL folder, and of its evidence modules -> our model, tensor by tensor.

Every tensor is a view of the memory-mapped file until the part that one device needs is copied out of
it. Layers are written one by one into their leaf on the device, whose buffer is donated at every
write, so the host holds about one tensor at a time, however large the model is.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from safetensors import SafetensorError, safe_open

from o3jax.errors import UserError
from o3jax.hf.names import TRANSPOSED_EXPERTS, Tensors, evidence_table, model_leaves, tensor_table
from o3jax.hf.o3_config import EVIDENCE_WEIGHTS, O3_CONFIG
from o3jax.models.config import Config
from o3jax.models.qwen3_vl import Qwen3VL, abstract_model
from o3jax.sharding import ShardingRules, parameter_shardings

_SMALL = 1 << 23  # bytes of stacked layers that the host holds at a time all the same
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Where one tensor lies on disk."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def view(self) -> np.ndarray:
        """Returns the tensor as a read-only memory map."""
        return np.memmap(self.path, DTYPES[self.dtype], "r", self.offset, self.shape)


def load_weights(
    folder: str | Path,
    config: Config,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
) -> Qwen3VL:
    """Returns the model of `config` with the folder's weights.

    Args:
        folder: holds model.safetensors, or model.safetensors.index.json and its shards; where the config
            has evidence modules, also o3_evidence.safetensors.
        config: as `config_from_hf` returns it for the folder; without its `evidence`, the backbone alone
            is read.
        dtype: of the parameters; None keeps the stored one.
        mesh, rules: where the parameters go (see o3jax.sharding); without a mesh, the default device.

    Raises:
        UserError: if files are missing or damaged, tensors are missing, unknown or of the wrong shape
            or dtype (one sentence lists them), or the stored dtypes differ and `dtype` is None.
    """
    folder = Path(folder)
    stored = _stored_tensors(_files(folder))
    model = abstract_model(config)
    if mesh is None:
        device = SingleDeviceSharding(jax.local_devices()[0])
        shardings = model_leaves(jax.tree.map(lambda _: device, model))
    else:
        shardings = model_leaves(parameter_shardings(model, mesh, rules))
    shapes = {path: leaf.shape for path, leaf in model_leaves(model).items()}
    table = _check(folder, stored, tensor_table(config), shapes, config)
    if config.evidence:
        own, own_table = _stored_evidence(folder), evidence_table(shapes)
        _compare(folder / EVIDENCE_WEIGHTS, O3_CONFIG, own, own_table, shapes)
        stored, table = stored | own, table + own_table
    dtype = _one_dtype(folder, stored, dtype)

    arrays = {
        entry.leaf: _read_leaf(entry, stored, shapes[entry.leaf], shardings[entry.leaf], dtype)
        for entry in table
    }
    return jax.tree.unflatten(jax.tree.structure(model), [arrays[leaf] for leaf in shapes])


def _read_leaf(
    entry: Tensors, stored: Mapping[str, _Stored], shape: tuple[int, ...], sharding: Sharding, dtype: np.dtype
) -> jax.Array:
    """Returns one leaf of our tree, read and placed one tensor at a time."""

    def place(name: str, layer_shape: tuple[int, ...], target: Sharding) -> jax.Array:
        tensor = entry.to_leaf(stored[name].view())
        # A copy, not a view: JAX may keep what it is given, and must never keep the file.
        return jax.make_array_from_callback(
            layer_shape, target, lambda index: np.array(tensor[index], dtype, order="C")
        )

    if entry.count is None:
        return place(entry.name, shape, sharding)
    if math.prod(shape) * dtype.itemsize <= _SMALL:  # a program for each shape takes longer than the copy
        tensors = [entry.to_leaf(stored[name].view()) for name in entry.names]
        return jax.make_array_from_callback(
            shape,
            sharding,
            lambda index: np.stack([np.asarray(tensor[index[1:]], dtype) for tensor in tensors[index[0]]]),
        )
    layer_sharding = _without_leading_axis(sharding)
    leaf = jnp.zeros(shape, dtype, device=sharding)
    for number, name in enumerate(entry.names):
        # Waiting, and holding no name for the layer, bounds the copies on the host to one.
        leaf = _write_layer(sharding)(leaf, place(name, shape[1:], layer_sharding), number)
        leaf.block_until_ready()
    return leaf


def _without_leading_axis(sharding: Sharding) -> Sharding:
    if isinstance(sharding, SingleDeviceSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


@functools.lru_cache
def _write_layer(sharding: Sharding) -> Any:
    return jax.jit(
        lambda leaf, layer, number: jax.lax.dynamic_update_index_in_dim(leaf, layer, number, 0),
        donate_argnums=0,
        out_shardings=sharding,
    )


def _files(folder: Path) -> list[Path]:
    """Returns the safetensors files that make the checkpoint."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        pickled = next(
            (p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in sorted(folder.glob(pattern))), None
        )
        if pickled:
            raise UserError(
                f"{folder} has {pickled} but no safetensors, and only safetensors are read: "
                "save the model again with safe_serialization"
            )
        raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}: pass a folder with the model's weights")
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not a safetensors index with a weight_map: restore the file") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(
                f"{index} names the file {name!r}, which is no safetensors file inside the folder"
            )
    lost = sorted(name for name in names if not (folder / name).is_file())
    if lost:
        raise UserError(f"{folder} lacks the weight files that its index names: {_some(lost)}; restore them")
    return [folder / name for name in sorted(names)]


def _stored_evidence(folder: Path) -> dict[str, _Stored]:
    path = folder / EVIDENCE_WEIGHTS
    if not path.is_file():
        raise UserError(
            f"{folder} lacks {EVIDENCE_WEIGHTS} although its {O3_CONFIG} names evidence modules: restore it, "
            f"or remove 'evidence' from {O3_CONFIG} to read the model without them"
        )
    return _stored_tensors([path])


def _stored_tensors(files: Iterable[Path]) -> dict[str, _Stored]:
    """Returns where every tensor of a checkpoint lies, from the files' validated headers."""
    found: dict[str, _Stored] = {}
    for path in files:
        try:
            # The library checks sizes, overlaps and the length of the file before we trust the header.
            with safe_open(path, "np"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged or not a safetensors file ({error}): restore it") from error
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        for name, info in header.items():
            if name in found:
                raise UserError(
                    f"{name} is in both {found[name].path.name} and {path.name}: keep one of them"
                )
            begin, end = info["data_offsets"]
            found[name] = _Stored(path, info["dtype"], tuple(info["shape"]), 8 + size + begin, end - begin)
    return found


def _check(
    folder: Path,
    stored: Mapping[str, _Stored],
    table: list[Tensors],
    shapes: Mapping[str, tuple[int, ...]],
    config: Config,
) -> list[Tensors]:
    """Returns the table in the layout that is stored; raises one error for all that is wrong."""
    if _experts_are_transposed(stored, table, shapes):
        table = [
            dataclasses.replace(e, pattern=TRANSPOSED_EXPERTS[e.pattern]) if ".experts." in e.name else e
            for e in table
        ]
    extra = set(stored) - {name for entry in table for name in entry.names}
    if config.tie_word_embeddings and "lm_head.weight" in extra:
        embedding = stored.get("model.language_model.embed_tokens.weight")
        if embedding and not _same_bytes(stored["lm_head.weight"], embedding):
            raise UserError(
                f"{folder}: lm_head.weight differs from embed_tokens.weight although config.json says "
                "tie_word_embeddings; set it to false, or remove lm_head.weight"
            )
        stored = {name: tensor for name, tensor in stored.items() if name != "lm_head.weight"}
    _compare(folder, "config.json", stored, table, shapes)
    return table


def _compare(
    place: Path,
    says: str,
    stored: Mapping[str, _Stored],
    table: list[Tensors],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises one error for all that is wrong with the tensors at `place`, by what the file `says` says."""
    expected = {name: entry.shape(shapes[entry.leaf]) for entry in table for name in entry.names}
    shared = [name for name in expected if name in stored]
    wrong = [
        f"{name} is {list(stored[name].shape)}, not {list(expected[name])}"
        for name in shared
        if stored[name].shape != expected[name]
    ]
    types = [f"{name} is {stored[name].dtype}" for name in shared if stored[name].dtype not in DTYPES]
    problems = [
        f"{len(items)} {what}: {_some(items)}"
        for what, items in (
            ("missing", [name for name in expected if name not in stored]),
            ("unknown", sorted(set(stored) - set(expected))),
            (f"of another shape than {says} says", wrong),
            (f"of a dtype other than {', '.join(DTYPES)}", types),
        )
        if items
    ]
    if problems:
        raise UserError(
            f"the tensors in {place} do not fit its {says}: {'; '.join(problems)}; restore the wrong file"
        )


def _experts_are_transposed(
    stored: Mapping[str, _Stored], table: list[Tensors], shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    """Returns whether the experts are stored as transformers 5 writes them, judged by shape.

    Either matrix may be square, but never both, so together they always tell.
    """
    for entry in table:
        if ".experts." in entry.name and entry.names[0] in stored:
            published = entry.shape(shapes[entry.leaf])
            transposed = (published[0], published[2], published[1])
            if published != transposed:
                return stored[entry.names[0]].shape == transposed
    return False


def _same_bytes(a: _Stored, b: _Stored) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    x, y = (np.memmap(s.path, np.uint8, "r", s.offset, (s.nbytes,)) for s in (a, b))
    step = 1 << 26
    return all(np.array_equal(x[i : i + step], y[i : i + step]) for i in range(0, a.nbytes, step))


def _one_dtype(folder: Path, stored: Mapping[str, _Stored], dtype: Any) -> np.dtype:
    if dtype is not None:
        return np.dtype(dtype)
    names = sorted({tensor.dtype for tensor in stored.values()})
    if len(names) > 1:
        raise UserError(f"{folder} mixes the dtypes {', '.join(names)}: choose one with dtype=")
    return DTYPES[names[0]]


def _some(items: Iterable[str], limit: int = 5) -> str:
    items = list(items)
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")
