"""What a run of `experiments.sft` is made of, from its config.

`build_sft` makes all of it. Its parts stand apart, so that a step can be taken on abstract arrays too:
`architecture_of`, `make_rows` and `make_sft_trainer` know no weights, `load_model` alone does.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs.checks import check_text_alone, choose_modules
from configs.common import with_whole_frames
from data_pipelines.rows.evidence import OpenCandidates
from data_pipelines.rows.frames import FramesConfig
from data_pipelines.rows.pipeline import Pipeline
from data_pipelines.rows.settings import EvidenceShape, RowShape
from data_pipelines.rows.supervised import MakeRow
from experiments.data.clips import open_clips, open_processor, open_reader, plan
from experiments.training.features import FeatureMaker, open_features
from experiments.training.held_out import open_held_out
from experiments.training.hosts import micro_batches, open_mesh, open_pipeline
from experiments.training.loop import HeldOut, RunLength
from experiments.training.trainer import (
    Run,
    Trainer,
    base_dtype,
    base_fingerprint,
    make_trainer,
    optimizer_of,
)
from experiments.training.workdir import Workdir
from o3jax.fields import Section
from o3jax.hf.config import config_from_hf
from o3jax.hf.folder import model_folder
from o3jax.hf.o3_config import evidence_config
from o3jax.hf.weights import load_weights
from o3jax.inputs.processor import Processor
from o3jax.models.batch import SupervisedBatch
from o3jax.models.config import Config
from o3jax.models.qwen3_vl import Qwen3VL, with_evidence
from o3jax.prompts.tokenizer import number_tokens
from o3jax.sft.evidence import EvidenceWeights
from o3jax.sft.joint import joint_counts, joint_loss
from o3jax.sft.text import number_targets, text_loss, token_counts
from o3jax.sharding import Placement, ShardingRules, parameter_shardings


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftRun(Run):
    """A run of SFT, which is the `Feed` of its own batches too."""

    pipeline: Pipeline
    features: FeatureMaker | None
    held_out: HeldOut | None

    def prepare(self, batch: SupervisedBatch) -> SupervisedBatch:
        """Returns a host's batch as the step takes it."""
        batch = self.features(batch) if self.features else batch
        return micro_batches(
            dataclasses.replace(batch, failures=None), steps=self.micro_batches, mesh=self.mesh
        )


def build_sft(config: ConfigDict, workdir: Workdir) -> SftRun:
    """Returns all that a run is made of; `config` has passed `configs.checks.check_sft`."""
    config = with_whole_frames(config)
    source = model_folder(config.model_name_or_path)
    architecture = architecture_of(config, config_from_hf(source))
    processor = open_processor(source, config)
    mesh, rules = open_mesh(config.mesh), ShardingRules.of(config.sharding)
    replicas = Placement(mesh, rules).ways("batch")
    batch_size = config.per_device_train_batch_size * config.gradient_accumulation_steps * replicas
    # Before the model, which takes long to load: what is wrong with the data is told at once.
    clips, rows = open_clips(config, processor), make_rows(config, processor, architecture)
    planned = plan(config, clips, rows[0], batch_size, workdir)

    model = load_model(source, architecture, mesh, rules, config.seed, base_dtype(config))
    features = open_features(config, model)
    maker, *others = make_rows(config, processor, architecture, features)
    transforms = [dataclasses.replace(maker, sizes=planned.sizes), *others]
    fingerprint = planned.data_fingerprint | base_fingerprint(config, source)
    pipeline = open_pipeline(config, planned.rows, transforms, batch_size, fingerprint)
    trainer = make_sft_trainer(config, processor, architecture, planned.steps)
    held_out = open_held_out(config, processor, rows, batch_size, trainer, mesh)
    state, step = trainer.start(model, mesh, rules)
    return SftRun(
        source=source,
        processor=processor,
        clips=planned.clips,
        note=planned.note,
        mesh=mesh,
        rules=rules,
        pipeline=pipeline,
        features=features,
        micro_batches=config.gradient_accumulation_steps,
        state=state,
        step=step,
        length=RunLength.of(config, planned.steps),
        held_out=held_out,
    )


def architecture_of(config: ConfigDict, have: Config) -> Config:
    """Returns what a run trains: a model's architecture, with the evidence modules that the config describes.

    Raises:
        UserError: if the model has other modules, or its text cannot be trained without them.
    """
    if config.evidence is None:
        check_text_alone(have.evidence)
        return have
    asked = evidence_config(Section(config.evidence.to_dict(), "config", "evidence."))
    return dataclasses.replace(have, evidence=choose_modules(config, asked, have.evidence))


def load_model(
    source: Path, architecture: Config, mesh: Mesh, rules: ShardingRules, seed: int, dtype: str = "float32"
) -> Qwen3VL:
    """Returns a folder's model on a mesh; evidence modules that it does not have are made anew.

    Args:
        dtype: of the backbone; norms, biases and evidence modules are float32.
    """
    config = config_from_hf(source)
    model = load_weights(source, config, dtype=dtype, compute_dtype=jnp.float32, mesh=mesh, rules=rules)
    if architecture.evidence is not None and model.evidence is None:
        made = with_evidence(model, architecture.evidence, jax.random.key(seed))
        model = jax.device_put(made, parameter_shardings(made, mesh, rules))
    model.config = architecture
    return model


def make_rows(
    config: ConfigDict, processor: Processor, architecture: Config, features: FeatureMaker | None = None
) -> list[MakeRow | OpenCandidates]:
    """Returns what makes a row of clips: transforms, the first of which is a `MakeRow`."""
    joint = config.evidence is not None
    rows = MakeRow(
        processor,
        architecture,
        RowShape(config.row_length, config.row_frame_pairs, config.row_patches, config.clips_per_row),
        config.prompt_style,
        config.box_step,
        EvidenceShape(**config.evidence_shape) if joint else None,
        full_text=config.full_text_loss,
        frames=FramesConfig(**config.frames),
        reader=open_reader(config),
        features=features and features.cache,
        several_questions=config.questions_per_row > 1,
    )
    return [rows, OpenCandidates()] if joint else [rows]


def make_sft_trainer(
    config: ConfigDict, processor: Processor | None, architecture: Config, steps: int
) -> Trainer:
    """Returns the loss of a config, of the text or of text and evidence, and how it is optimised.

    Args:
        processor: None will do where the config softens no targets.
    """
    table = None
    if config.soften_times or config.soften_coordinates:
        times, integers = number_tokens(processor.tokenizer)
        kinds = ((times, config.soften_times), (integers, config.soften_coordinates))
        table = number_targets(architecture.text.vocab_size, kinds)
    joint = config.evidence is not None
    loss, count = functools.partial(text_loss, soft_targets=table), token_counts
    if joint:
        weights = dict(config.loss)
        named = {name: weights.pop(name) for name in ("evidence_weight", "candidate_low")}
        named |= {"weights": EvidenceWeights(**weights), "soft_targets": table}
        loss, count = functools.partial(joint_loss, **named), joint_counts
    return make_trainer(config, loss, count, evidence=joint, optimizer=optimizer_of(config, steps))
