"""What a run of `experiments.gspo` is made of, from its config.

`build_gspo` makes all of it. Its parts stand apart, so that a step can be taken on abstract arrays too:
`architecture_of`, `make_prompts`, `update_shape` and `make_gspo_trainer` know no weights.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from configs.common import with_whole_frames
from data_pipelines.rows.clips import Clip
from data_pipelines.rows.frames import FramesConfig
from data_pipelines.rows.prompts import MakePrompt, Minibatches
from data_pipelines.rows.settings import EvidenceShape, RowShape
from data_pipelines.synthetic.clips import SyntheticClips
from experiments.data.clips import open_clips, open_processor, open_reader, plan
from experiments.training.build_sft import load_model
from experiments.training.hosts import open_mesh, open_pipeline
from experiments.training.loop import RunLength
from experiments.training.placement import open_spread
from experiments.training.rewarding import Rewarder, open_scorer
from experiments.training.rollouts import Updates
from experiments.training.sampling import Sampler
from experiments.training.trainer import (
    Run,
    Trainer,
    base_dtype,
    base_fingerprint,
    make_trainer,
    optimizer_of,
)
from experiments.training.workdir import Workdir
from o3jax.arrays import read_arrays
from o3jax.errors import UserError
from o3jax.generate.sampling import Sampling
from o3jax.gspo.rows import UpdateShape
from o3jax.gspo.update import gspo_objective, sequence_counts
from o3jax.hf.config import config_from_hf
from o3jax.hf.folder import model_folder
from o3jax.hf.generation import read_generation
from o3jax.inputs.processor import Processor
from o3jax.models.batch import PromptBatch, stack
from o3jax.models.config import Config
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.sharding import Placement, ShardingRules
from o3jax.train.lora import LoRA
from o3jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Prompts that the policy is not trained on, to evaluate it."""

    prompts: PromptBatch  # of this host, which has every n-th
    clips: Sequence[Clip]
    every: int  # iterations
    group_size: int  # completions of the policy beside a greedy one; 0 is none


@dataclasses.dataclass(frozen=True, kw_only=True)
class GspoRun(Run):
    """A run of GSPO."""

    workdir: Workdir
    rows: MakePrompt
    prompts: Minibatches
    sampler: Sampler
    rewarder: Rewarder
    updates: Updates
    group_size: int
    seed: int  # of what is sampled
    advantages: Mapping[str, Any]  # see `group_advantages`
    reference: Qwen3VL | None  # the model before training, where the loss has a KL to it
    held_out: HeldOut | None
    dtype: str  # that the update computes in

    def policy(self, state: TrainState) -> Qwen3VL:
        """Returns the model as the update computes it."""
        model = jax.tree.map(lambda a: a.astype(jnp.dtype(self.dtype)), state.model)
        return model.adapted() if isinstance(model, LoRA) else model

    def check(self, step: int) -> None:
        """Raises OSError or ValueError if a step inside an iteration has no whole rollout to go on from."""
        iteration, minibatch = divmod(step, self.prompts.minibatches)
        if minibatch:
            read_arrays(self.rollout_path(iteration))

    def rollout_path(self, iteration: int | str) -> Path:
        """Returns the file of an iteration's rollout, of several hosts this one's; "*" for all of them."""
        number = iteration if isinstance(iteration, str) else f"{iteration:06d}"
        hosts = jax.process_count()
        part = f".{jax.process_index()}-of-{hosts}" if hosts > 1 else ""
        return self.workdir.path / f"rollout_{number}{part}.npz"


def build_gspo(
    config: ConfigDict, workdir: Workdir, optimizer: optax.GradientTransformation | None = None
) -> GspoRun:
    """Returns all that a run is made of; `config` has passed `configs.checks.check_gspo`.

    Args:
        optimizer: in place of the config's.
    """
    config = with_whole_frames(config)
    sampling = Sampling(**config.sampling)
    source = model_folder(config.sft_model_path)
    architecture = architecture_of(config, config_from_hf(source))
    processor = open_processor(source, config)
    clips = open_clips(config, processor, "rl_data_path")
    mesh, rules = open_mesh(config.mesh), ShardingRules.of(config.sharding)
    rows = make_prompts(config, processor, architecture)
    minibatches, hosts = config.minibatches_per_rollout, jax.process_count()
    each = config.prompts_per_iteration // minibatches  # prompts of an optimizer step
    _check_hosts(config, architecture, each, hosts)
    planned = plan(config, clips, rows, each, workdir, "rl_data_path")
    steps = math.ceil(planned.steps / minibatches) * minibatches
    fingerprint = planned.data_fingerprint | base_fingerprint(config, source)
    pipeline = open_pipeline(config, planned.rows, [rows], config.prompts_per_iteration, fingerprint)

    model = load_model(source, architecture, mesh, rules, config.seed, base_dtype(config))
    reference = None
    if config.kl_coef:
        reference = jax.tree.map(lambda a: jnp.array(a, config.compute_dtype), model)
    trainer = make_gspo_trainer(config, optimizer or optimizer_of(config, steps))
    state, step = trainer.start(model, mesh, rules)
    replicas = Placement(mesh, rules).ways("batch") // hosts
    sampler = Sampler(
        processor,
        sampling,
        max_new_tokens=config.max_completion_length,
        eos_ids=read_generation(source).eos_ids,
        stop=tuple(config.stop),
        slots=config.rollout_slots or None,
        box_step=config.box_step,
        frozen_tower=not config.lr_multipliers.vision,
        spread=open_spread(config, mesh, rules, architecture.text),
    )
    return GspoRun(
        source=source,
        processor=processor,
        workdir=workdir,
        clips=planned.clips,
        note=planned.note,
        mesh=mesh,
        rules=rules,
        rows=rows,
        prompts=Minibatches(pipeline, minibatches),
        sampler=sampler,
        rewarder=Rewarder(open_scorer(config), processor, config.reward_evidence != "text"),
        updates=Updates(
            architecture,
            update_shape(config),
            prompts=each // hosts,
            multiple=config.gradient_accumulation_steps * replicas,
            mask_truncated=config.mask_truncated,
            runtime=trainer.runtime,
            temperature=config.sampling.temperature,
            micro_batches=config.gradient_accumulation_steps,
            mesh=mesh if mesh.size > 1 else None,
        ),
        group_size=config.group_size,
        seed=config.seed,
        advantages=dict(config.advantages),
        reference=reference,
        held_out=_held_out(config, rows),
        micro_batches=config.gradient_accumulation_steps,
        dtype=config.compute_dtype,
        state=state,
        step=step,
        length=RunLength.of(config, steps),
    )


def _check_hosts(config: ConfigDict, architecture: Config, each: int, hosts: int) -> None:
    """Refuses what several hosts cannot do; `each` is how many prompts an optimizer step has."""
    if each % hosts:
        raise UserError(
            f"config.prompts_per_iteration / minibatches_per_rollout is {each}, which {hosts} hosts cannot "
            "share: make it a multiple"
        )
    prompted = architecture.evidence is not None and architecture.evidence.feedback == "prompt"
    if hosts > 1 and (config.reward_evidence != "text" or prompted):
        raise UserError(
            f"{hosts} hosts sample and reward the text alone, and here evidence modules are read: write "
            "config.reward_evidence=text and config.feedback=none, or run on one host"
        )


def architecture_of(config: ConfigDict, have: Config) -> Config:
    """Returns what a run trains: the model's architecture, asked as the config says.

    Raises:
        UserError: if the config reads evidence modules that the model does not have.
    """
    if have.evidence is None and config.reward_evidence != "text":
        raise UserError(
            f"config.reward_evidence is '{config.reward_evidence}', but {config.sft_model_path} has no "
            "evidence modules: write text"
        )
    if have.evidence is None and config.feedback == "prompt":
        raise UserError(
            f"config.feedback is 'prompt', but {config.sft_model_path} has no evidence modules "
            "to propose anything: leave it out"
        )
    if have.evidence is None or not config.feedback:
        return have
    evidence = dataclasses.replace(have.evidence, feedback=config.feedback)
    return dataclasses.replace(have, evidence=evidence)


def make_prompts(config: ConfigDict, processor: Processor, architecture: Config) -> MakePrompt:
    """Returns what makes a prompt row of a clip."""
    return MakePrompt(
        processor,
        architecture,
        RowShape(config.row_length, config.row_frame_pairs, config.row_patches),
        config.prompt_style,
        config.box_step,
        EvidenceShape(**config.evidence_shape) if architecture.evidence is not None else None,
        frames=FramesConfig(**config.frames),
        reader=open_reader(config),
    )


def update_shape(config: ConfigDict) -> UpdateShape:
    """Returns what the rows of an update are padded to."""
    groups = config.groups_per_row
    return UpdateShape(
        length=config.row_length + config.group_size * config.max_completion_length,
        frame_pairs=groups * config.row_frame_pairs,
        patches=config.row_patches,
        sequences=groups * config.group_size,
        response=config.max_completion_length,
    )


def make_gspo_trainer(config: ConfigDict, optimizer: optax.GradientTransformation) -> Trainer:
    """Returns the objective of a config, and how it is optimised."""
    names = ("clip_low", "clip_high", "ratio", "kl_coef")
    options = {name: config[name] for name in names} | {"temperature": config.sampling.temperature}
    objective = functools.partial(gspo_objective, **options)
    return make_trainer(config, objective, sequence_counts, evidence=False, optimizer=optimizer)


def _held_out(config: ConfigDict, rows: MakePrompt) -> HeldOut | None:
    """Returns prompts of the synthetic world's validation split; None if that is off."""
    if not config.eval_every:
        return None
    clips = SyntheticClips("val", int(config.rl_data_path.partition(":")[2]), 1, 0)
    mine = range(jax.process_index(), config.eval_prompts, jax.process_count())
    chosen = [clips[index] for index in mine]
    prompts = stack([rows.map(clip) for clip in chosen])
    return HeldOut(prompts, chosen, config.eval_every, config.eval_samples)
