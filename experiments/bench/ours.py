"""Our side of a benchmark: the calls of `experiments.bench.torch_reference.Theirs`, and what they share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.inputs import Inputs
from experiments.training.sampling import decoder
from o3jax.generate.sampler import Ending, greedy
from o3jax.hf import config_from_hf, load_weights
from o3jax.inputs.collate import collate
from o3jax.models.batch import Batch, SupervisedBatch, take
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.models.runtime import Runtime
from o3jax.sft.text import text_loss, token_counts
from o3jax.train.optimizer import learning_rate, make_optimizer
from o3jax.train.state import init_state, make_train_step

LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY, B2 = 1e-4, 1.0, 0.01, 0.999


class Side(Protocol):
    """A model that a benchmark drives; every call returns when the device has finished.

    What `inputs` returns lies on the device, and the other calls take it.
    """

    def inputs(self, inputs: Inputs) -> Any: ...

    def forward(self, inputs: Any) -> Any:
        """Returns logits [B, S, V]."""
        ...

    def vision(self, inputs: Any) -> Any:
        """Returns the language tokens of all frames [tokens, D]."""
        ...

    def generate(self, inputs: Any, new_tokens: int) -> Any:
        """Returns the greedy tokens [B, new]; nothing ends a row early."""
        ...

    def trainer(self) -> Callable[[Any], float]:
        """Returns inputs with labels -> the mean loss after one step of AdamW with clipped gradients.

        It takes the model: nothing else can be asked of this side then.
        """
        ...

    def host(self, found: Any) -> np.ndarray:
        """Returns the result of a call as numpy, floats in float32."""
        ...


class Ours:
    """Our model; parameters, gradients and moments have the dtype of the folder's tensors."""

    def __init__(
        self, source: Path | Qwen3VL, *, dtype: str = "float32", remat: str = "none", kernel: str = "xla"
    ):
        given = isinstance(source, Qwen3VL)
        self.config = source.config if given else config_from_hf(source)
        self.runtime = Runtime(kernel, remat, dtype)
        self.model = source if given else jax.block_until_ready(load_weights(source, self.config))
        # Stacked layers make a far smaller program; separate ones are what generation needs.
        self._forward = jax.jit(lambda model, batch: model(batch))
        self._vision = jax.jit(lambda model, patches: model.vision(patches)[0])

    @functools.cached_property
    def decoder(self) -> Qwen3VL:
        """The model as generation wants it."""
        return decoder(self.model)

    def inputs(self, inputs: Inputs) -> Batch | SupervisedBatch:
        batch = collate({name: value for name, value in inputs.items() if name != "labels"}, self.config)
        values = batch.patches.values.astype(jnp.dtype(self.runtime.dtype))
        batch = dataclasses.replace(batch, patches=dataclasses.replace(batch.patches, values=values))
        if "labels" in inputs:
            labels = np.pad(inputs["labels"][:, 1:], ((0, 0), (0, 1)), constant_values=-100)
            batch = take(SupervisedBatch(batch, labels.astype(np.int32)), None)
        return jax.device_put(batch)

    def forward(self, inputs: Batch) -> jax.Array:
        return jax.block_until_ready(self._forward(self.model, inputs))

    def vision(self, inputs: Batch) -> jax.Array:
        tokens = jax.block_until_ready(self._vision(self.model, inputs.patches))
        return tokens.reshape(-1, tokens.shape[-1])

    def generate(self, inputs: Batch, new_tokens: int) -> jax.Array:
        out = greedy(self.decoder, inputs, Ending(new_tokens, (), 0))
        return jax.block_until_ready(out.tokens)

    def trainer(self) -> Callable[[SupervisedBatch], float]:
        schedule = learning_rate("constant", LEARNING_RATE, 1)
        optimizer = make_optimizer(schedule, weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM, b2=B2)
        step = make_train_step(text_loss, optimizer, token_counts, self.runtime)
        state = init_state(self.model, optimizer)
        self.__dict__.pop("decoder", None)
        del self.model

        def run(inputs: SupervisedBatch) -> float:
            nonlocal state
            state, metrics = jax.block_until_ready(step(state, inputs))
            return float(metrics["loss"])

        return run

    def host(self, found: jax.Array) -> np.ndarray:
        found = jnp.asarray(found)
        return np.asarray(found.astype(jnp.float32) if found.dtype == jnp.bfloat16 else found)
