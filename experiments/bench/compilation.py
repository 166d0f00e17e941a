"""How much longer a deep model's training step takes to compile: layers are scanned, so it should not."""

from __future__ import annotations

import jax
import numpy as np

from experiments.bench.inputs import NARROW, prompt, with_layers
from experiments.bench.tables import Tables, shown
from experiments.bench.timing import take_turns
from o3jax.inputs.collate import collate
from o3jax.models.batch import SupervisedBatch, take
from o3jax.models.config import Config
from o3jax.models.qwen3_vl import abstract_model
from o3jax.sft.text import text_loss, token_counts
from o3jax.train.optimizer import learning_rate, make_optimizer
from o3jax.train.state import init_state, make_train_step

LIMIT = 1.5  # times as long


def measure(rounds: int) -> Tables:
    """Returns the seconds to trace and compile a training step of 36 layers and of 4.

    Both towers are deep in the deep model. Only shapes are compiled, at small width, without the persistent
    cache.
    """
    optimizer = make_optimizer(learning_rate("constant", 1e-4, 1), max_grad_norm=1.0, weight_decay=0.0)

    def compile_step(config: Config) -> None:
        inputs = collate(prompt(config, 128, 1, (14, 14)), config)
        batch = take(SupervisedBatch(inputs, inputs.text.input_ids), None)
        state = jax.eval_shape(lambda model: init_state(model, optimizer), abstract_model(config))
        jax.clear_caches()
        make_train_step(text_loss, optimizer, token_counts).lower(state, batch).compile()

    shallow, deep = with_layers(NARROW, 4, 4), with_layers(NARROW, 36, 27)
    jax.config.update("jax_enable_compilation_cache", False)
    compile_step(shallow)  # warms up what is imported lazily
    seconds = take_turns(
        {"36 layers, s": lambda: compile_step(deep), "4 layers, s": lambda: compile_step(shallow)}, rounds
    )
    jax.config.update("jax_enable_compilation_cache", True)
    row = {name: times[:, 0].tolist() for name, times in seconds.items()}
    ratio = np.divide(*row.values())
    verdict = "ok" if np.median(ratio) <= LIMIT else "missed"
    row |= {"ratio": ratio.tolist(), "target": f"<= {shown(LIMIT)}", "verdict": verdict}
    return {"Compiling a training step": [row]}
