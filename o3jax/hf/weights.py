"""Safetensors of a Qwen3-VL folder, and of its evidence modules -> our model, tensor by tensor.

Every tensor is a view of the memory-mapped file until the part that one device needs is copied out of
it. Stacked layers are written one by one into their leaf on the device, whose buffer is donated at every
write, so the host holds about one tensor at a time, however large the model is.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from o3jax.errors import UserError
from o3jax.fields import folder_file
from o3jax.hf.adapter import Adapter, read_adapters
from o3jax.hf.names import TRANSPOSED_EXPERTS, Tensors, evidence_table, model_leaves, tensor_table
from o3jax.hf.o3_config import EVIDENCE_WEIGHTS, O3_CONFIG
from o3jax.hf.stored import DTYPES, Stored, some, stored_tensors, weight_files
from o3jax.models.config import Config
from o3jax.models.qwen3_vl import Qwen3VL, abstract_model
from o3jax.sharding import ShardingRules, parameter_shardings

_SMALL = 1 << 23  # bytes of stacked layers that the host holds at a time all the same
_SCALES = ("norm", "scale", "bias")  # how the names of leaves end that multiply no matrix

# Called with how many bytes of weights are there, and how many will be.
Progress = Callable[[int, int], None]


def load_weights(
    folder: str | Path,
    config: Config,
    *,
    dtype: Any = None,
    compute_dtype: Any = None,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    decoding: bool = False,
    check_finite: bool = True,
    progress: Progress | None = None,
) -> Qwen3VL:
    """Returns the model of `config` with the folder's weights, those of an adapter beside them merged in.

    Args:
        folder: holds model.safetensors, or model.safetensors.index.json and its shards; where the config
            has evidence modules, also o3_evidence.safetensors.
        config: as `config_from_hf` returns it for the folder; without its `evidence`, the backbone alone
            is read.
        dtype: of the parameters; None keeps the stored one.
        compute_dtype: of norms, biases and evidence modules, and so of activations; None for `dtype`.
        mesh, rules: where the parameters go (see o3jax.sharding); without a mesh, the default device.
        decoding: read the text's layers one by one into the form of `o3jax.models.text.for_decoding`, without
            a mesh; the stacked ones, which training wants, are never there.
        check_finite: look for NaN and infinity, which takes a second for every 3 GB.
        progress: is told how far the reading is.

    Raises:
        UserError: if files are missing or damaged, tensors are missing, unknown or of the wrong shape
            or dtype (one sentence lists them), a number is not finite, or the stored dtypes differ and
            `dtype` is None.
    """
    folder, model = Path(folder), abstract_model(config)
    stored, table, adapters = _opened(folder, config, model)
    if mesh is None:
        device = SingleDeviceSharding(jax.local_devices()[0])
        shardings = model_leaves(jax.tree.map(lambda _: device, model))
    else:
        shardings = model_leaves(parameter_shardings(model, mesh, rules))
    shapes = {path: leaf.shape for path, leaf in model_leaves(model).items()}
    if config.evidence:
        own, own_table = _stored_evidence(folder), evidence_table(shapes)
        _compare(folder / EVIDENCE_WEIGHTS, O3_CONFIG, own, own_table, shapes)
        stored, table = stored | own, table + own_table
    dtype = np.dtype(dtype or _one_dtype(folder, stored))
    narrow = {leaf for leaf in shapes if not (leaf.startswith("evidence.") or leaf.endswith(_SCALES))}
    dtypes = {leaf: dtype if leaf in narrow else np.dtype(compute_dtype or dtype) for leaf in shapes}

    read = _Reader(stored, adapters, check_finite, progress or (lambda done, total: None))
    separate = "text.layers." if decoding else None
    arrays = {
        entry.leaf: read.leaf(entry, shapes[entry.leaf], shardings[entry.leaf], dtypes[entry.leaf])
        for entry in table
        if not (separate and entry.leaf.startswith(separate))
    }
    layers = []
    for number in range(config.text.num_hidden_layers if separate else 0):
        mine = {
            entry.leaf: read.layer(entry, number, shapes[entry.leaf][1:], device, dtypes[entry.leaf])
            for entry in table
            if entry.leaf.startswith(separate)
        }
        names = [f"{separate}{name}" for name in model_leaves(model.text.layers)]
        layer = jax.tree.unflatten(jax.tree.structure(model.text.layers), [mine[name] for name in names])
        layers.append(jax.block_until_ready(layer.fused()))
    # In the order of the tree; what the layers replace stays abstract and goes.
    leaves = [arrays.get(leaf, shape) for leaf, shape in model_leaves(model).items()]
    model = jax.tree.unflatten(jax.tree.structure(model), leaves)
    if separate:
        model.text.layers = nnx.List(layers)
    return model


def _opened(
    folder: Path, config: Config, model: Qwen3VL
) -> tuple[Mapping[str, Stored], list[Tensors], Mapping[str, Adapter]]:
    """Returns the tensors of a folder's backbone, the table of the layout they are in, and its adapters."""
    stored = stored_tensors(weight_files(folder))
    _check_counts(folder, stored, config)
    shapes = {path: leaf.shape for path, leaf in model_leaves(model).items()}
    table = _check(folder, stored, tensor_table(config), shapes, config)
    return stored, table, read_adapters(folder, stored)


def stored_layers(folder: str | Path, config: Config) -> Callable[[str, int], np.ndarray]:
    """Returns what reads one layer of a leaf of the backbone as the folder has it, by the leaf's path.

    Raises:
        UserError: as `load_weights`.
    """
    stored, table, adapters = _opened(Path(folder), config, abstract_model(config))
    by_leaf, read = {entry.leaf: entry for entry in table}, _Reader(stored, adapters, False, lambda *_: None)
    return lambda leaf, number: by_leaf[leaf].to_leaf(read.tensor(by_leaf[leaf].names[number]))


def stored_dtypes(folder: str | Path) -> set[str]:
    """Returns the dtypes of a folder's weights, named as in safetensors: "F32", "BF16" and the like.

    Raises:
        UserError: if files are missing or damaged.
    """
    return {tensor.dtype for tensor in stored_tensors(weight_files(Path(folder))).values()}


class _Reader:
    """Reads leaves of our tree and places them, one tensor at a time."""

    def __init__(
        self, stored: Mapping[str, Stored], adapters: Mapping[str, Adapter], check: bool, progress: Progress
    ):
        self.stored, self.adapters, self.check, self.progress = stored, adapters, check, progress
        self.done, self.total = 0, sum(tensor.nbytes for tensor in stored.values())

    def layer(
        self, entry: Tensors, number: int, shape: tuple[int, ...], target: Sharding, dtype: np.dtype
    ) -> jax.Array:
        """Returns one layer of a leaf, or the leaf of one tensor."""
        tensor = entry.to_leaf(self.tensor(entry.names[number]))

        def part(index: tuple[slice, ...]) -> np.ndarray:
            # In the order of the file, which JAX changes faster than numpy does; and a copy in any case: JAX
            # may keep what it is given as it lies, and must never keep the file.
            mine = np.asarray(tensor[index]).astype(dtype, order="K", copy=False)
            return np.array(mine) if mine.flags.c_contiguous and not mine.flags.owndata else mine

        return jax.make_array_from_callback(shape, target, part)

    def leaf(self, entry: Tensors, shape: tuple[int, ...], sharding: Sharding, dtype: np.dtype) -> jax.Array:
        """Returns a whole leaf."""
        if entry.count is None:
            return self.layer(entry, 0, shape, sharding, dtype)
        if math.prod(shape) * dtype.itemsize <= _SMALL:  # a program for each shape takes longer than the copy
            tensors = [entry.to_leaf(self.tensor(name)) for name in entry.names]
            return jax.make_array_from_callback(
                shape,
                sharding,
                lambda index: np.stack([np.asarray(t[index[1:]], dtype) for t in tensors[index[0]]]),
            )
        layer_sharding = _without_leading_axis(sharding)
        leaf = jnp.zeros(shape, dtype, device=sharding)
        for number in range(entry.count):
            # Waiting, and holding no name for the layer, bounds the copies on the host to one.
            layer = self.layer(entry, number, shape[1:], layer_sharding, dtype)
            leaf = _write_layer(sharding)(leaf, layer, number)
            del layer
            leaf.block_until_ready()
        return leaf

    def tensor(self, name: str) -> np.ndarray:
        """Returns a tensor, with what an adapter adds to it."""
        tensor, adapter = self.stored[name], self.adapters.get(name)
        if self.check and not all(one.is_finite() for one in (tensor, *(adapter.tensors if adapter else ()))):
            raise UserError(f"{tensor.path}: {name} holds NaN or infinity: restore the file, or train again")
        self.done += tensor.nbytes
        self.progress(self.done, self.total)
        return adapter.merged(tensor.view()) if adapter else tensor.view()


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


def _stored_evidence(folder: Path) -> dict[str, Stored]:
    path = folder_file(folder, EVIDENCE_WEIGHTS, None)
    if path is None:
        raise UserError(
            f"{folder} lacks {EVIDENCE_WEIGHTS} although its {O3_CONFIG} names evidence modules: restore it, "
            f"or remove 'evidence' from {O3_CONFIG} to read the model without them"
        )
    return stored_tensors([path])


def _check_counts(folder: Path, stored: Mapping[str, Stored], config: Config) -> None:
    """Refuses a config that has more layers than tensors, before a name is made for each of them."""
    vision, text = config.vision, config.text
    for field, count in (
        ("vision_config.depth", vision.depth),
        ("text_config.num_hidden_layers", text.num_hidden_layers),
    ):
        if count > len(stored):
            raise UserError(
                f"{folder / 'config.json'}: {field} is {count}, but the weights have {len(stored)} tensors: "
                "restore the wrong file"
            )


def _check(
    folder: Path,
    stored: Mapping[str, Stored],
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
        if embedding and not embedding.same_bytes(stored["lm_head.weight"]):
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
    stored: Mapping[str, Stored],
    table: list[Tensors],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises one error for all that is wrong with the tensors at `place`, by what the file `says` says."""
    try:
        expected = {name: entry.shape(shapes[entry.leaf]) for entry in table for name in entry.names}
    except ValueError as error:  # larger than any array may be
        raise UserError(f"{place}: the sizes in {says} are too large for any tensor: restore it") from error
    shared = [name for name in expected if name in stored]
    wrong = [
        f"{name} is {list(stored[name].shape)}, not {list(expected[name])}"
        for name in shared
        if stored[name].shape != expected[name]
    ]
    types = [f"{name} is {stored[name].dtype}" for name in shared if stored[name].dtype not in DTYPES]
    problems = [
        f"{len(items)} {what}: {some(items, 2)}"
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
    stored: Mapping[str, Stored], table: list[Tensors], shapes: Mapping[str, tuple[int, ...]]
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


def _one_dtype(folder: Path, stored: Mapping[str, Stored]) -> np.dtype:
    names = sorted({tensor.dtype for tensor in stored.values()})
    if len(names) > 1:
        raise UserError(f"{folder} mixes the dtypes {', '.join(names)}: choose one with dtype=")
    return DTYPES[names[0]]
