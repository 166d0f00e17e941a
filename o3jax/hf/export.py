"""Our model -> a folder that transformers loads: safetensors, index, config.json, generation_config.json.

What transformers does not know, the evidence modules, goes into files of our own beside them. One layer of a
leaf is copied to the host at a time, and written in blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from o3jax.errors import UserError
from o3jax.files import whole_folder, write_json
from o3jax.hf.config import config_to_hf
from o3jax.hf.names import Tensors, evidence_table, model_leaves, tensor_table
from o3jax.hf.o3_config import EVIDENCE_WEIGHTS, O3_CONFIG, Settings, o3_config
from o3jax.hf.stored import INDEX, SINGLE, write_tensors
from o3jax.models.qwen3_vl import Qwen3VL, abstract_model
from o3jax.sharding import everywhere

_STYLE = {"indent": 2, "sort_keys": True}
# (entry of the table, number of the tensor) -> one layer of our leaf; the whole of one that is not stacked.
ReadLayer = Callable[[Tensors, int], np.ndarray]


def layers_of(model: Qwen3VL) -> ReadLayer:
    """Returns what reads a model's leaves, layer by layer, in either form of its layers."""
    others = jax.tree.map(lambda a: a, model)  # a new container around the same arrays
    if isinstance(model.text.layers, nnx.List):
        others.text.layers = None
    leaves = model_leaves(others)

    def read(entry: Tensors, number: int) -> np.ndarray:
        if entry.leaf in leaves:
            leaf = leaves[entry.leaf]
            return everywhere(leaf if entry.count is None else leaf[number])
        layer = model.text.layers[number].separate()
        return everywhere(getattr(layer, entry.leaf.removeprefix("text.layers."))[...])

    return read


def export_weights(
    model: Qwen3VL,
    folder: str | Path,
    *,
    dtype: Any = None,
    max_shard_bytes: int = 5_000_000_000,
    generation: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    add_files: Callable[[Path], None] | None = None,
    read: ReadLayer | None = None,
) -> None:
    """Writes `model` as a Hugging Face folder, complete or not at all; of several hosts the first does.

    Everything is written to a temporary folder beside the target, which is then renamed. Beside the model's
    own arrays one layer of a leaf exists at a time.

    Args:
        model: layers stacked, or as `for_decoding` makes them. Several hosts must all call this.
        folder: must not exist, or be empty.
        dtype: of the stored tensors; None keeps the parameters' dtype, which round-trips bitwise.
        max_shard_bytes: a new file is begun where this would be exceeded.
        generation: contents of generation_config.json (greedy decoding where None).
        settings: how the model wants to be asked; None for the defaults, which are written down only
            where evidence modules need o3_config.json anyway.
        add_files: called with the temporary folder before the rename; tokenizer and processor files
            go in here, so that they too are part of all or nothing.
        read: what the tensors are made of, in place of the model's own arrays.

    Raises:
        UserError: if the folder is not empty, or the experts are square (transformers tells the two
            layouts of experts apart by their shapes).
    """
    text = model.config.text
    if text.num_experts and text.hidden_size in (text.moe_intermediate_size, 2 * text.moe_intermediate_size):
        raise UserError(
            f"moe_intermediate_size {text.moe_intermediate_size} with hidden_size {text.hidden_size} makes "
            "square experts, which transformers may read transposed: choose other sizes"
        )
    dtype = np.dtype(dtype or model.text.embed.dtype)
    evidence, read = model.config.evidence, read or layers_of(model)
    shapes = {path: leaf.shape for path, leaf in model_leaves(abstract_model(model.config)).items()}
    # In the order of the files, on every host.
    shards = [
        sorted(shard, key=lambda one: one[0].names[one[1]])
        for shard in _shards(tensor_table(model.config), shapes, dtype, max_shard_bytes)
    ]
    beside = sorted(((entry, 0) for entry in evidence_table(shapes)), key=lambda one: one[0].name)
    if jax.process_index():
        for entry, number in [one for shard in shards for one in shard] + beside:
            read(entry, number)  # the first host waits for it
        return

    def write(path: Path, shard: Sequence[tuple[Tensors, int]]) -> list[str]:
        tensors = {
            entry.names[number]: (entry.shape(shapes[entry.leaf]), _reader(read, entry, number))
            for entry, number in shard
        }
        write_tensors(path, tensors, dtype)
        return list(tensors)

    with whole_folder(folder) as temporary:
        weight_map = {}
        for number, shard in enumerate(shards, 1):
            file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            weight_map |= dict.fromkeys(write(temporary / file, shard), file)
        if len(shards) > 1:
            total = sum(_nbytes(entry, shapes, dtype) for shard in shards for entry, _ in shard)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_json(temporary / INDEX, index, **_STYLE)
        write_json(temporary / "config.json", config_to_hf(model.config, dtype), **_STYLE)
        if evidence:
            write(temporary / EVIDENCE_WEIGHTS, beside)
        if evidence or settings:
            write_json(temporary / O3_CONFIG, o3_config(settings or Settings(), evidence), **_STYLE)
        write_json(temporary / "generation_config.json", generation or {"do_sample": False}, **_STYLE)
        if add_files:
            add_files(temporary)


def _reader(read: ReadLayer, entry: Tensors, number: int) -> Callable[[], np.ndarray]:
    """Returns what reads a tensor as Hugging Face has it, a view of one layer."""
    return lambda: entry.to_tensor(read(entry, number))


def _nbytes(entry: Tensors, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> int:
    return math.prod(entry.shape(shapes[entry.leaf])) * dtype.itemsize


def _shards(
    table: Sequence[Tensors], shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, max_shard_bytes: int
) -> list[list[tuple[Tensors, int]]]:
    """Returns which tensors each file holds, as table entries and numbers within them."""
    shards: list[list[tuple[Tensors, int]]] = [[]]
    used = 0
    for entry in table:
        size = _nbytes(entry, shapes, dtype)
        for number in range(entry.count or 1):
            if shards[-1] and used + size > max_shard_bytes:
                shards.append([])
                used = 0
            shards[-1].append((entry, number))
            used += size
    return shards
