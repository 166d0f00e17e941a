"""`python -m experiments.bench_gpu`: a random Qwen3-VL-8B in bfloat16 on one GPU, against transformers.

The two sides run one after the other, each in a process of its own, so that each has the whole card.
Both read the same Hugging Face folder, which our side writes first. Inputs lie on the device before
the clock starts; compilation is not in any figure. What fails (out of memory, say) is a row that says
so; what was not run is "not measured".

`--size=tiny` takes every path of this script in a minute on a CPU.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments.bench.gpu_table import COMPARED, SIZES, Size, markdown, parity
from experiments.bench.inputs import Inputs, prompt, text_labels, write_folder
from experiments.cli import shell
from o3jax.generate.cache import prefill
from o3jax.generate.sampler import greedy
from o3jax.hf import config_from_hf, load_weights
from o3jax.inputs.collate import collate
from o3jax.models.batch import Batch, SupervisedBatch, take
from o3jax.models.runtime import Runtime
from o3jax.models.text import for_decoding
from o3jax.sft.text import text_loss, token_counts
from o3jax.sharding import make_mesh, replicate_scalars
from o3jax.train.state import init_state, make_train_step

LEARNING_RATE, MAX_GRAD_NORM, B2, WEIGHT_DECAY = 1e-5, 1.0, 0.95, 0.01


def median_seconds(fn: Callable[[], Any], repeats: int) -> float:
    """Returns the median of `repeats` calls after one that warms up; `fn` returns when it has finished."""
    fn()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        fn()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def attempt(results: dict[str, Any], name: str, job: Callable[[], Any]) -> None:
    """Stores what `job` returns, or the sentence that says why it failed; the other jobs go on."""
    if _ONLY.value and name not in _ONLY.value:
        return
    start = time.perf_counter()
    try:
        results[name] = job()
    except Exception as error:
        results[name] = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"}
    shown = {key: value for key, value in results[name].items() if key != "tokens"}
    print(f"  {name}: {shown} ({time.perf_counter() - start:.0f} s with compilation)", flush=True)


def inputs_of(size: Size) -> dict[str, Inputs]:
    """Returns the prompts of all jobs by name."""
    config, grid = size.config, size.grid
    tokens_per_pair = grid[0] * grid[1] // config.vision.merge_unit + 5
    inputs = {
        "prompt": prompt(config, size.prompt_tokens, frame_pairs=size.prompt_pairs, grid=grid),
        "vision": prompt(
            config, size.vision_pairs * tokens_per_pair, frame_pairs=size.vision_pairs, grid=grid
        ),
    }
    for rows in size.batches:
        inputs[f"decode{rows}"] = prompt(config, size.decode_prompt, rows=rows, seed=rows)
    return inputs


def run_ours(size: Size, folder: Path, logits_file: Path) -> dict[str, Any]:
    """Returns our side's results; writes the folder if it is not there, and the logits to compare."""
    dtype = jnp.dtype(size.dtype)
    if not folder.exists():
        print(f"  writing {folder}", flush=True)
        write_folder(size.config, folder, dtype, std=0.02)
    device = jax.local_devices()[0]
    results: dict[str, Any] = {
        "device": device.device_kind,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }
    measure_card(size, results)
    measure_inference(size, folder, logits_file, results)
    measure_training(size, folder, results)
    results["peak_bytes"] = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return results


def batch_on_device(inputs: Inputs, size: Size) -> Batch:
    """Returns our batch for what a processor returned."""
    batch = collate(inputs, size.config)
    if batch.patches is not None:
        values = batch.patches.values.astype(jnp.dtype(size.dtype))
        batch = dataclasses.replace(batch, patches=dataclasses.replace(batch.patches, values=values))
    return jax.device_put(batch)


def finished(fn: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """Returns a call of `fn` that waits for the device."""
    return lambda: jax.block_until_ready(fn(*args))


def measure_card(size: Size, results: dict[str, Any]) -> None:
    """Adds the card's measured copy bandwidth and bfloat16 matmul rate."""

    def copy_bandwidth() -> dict[str, float]:
        x = jnp.zeros(size.copy_bytes // 4, jnp.float32)
        seconds = median_seconds(finished(jax.jit(lambda x: x + 1), x), 10)
        return {"bytes_per_second": 2 * x.nbytes / seconds}

    def matmul_rate() -> dict[str, float]:
        x = jnp.ones((size.matmul, size.matmul), jnp.bfloat16)
        seconds = median_seconds(finished(jax.jit(lambda x: x @ x), x), 10)
        return {"flops_per_second": 2 * size.matmul**3 / seconds}

    attempt(results, "copy", copy_bandwidth)
    attempt(results, "matmul", matmul_rate)


def measure_inference(size: Size, folder: Path, logits_file: Path, results: dict[str, Any]) -> None:
    """Adds forward pass, vision tower and greedy decoding; the weights are freed on return."""
    start = time.perf_counter()
    model = jax.block_until_ready(load_weights(folder, config_from_hf(folder)))
    results["load_seconds"] = time.perf_counter() - start
    inputs = inputs_of(size)

    def forward() -> dict[str, float]:
        run, batch = jax.jit(lambda model, batch: model(batch)), batch_on_device(inputs["prompt"], size)
        np.save(logits_file, np.asarray(run(model, batch)[0, -COMPARED:].astype(jnp.float32)))
        return {"seconds": median_seconds(finished(run, model, batch), size.repeats)}

    def vision() -> dict[str, float]:
        patches = batch_on_device(inputs["vision"], size).patches
        run = jax.jit(lambda model, patches: model.vision(patches))
        return {"seconds": median_seconds(finished(run, model, patches), size.repeats)}

    attempt(results, "forward", forward)
    attempt(results, "vision", vision)

    model.text.layers = for_decoding(model.text.layers)
    first = jax.jit(prefill, static_argnames="new_tokens")

    def decode(rows: int) -> dict[str, Any]:
        batch = batch_on_device(inputs[f"decode{rows}"], size)
        generate = functools.partial(greedy, max_new_tokens=size.new_tokens, eos_ids=(), pad_id=0)
        tokens = np.asarray(generate(model, batch).tokens)
        whole = median_seconds(finished(generate, model, batch), size.repeats)
        prompt_part = median_seconds(finished(first, model, batch, size.new_tokens), size.repeats)
        return {"seconds": whole - prompt_part, "steps": size.new_tokens - 1, "tokens": tokens.tolist()}

    for rows in size.batches:
        attempt(results, f"decode{rows}", functools.partial(decode, rows))


def measure_training(size: Size, folder: Path, results: dict[str, Any]) -> None:
    """Adds one training step of all parameters, everything in the size's dtype."""

    def train() -> dict[str, float]:
        # Gradients, and so the moments, keep the parameters' dtype, as they do in torch.
        optimizer = optax.chain(
            optax.stateless_with_tree_map(lambda gradient, parameter: gradient.astype(parameter.dtype)),
            optax.clip_by_global_norm(MAX_GRAD_NORM),
            optax.adamw(LEARNING_RATE, b1=0.9, b2=B2, weight_decay=WEIGHT_DECAY),
        )
        step = make_train_step(text_loss, optimizer, token_counts, Runtime(remat="names", dtype=size.dtype))
        mesh = make_mesh(jax.devices()[:1])
        model = load_weights(folder, size.config, mesh=mesh)
        state = replicate_scalars(init_state(model, optimizer), mesh)
        del model
        inputs = inputs_of(size)["prompt"]
        labels = text_labels(size.config, inputs["input_ids"])
        labels = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=-100).astype(jnp.int32)
        batch = take(SupervisedBatch(batch_on_device(inputs, size), labels), None)

        def once() -> None:
            nonlocal state
            state, metrics = jax.block_until_ready(step(state, batch))
            losses.append(float(metrics["loss"]))

        losses: list[float] = []
        return {"seconds": median_seconds(once, size.repeats), "loss": losses[0]}

    attempt(results, "train", train)


def run_theirs(size: Size, folder: Path, logits_file: Path) -> dict[str, Any]:
    """Returns transformers' results, or why there are none; compares logits with the file's."""
    try:
        import torch
    except ImportError:
        return {"absent": "torch is not installed"}
    on_gpu = torch.cuda.is_available()
    if not on_gpu and size is not SIZES["tiny"]:
        return {"absent": f"torch {torch.__version__} has no CUDA"}
    from experiments.bench.torch_reference import Theirs, transformers

    inputs = inputs_of(size)
    peer = Theirs(folder, dtype=size.dtype, device="cuda" if on_gpu else "cpu")
    results: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}

    def forward() -> dict[str, float]:
        tensors = peer.inputs(inputs["prompt"])
        theirs = peer.forward(tensors)[0, -COMPARED:].float().cpu().numpy()
        ours = np.load(logits_file)
        return {
            "seconds": median_seconds(lambda: peer.forward(tensors), size.repeats),
            "max_error": float(np.abs(ours - theirs).max()),
            "spread": float(theirs.std()),
            "correlation": float(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]),
            "same_argmax": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        }

    def vision() -> dict[str, float]:
        tensors = peer.inputs(inputs["vision"])
        return {"seconds": median_seconds(lambda: peer.vision(tensors), size.repeats)}

    def decode(rows: int, options: dict[str, str]) -> dict[str, Any]:
        tensors = peer.inputs(inputs[f"decode{rows}"])
        tokens = peer.generate(tensors, size.new_tokens, **options)
        whole = median_seconds(lambda: peer.generate(tensors, size.new_tokens, **options), size.repeats)
        prompt_part = median_seconds(lambda: peer.generate(tensors, 1, **options), size.repeats)
        return {"seconds": whole - prompt_part, "steps": size.new_tokens - 1, "tokens": tokens.tolist()}

    attempt(results, "forward", forward)
    attempt(results, "vision", vision)
    for rows in size.batches:
        attempt(results, f"decode{rows}", functools.partial(decode, rows, {}))
    # transformers compiles the decoding step by itself where the cache is static and the device a GPU.
    results["static"] = {}
    for rows in size.batches:
        static = functools.partial(decode, rows, {"cache_implementation": "static"})
        attempt(results["static"], f"decode{rows}", static)

    def train() -> dict[str, float]:
        peer.make_optimizer(lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, b2=B2)
        tensors = peer.inputs(inputs["prompt"])
        labels = text_labels(size.config, inputs["prompt"]["input_ids"])
        targets = torch.from_numpy(labels).to(peer.device)
        losses: list[float] = []
        seconds = median_seconds(
            lambda: losses.append(peer.train_step(tensors, targets, MAX_GRAD_NORM)), size.repeats
        )
        return {"seconds": seconds, "loss": losses[0]}

    attempt(results, "train", train)
    if on_gpu:
        results["peak_bytes"] = torch.cuda.max_memory_allocated()
    return results


_SIZE = flags.DEFINE_enum("size", "8b", list(SIZES), "The model; tiny tests this script on a CPU.")
_FOLDER = flags.DEFINE_string("folder", None, "Where the model is written, and reused; default temporary.")
_GPU_OUT = flags.DEFINE_string("out", None, "Folder for bench_gpu.md and bench_gpu.json.", required=True)
_ONLY = flags.DEFINE_list(
    "only", [], "Jobs to run, default all: copy,matmul,forward,vision,decode1,decode32,train."
)
_SIDE = flags.DEFINE_enum("side", None, ["ours", "theirs"], "One side alone (used by the script itself).")


def main(argv: Sequence[str]) -> None:
    del argv
    size, out = SIZES[_SIZE.value], Path(_GPU_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    logits_file = out / "logits.npy"
    if _SIDE.value:
        run = run_ours if _SIDE.value == "ours" else run_theirs
        if _SIDE.value == "ours":
            shell.use_compilation_cache()
        results = run(size, Path(_FOLDER.value), logits_file)
        (out / f"{_SIDE.value}.json").write_text(json.dumps(results))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = _FOLDER.value or str(Path(scratch) / "model")
        results = {}
        for side in ("ours", "theirs"):
            print(f"{side}:", flush=True)
            command = [sys.executable, "-m", "experiments.bench_gpu", f"--side={side}", f"--folder={folder}"]
            command += [f"--size={_SIZE.value}", f"--out={out}", f"--only={','.join(_ONLY.value)}"]
            # Each side has the card to itself.
            subprocess.run(command, check=True, env={"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"} | os.environ)
            results[side] = json.loads((out / f"{side}.json").read_text())
            (out / f"{side}.json").unlink()
    logits_file.unlink(missing_ok=True)
    table = markdown(size, results["ours"], results["theirs"])
    (out / "bench_gpu.md").write_text(table + "\n")
    (out / "bench_gpu.json").write_text(json.dumps(results, indent=2) + "\n")
    print(table)
    if not parity(results["ours"], results["theirs"])[0]:
        sys.exit(1)


if __name__ == "__main__":
    shell.run(main)
