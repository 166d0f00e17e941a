"""What both training stages make of a config: state and step on a mesh, and the exported model."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import jax
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.training.hosts import is_first_host
from experiments.training.loop import StepFn
from experiments.training.workdir import Workdir
from o3jax.api import export_model
from o3jax.errors import UserError
from o3jax.hf.o3_config import read_settings
from o3jax.inputs.processor import Processor
from o3jax.models.layers import REMAT
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.models.runtime import Runtime
from o3jax.prompts.feedback import FEEDBACK
from o3jax.sharding import parameter_shardings, replicate_scalars
from o3jax.train.lora import LoRA, adapted_loss
from o3jax.train.optimizer import OPTIMIZERS, SCHEDULES, learning_rate, make_optimizer
from o3jax.train.state import CountFn, LossFn, TrainState, init_state, make_train_step


def optimizer_of(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the optimizer that a config describes, with its schedule."""
    return make_optimizer(
        learning_rate(config.lr_scheduler_type, config.learning_rate, config.max_steps, config.warmup_steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        b2=config.adam_b2,
        kind=config.optimizer,
        lr_multipliers=config.get("lr_multipliers"),
    )


def make_trainer(
    config: ConfigDict, model: Qwen3VL, mesh: Mesh, loss: LossFn, count: CountFn, *, evidence: bool
) -> tuple[TrainState, StepFn]:
    """Returns the state before the first step, and the jitted step that donates it.

    Args:
        config: how to optimise: schedule, `lr_multipliers` of the parts, `lora`, `remat`, `compute_dtype`.
        model: layers stacked, on the mesh; adapters are put beside it where the config says so.
        loss, count: of a micro-batch, see `o3jax.train.state`.
        evidence: whether the loss trains the evidence modules; they stay as they are otherwise.

    Raises:
        UserError: if a field has no such choice.
    """
    optimizer = optimizer_of(config)
    frozen = [
        part
        for part, rate in config.lr_multipliers.items()
        if not rate or (part == "evidence" and not evidence)
    ]
    if config.lora.rank:
        made = LoRA(model, key=jax.random.key(config.seed), **config.lora)
        model = jax.device_put(made, parameter_shardings(made, mesh))
        loss, frozen = adapted_loss(loss), ["base", *frozen]
    state = replicate_scalars(init_state(model, optimizer, frozen), mesh)
    step = make_train_step(
        loss,
        optimizer,
        count,
        Runtime(remat=config.remat, dtype=config.compute_dtype),
        frozen=frozen,
        shardings=jax.tree.map(lambda a: a.sharding, state),
    )
    return state, step


def trained_model(state: TrainState) -> Qwen3VL:
    """Returns the model of a state, adapters merged."""
    return state.model.merged() if isinstance(state.model, LoRA) else state.model


def export(
    state: TrainState, config: ConfigDict, source: Path, processor: Processor, workdir: Workdir
) -> None:
    """Writes WORKDIR/model, a folder as `o3jax.load` and transformers read it."""
    folder, model = workdir.path / "model", trained_model(state)
    if jax.process_count() > 1:
        model = multihost_utils.process_allgather(model, tiled=True)
    if not is_first_host():
        return
    shutil.rmtree(folder, ignore_errors=True)
    trained = {"prompt_style": config.prompt_style, "box_step": config.box_step}
    settings = dataclasses.replace(read_settings(source), **trained)
    export_model(model, source, folder, processor, settings)
    print(f"model at step {int(state.step)}: {folder}")


# What numbers may be, and the fields of either stage that must be so; "loss.*" is all of that group.
_NUMBERS: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    (
        "at least 1",
        lambda value: value >= 1,
        (
            *("log_every", "save_every", "per_device_train_batch_size", "gradient_accumulation_steps"),
            *(
                "row_length",
                "row_frame_pairs",
                "row_patches",
                "clips_per_row",
                "questions_per_row",
                "box_step",
            ),
            *("mesh.*", "evidence_shape.*", "video.min_*", "video.max_*", "groups_per_row", "reward_workers"),
            *("prompts_per_iteration", "minibatches_per_rollout", "max_completion_length"),
            *("train_batch_size", "pairs_per_clip", "level"),
        ),
    ),
    (
        "0 or more",
        lambda value: 0 <= value < math.inf,
        (
            *("seed", "num_workers", "max_steps", "num_train_epochs", "stop_at_step", "warmup_steps"),
            *("learning_rate", "lr_multipliers.*", "weight_decay", "loss.*", "lora.rank", "soften_times"),
            *("soften_coordinates", "rollout_slots", "eval_every", "clip_low", "clip_high", "kl_coef"),
            "advantages.eps",
        ),
    ),
    (
        "more than 0",
        lambda value: value > 0,
        ("max_grad_norm", "lora.alpha", "video.fps", "video_fps", "reward_time_limit_s"),
    ),
    ("0 or more, but less than 1", lambda value: 0 <= value < 1, ("adam_b2",)),
    (
        "a share from 0 to 1",
        lambda value: 0 <= value <= 1,
        (
            *("max_rejected_share", "max_failed_share", "max_failed_rewards"),
            *("loss.evidence_weight", "loss.candidate_low"),
        ),
    ),
)


def check_numbers(config: ConfigDict) -> None:
    """Raises a UserError for a number that no run can mean; fields that the config lacks are left out."""
    for path, value in jax.tree_util.tree_leaves_with_path(config.to_dict()):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        for what, is_right, fields in _NUMBERS:
            if any(fnmatchcase(name, field) for field in fields) and not is_right(value):
                raise UserError(f"config.{name} is {value:g}; write {what}")


def check_choices(config: ConfigDict, **known: tuple) -> None:
    """Raises a UserError unless these fields and those of both stages have a known value.

    Numbers are checked too, see `check_numbers`.

    Args:
        known: the choices for each field of one stage alone.
    """
    both = {"remat": REMAT, "compute_dtype": ("float32", "bfloat16"), "feedback": (None, *FEEDBACK)}
    both |= {"lr_scheduler_type": SCHEDULES, "optimizer": OPTIMIZERS}
    for field, choices in (both | known).items():
        if config[field] not in choices:
            raise UserError(
                f"config.{field} is '{config[field]}'; choose one of {', '.join(filter(None, choices))}"
            )
    check_numbers(config)
