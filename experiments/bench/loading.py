"""`python -m experiments.bench.loading DIR`: loads a Qwen3-VL of random weights: time and memory.

The folder is made where it is missing, with weights in bfloat16 and no tokenizer. One process measures one
dtype, because the peak of a process never falls:

    python -m experiments.bench.loading /tmp/qwen-2b --dtype=bfloat16
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from absl import app, flags
from safetensors.numpy import save_file

from experiments.bench.inputs import prompt, tokens_of
from experiments.bench.timing import peak_bytes, timed
from o3jax.hf.config import config_to_hf
from o3jax.hf.names import model_leaves, tensor_table
from o3jax.hf.stored import INDEX
from o3jax.models.presets import PRESETS
from o3jax.models.qwen3_vl import abstract_model

_SIZE = flags.DEFINE_enum("size", "2B", sorted(PRESETS), "Which published shape.")
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of the weights in memory.")
_TOKENS = flags.DEFINE_integer("tokens", 16, "How many tokens to generate.")
_SHARD = 1 << 30
GRID = (14, 14)  # patches of a frame


def make(folder: Path, size: str) -> None:
    """Writes a model folder of random weights, a shard at a time."""
    folder.mkdir(parents=True)
    config, rng = PRESETS[size], np.random.default_rng(0)
    shapes = {path: leaf.shape for path, leaf in model_leaves(abstract_model(config)).items()}
    noise = (0.02 * rng.standard_normal(1 << 22, np.float32)).astype(ml_dtypes.bfloat16)
    shard: dict[str, np.ndarray] = {}
    where: dict[str, str] = {}

    def write() -> None:
        name = f"model-{len(set(where.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(shard, name))
        shard.clear()

    for entry in tensor_table(config):
        for name in entry.names:
            shape = entry.shape(shapes[entry.leaf])
            norm = name.endswith("norm.weight") or "layernorm" in name
            shard[name] = np.ones(shape, noise.dtype) if norm else np.resize(noise, shape)
            if sum(tensor.nbytes for tensor in shard.values()) > _SHARD:
                write()
    write()
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text(json.dumps(config_to_hf(config, noise.dtype)))
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [151645], "pad_token_id": 151643})
    )


def main(argv: Sequence[str]) -> None:
    folder = Path(argv[1])
    if not folder.exists():
        make(folder, _SIZE.value)
    import o3jax

    def generated(tokens: int) -> np.ndarray:
        return timed(lambda: model.generate(**inputs, max_new_tokens=tokens))[1]

    model, load_s = timed(lambda: o3jax.load(folder, dtype=_DTYPE.value))
    figures = {
        "dtype": str(model.backbone.text.embed.dtype),
        "load_s": load_s,
        "load_gib": peak_bytes() / 2**30,
    }
    # A short question about a small video.
    inputs = prompt(model.config, 128 + 4 * tokens_of(model.config, GRID), 4, GRID)
    figures |= {"first_token_compiling_s": generated(1), "first_token_s": generated(1)}
    generated(_TOKENS.value)
    figures["token_s"] = (generated(_TOKENS.value) - figures["first_token_s"]) / (_TOKENS.value - 1)
    figures["peak_gib"] = peak_bytes() / 2**30
    print(
        json.dumps({name: np.round(v, 2).tolist() if name != "dtype" else v for name, v in figures.items()})
    )


if __name__ == "__main__":
    app.run(main)
