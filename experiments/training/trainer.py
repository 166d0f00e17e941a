"""A loss and how it is optimised, as a config says: all that a training step is made of but its arrays."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.rows.clips import Clip
from experiments.training.hosts import is_first_host
from experiments.training.loop import RunLength, StepFn
from experiments.training.workdir import Workdir
from o3jax.files import whole_folder
from o3jax.hf.export import layers_of
from o3jax.hf.folder import export_model
from o3jax.hf.names import Tensors
from o3jax.hf.o3_config import read_settings
from o3jax.hf.stored import weights_fingerprint
from o3jax.hf.weights import stored_layers
from o3jax.inputs.processor import Processor
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.models.runtime import Runtime
from o3jax.sharding import ShardingRules, parameter_shardings, replicate_scalars
from o3jax.train.lora import LoRA, adapted_loss
from o3jax.train.optimizer import learning_rate, make_optimizer
from o3jax.train.state import CountFn, LossFn, TrainState, init_state, make_train_step


def optimizer_of(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer that a config describes, with its schedule over so many steps."""
    return make_optimizer(
        learning_rate(config.lr_scheduler_type, config.learning_rate, steps, config.warmup_steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        b2=config.adam_b2,
        kind=config.optimizer,
        lr_multipliers=config.get("lr_multipliers"),
    )


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A loss and how it is optimised; its states and steps may be of real or of abstract arrays."""

    loss: LossFn
    count: CountFn
    optimizer: optax.GradientTransformation
    frozen: tuple[str, ...]  # parts of the model that stay as they are
    runtime: Runtime  # of the step
    lora: Mapping[str, Any] | None = None  # of adapters in place of the backbone, see `LoRA`
    seed: int = 0  # of the adapters

    def adapted(self, model: Qwen3VL) -> nnx.Module:
        """Returns what is trained: the model, or adapters beside it."""
        return LoRA(model, key=jax.random.key(self.seed), **self.lora) if self.lora else model

    def init(self, adapted: nnx.Module) -> TrainState:
        """Returns the state before the first step."""
        return init_state(adapted, self.optimizer, self.frozen)

    def make_step(self, shardings: TrainState | None = None) -> StepFn:
        """Returns the jitted step, which donates its state; see `make_train_step`."""
        options = {"frozen": self.frozen, "shardings": shardings}
        return make_train_step(self.loss, self.optimizer, self.count, self.runtime, **options)

    def start(self, model: Qwen3VL, mesh: Mesh, rules: ShardingRules) -> tuple[TrainState, StepFn]:
        """Returns the state before the first step, and the step, for a model on a mesh.

        Args:
            model: layers stacked.
        """
        adapted = self.adapted(model)
        if adapted is not model:
            adapted = jax.device_put(adapted, parameter_shardings(adapted, mesh, rules))
        state = replicate_scalars(self.init(adapted), mesh)
        return state, self.make_step(jax.tree.map(lambda a: a.sharding, state))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a run of either stage is made of before its first step."""

    source: Path  # the folder of the model that it starts from
    processor: Processor
    clips: Sequence[Clip]
    note: str  # of the clips, for the progress lines
    mesh: Mesh
    rules: ShardingRules
    micro_batches: int
    state: TrainState
    step: StepFn
    length: RunLength

    def name_of(self, number: int) -> str:
        """Returns what a clip is called."""
        return self.clips[number].samples[0].id

    def check(self, step: int) -> None:
        """Raises OSError or ValueError if what the run goes on from at a step is not whole."""

    def export(self, state: TrainState, workdir: Workdir, config: ConfigDict) -> None:
        """Writes WORKDIR/model, with how the model was asked in training; every host must call it."""
        asked = {"prompt_style": config.prompt_style, "box_step": config.box_step}
        export(state, self.source, workdir.place / "model", self.processor, **asked)


def base_dtype(config: ConfigDict) -> str:
    """Returns the dtype that a model's weights are loaded in: float32 to be trained, beside adapters not."""
    return config.compute_dtype if config.lora.rank else "float32"


def base_fingerprint(config: ConfigDict, source: Path) -> dict[str, str]:
    """Returns what a checkpoint must know of a base that it does not hold; nothing without adapters."""
    return {"base": weights_fingerprint(source)} if config.lora.rank else {}


def make_trainer(
    config: ConfigDict,
    loss: LossFn,
    count: CountFn,
    *,
    evidence: bool,
    optimizer: optax.GradientTransformation,
) -> Trainer:
    """Returns how a loss is optimised as a config says.

    Args:
        config: `lr_multipliers`, of which a part with 0 is frozen, `lora`, `remat`, `compute_dtype`.
        loss, count: of a micro-batch, see `o3jax.train.state`.
        evidence: whether the loss trains the evidence modules; they stay as they are otherwise.
    """
    frozen = tuple(
        part
        for part, factor in config.lr_multipliers.items()
        if not factor or (part == "evidence" and not evidence)
    )
    runtime = Runtime(config.kernel, config.remat, config.compute_dtype, config.loss_chunk)
    if not config.lora.rank:
        return Trainer(loss, count, optimizer, frozen, runtime)
    loss, frozen = adapted_loss(loss), ("base", *frozen)
    return Trainer(loss, count, optimizer, frozen, runtime, dict(config.lora), config.seed)


def export(state: TrainState, source: Path, folder: Path, processor: Processor, **trained: Any) -> None:
    """Writes a folder as `o3jax.load` and transformers read it; every host must call it.

    Of a model with adapters the base is read from its folder again, and each layer merged when it is written.

    Args:
        source: the folder of the model before training.
        trained: how the model was asked in training: fields of `Settings`.
    """
    model, options = state.model, {}
    if isinstance(model, LoRA):
        adapters, model = model, model.adapted()
        read, base = layers_of(model), stored_layers(source, model.config)

        def merged(entry: Tensors, number: int) -> np.ndarray:
            if entry.leaf.startswith("evidence."):
                return read(entry, number)
            weight, change = (
                np.asarray(base(entry.leaf, number), np.float32),
                adapters.change(entry.leaf, number),
            )
            return weight if change is None else weight + change.reshape(weight.shape)

        options = {"read": merged, "dtype": jnp.float32}
    settings = dataclasses.replace(read_settings(source), **trained)
    first = is_first_host()
    with whole_folder(folder, replace=True) if first else contextlib.nullcontext(folder) as temporary:
        export_model(model, source, temporary, processor, settings, **options)
    if first:
        print(f"model at step {int(state.step)}: {folder}")
