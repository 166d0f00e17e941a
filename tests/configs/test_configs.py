"""Every config builds what it describes, without allocating it; the article's runs on a tiny model."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from configs.checks import check_sft, check_text_alone
from configs.common import given
from data_pipelines.formats.index import Index
from data_pipelines.formats.sample import Sample
from data_pipelines.reading.sources import ImageSource, VideoSource
from data_pipelines.rows.clips import Clip, FolderClips
from data_pipelines.rows.frames import FramesConfig, plan_frames
from data_pipelines.rows.packing import RowCapacity, RowCost
from experiments.data.clips import open_clips, plan
from experiments.training.build_sft import architecture_of, make_rows, make_sft_trainer
from experiments.training.workdir import Workdir
from o3jax.errors import UserError
from o3jax.generate.sampling import Sampling
from o3jax.hf import config_from_hf
from o3jax.hf.folder import model_folder
from o3jax.inputs.dense import dense_rate, dense_size
from o3jax.inputs.image import ImageConfig, VideoConfig, video_size
from o3jax.inputs.processor import load_processor
from o3jax.models.batch import map_arrays
from o3jax.models.config import EvidenceConfig, TextConfig, VisionConfig
from o3jax.models.presets import PRESETS
from o3jax.models.qwen3_vl import abstract_model
from o3jax.rewards import registry
from o3jax.tasks import SPATIO_TEMPORAL, VISUAL
from o3jax.video import VideoInfo
from tests.support.commands import run_command
from tests.support.configs import CONFIGS, load

LARGE = ("sft_article", "sft_open_o3")
# Prompts of an iteration, completions of each, optimizer steps, KL, clip.
GSPO = {
    "gspo_article": (16, 3, 2, 0.0, (3e-4, 4e-4)),
    "gspo_open_o3": (8, 4, 1, 0.04, (0.2, 0.2)),
    "gspo_paper": (32, 8, 4, 0.0, (3e-4, 4e-4)),
}


def test_all_of_them_are_here():
    tiny = {"ground_tiny", "sft_tiny", "match_tiny", "ablation_tiny", "gspo_tiny"}
    stages = set(GSPO)
    assert {name for name, _ in CONFIGS} == tiny | stages | set(LARGE)


def test_the_grounding_config_describes_a_model():
    c = load("ground_tiny")
    text = TextConfig(vocab_size=c.vocab_size, **c.text)
    assert sum(text.mrope_section) == text.head_dim // 2
    assert VisionConfig(**c.vision).out_hidden_size == text.hidden_size
    assert set(c.mesh) == set(common.mesh())


def sft_parts(c: ConfigDict, rank: int = 0) -> tuple:
    """Returns (abstract state, abstract metrics of a step), put together as the command does."""
    published = c.model_name_or_path.startswith("models/")
    folder = model_folder("o3-tiny")
    processor, config = load_processor(folder), config_from_hf(folder)
    if published:  # with the tiny model's tokenizer
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        config = dataclasses.replace(PRESETS["8B"], **{name: getattr(config, name) for name in names})
        processor.video_config = VideoConfig()
        c.data_path = "synthetic:1"
    processor.video_config = dataclasses.replace(processor.video_config, **given(c.video))
    config = architecture_of(c, dataclasses.replace(config, evidence=None))
    c.lora.rank, steps = rank, c.max_steps or 100
    trainer = make_sft_trainer(c, processor, config, steps)
    state = jax.eval_shape(lambda model: trainer.init(trainer.adapted(model)), abstract_model(config))
    rows, *others = make_rows(c, processor, config)
    row = rows.map(open_clips(c, processor)[0])
    for transform in others:
        row = transform.random_map(row, np.random.default_rng(0))
    size = c.per_device_train_batch_size * c.mesh.data * c.mesh.fsdp
    steps = c.gradient_accumulation_steps
    row = dataclasses.replace(row, failures=None)
    batch = map_arrays(lambda a: jax.ShapeDtypeStruct((steps, size, *a.shape), a.dtype), row)
    after, metrics = jax.eval_shape(trainer.make_step(), state, batch)
    shapes = [[(a.shape, a.dtype) for a in jax.tree.leaves(one)] for one in (after, state)]
    assert shapes[0] == shapes[1]
    return state, metrics


@pytest.mark.parametrize(("name", "argument"), [pair for pair in CONFIGS if pair[0].startswith("sft")])
def test_every_sft_config_builds(name, argument):
    c = load(name, argument)
    assert set(c) == set(common.sft())
    assert (c.max_steps > 0) != (c.num_train_epochs > 0)
    state, metrics = sft_parts(c)
    assert metrics["loss"].shape == () and metrics["loss"].dtype == jnp.float32
    assert {"text", "accuracy"} <= set(metrics)
    assert ("proposal_time_error" in metrics) == (c.evidence is not None)
    frozen = [part for part, rate in c.lr_multipliers.items() if not rate]
    parts = [getattr(state.model, part) for part in ("vision", "text", "evidence") if part not in frozen]
    trained = sum(a.size for a in jax.tree.leaves(parts))
    moments = sum(a.size for a in jax.tree.leaves(state.opt_state))
    assert moments >= trained and (trained > 8.7e9) == (name in LARGE)


def test_the_article_with_adapters_keeps_moments_of_these_alone():
    state, _ = sft_parts(load("sft_article"), rank=16)
    moments = sum(a.size for a in jax.tree.leaves(state.opt_state))
    evidence = sum(a.size for a in jax.tree.leaves(state.model.evidence))
    # By hand, per layer: r times inputs and outputs of q, k, v, o, gate, up, down.
    sides = 8192 + 2 * (4096 + 1024) + 8192 + 3 * (4096 + 12288)
    assert moments == pytest.approx(2 * (evidence + 36 * 16 * sides), rel=1e-6)


def test_the_article_s_numbers():
    c = load("sft_article")
    devices = math.prod(c.mesh.values())
    assert (devices, c.per_device_train_batch_size * c.gradient_accumulation_steps * devices) == (8, 32)
    assert (c.mesh.fsdp, c.questions_per_row) == (8, 1)
    assert (c.learning_rate, c.num_train_epochs, c.loss.evidence_weight) == (2e-5, 10, 0.4)
    assert (c.evidence.dense_fps, c.compute_dtype, c.remat) == (25.0, "bfloat16", "names")
    assert (c.full_text_loss, c.lora.rank) == (False, 0)


def test_the_published_numbers():
    c = load("sft_open_o3")
    devices = math.prod(c.mesh.values())
    assert (devices, c.per_device_train_batch_size * c.gradient_accumulation_steps * devices) == (8, 8)
    assert (c.learning_rate, c.num_train_epochs, c.questions_per_row) == (1e-6, 1, 1)
    f = FramesConfig(**c.frames)
    assert (f.layout, f.stage, f.timestamps, f.key_frames) == ("images", "sft", "released", "released")
    assert (f.fps, f.min_frames, f.max_frames, c.max_rejected_share) == (2.0, 4, 16, 0.05)
    assert (c.prompt_style, c.full_text_loss, c.evidence) == ("open_o3_sft", True, None)
    assert (c.optimizer, c.weight_decay, c.adam_b2, c.max_grad_norm) == ("adamw", 0.0, 0.999, 5.0)
    assert (c.lr_scheduler_type, c.warmup_steps) == ("linear", 0)


ASPECTS = [
    (720, 1280),
    (1280, 720),
    (480, 640),
    (1080, 1920),
    (1000, 1280),
    (540, 1280),
    (512, 512),
    (240, 426),
]


def test_published_frames_fit_a_row():
    c, processor = load("sft_open_o3"), load_processor(model_folder("o3-tiny"))
    processor.video_config, processor.image_config = VideoConfig(), ImageConfig()
    sample = Sample("s", "source", SPATIO_TEMPORAL, "?", "x", image_path="x.jpg", image_size=(640, 480))
    for height, width in ASPECTS:
        info = VideoInfo(100.0, 30.0, 3000, width, height, "h264", 0)
        plan = plan_frames([sample], info, processor, FramesConfig(**c.frames))
        assert (
            plan.frame_pairs == 16
            and plan.frame_pairs + 5 <= c.row_frame_pairs
            and plan.patches <= c.row_patches
        )
        assert c.row_frame_pairs * (plan.patches // 4 + 16) <= c.row_length - 1800, (height, width)
        asked = dataclasses.replace(sample, task=VISUAL, image_size=(width, height))
        plan = plan_frames(
            [asked], ImageSource(Path("x.jpg"), (width, height)).info(), processor, FramesConfig(**c.frames)
        )
        assert plan.frame_pairs == 1 and plan.patches <= c.row_patches


@pytest.mark.parametrize("name", ["sft_article"])
def test_every_usual_video_fits_a_row(name):
    c = load(name)
    video = dataclasses.replace(VideoConfig(), **given(c.video))
    for height, width in ASPECTS:
        for frames in range(video.min_frames, video.max_frames + 1):
            h, w = video_size(frames, height, width, video)
            pairs = math.ceil(frames / 2)
            assert pairs <= c.row_frame_pairs and h * w // 16**2 <= c.row_patches, (height, width, frames)
            # A time takes at most a dozen tokens; 1,800 are left for the longest prompts and responses.
            assert pairs * (h * w // 32**2 + 12) <= c.row_length - 1800
        if c.evidence is not None:
            e = EvidenceConfig(**c.evidence)
            h, w = dense_size(height, width, e, video.factor)
            assert h * w // 16**2 <= c.evidence_shape.patches
    if c.evidence is not None:
        for native in (24.0, 25.0, 29.97, 30.0, 50.0, 60.0):
            assert math.ceil(180 * dense_rate(native, e) / 2) <= c.evidence_shape.frame_pairs


# --- reinforcement learning ---


@pytest.mark.parametrize(("name", "argument"), [pair for pair in CONFIGS if pair[0].startswith("gspo")])
def test_every_gspo_config_describes_iterations(name, argument):
    c = load(name, argument)
    assert set(c) == set(common.gspo())
    assert (c.max_steps > 0) != (c.num_train_epochs > 0)
    assert c.prompts_per_iteration % c.minibatches_per_rollout == 0
    assert c.max_steps % c.minibatches_per_rollout == 0
    rows = c.prompts_per_iteration // c.minibatches_per_rollout  # of an optimizer step, a group each
    assert rows % (c.gradient_accumulation_steps * c.mesh.data * c.mesh.fsdp) == 0
    Sampling(**c.sampling)
    registry.load(c.reward)
    if name in GSPO:
        clip = c.clip_low, c.clip_high
        sizes = c.prompts_per_iteration, c.group_size, c.minibatches_per_rollout
        assert (*sizes, c.kl_coef, clip) == GSPO[name]
        assert (c.ratio, c.learning_rate) == ("sequence", 1e-6)
        assert c.advantages.positive_only == (name == "gspo_article")


# --- epochs ---


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "steps"), [(31_166, 8, 1, 3896), (30_000, 32, 10, 9375), (5, 8, 0.5, 1)]
)
def test_epochs_become_steps(rows, batch, epochs, steps):
    c = common.sft()
    c.num_train_epochs = float(epochs)
    clips = FolderClips(Index(Path(), [], [], {}), 1)
    sample = Sample("s", "source", "task", "?", "x")
    clips.clips = [Clip((sample,), VideoSource(Path("x.mp4")))] * rows
    clips.index = Index(Path(), [sample] * rows, [], {})
    maker = SimpleNamespace(
        cost=lambda clip: RowCost(10, 1),
        capacity=lambda: RowCapacity(15, 4, None, None, c.clips_per_row),
        supervised=False,
    )
    assert plan(c, clips, maker, batch).steps == steps


# --- the article's recipe, small ---

SMALL = """
from configs import common, sft_article

def get_config():
    c = sft_article.get_config()
    c.model_name_or_path, c.data_path = {model!r}, {data!r}
    c.video, c.num_workers = common.video(), 0
    c.row_length, c.row_frame_pairs, c.row_patches = 640, 3, 16
    c.evidence.update(
        hidden_size=16, num_heads=2, dense_pixels=32 * 32, temporal_layers=1, decoder_layers=1
    )
    c.evidence_shape = common.evidence_shape(
        frame_pairs=90, patches=4, question_length=64, mentions=2, boxes=1, intervals=2
    )
    c.mesh = common.mesh()
    c.num_train_epochs, c.warmup_steps = 1.0, 0
    return c
"""
RECORD = {
    "video_path": "clip.mp4",
    "question": "When is the lid lifted?",
    "answer": "From <t>1.0</t>s to <t>6.0</t>s",
    "timestamps": [1.0],
    "bboxes": [[0.1, 0.2, 0.3, 0.4]],
    "objects": ["lid"],
    "reasoning": "The <obj>lid</obj><box>[0.1, 0.2, 0.3, 0.4]</box>at<t>1.0</t>s is lifted.",
}


@pytest.fixture
def small(video_model, clip, tmp_path) -> Path:
    """The article's config for a tiny model on one device, and 8 records: two steps of four micro-batches."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(clip, data / "clip.mp4")
    (data / "annotations.json").write_text(json.dumps([RECORD] * 8))
    path = tmp_path / "small.py"
    path.write_text(SMALL.format(model=str(video_model), data=str(data)))
    return path


def test_the_article_s_recipe_runs(small, tmp_path, capfd):
    done = run_command(capfd, "sft", f"--config={small}", f"--workdir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert {"text", "relevance", "time_error", "proposal_time_error"} <= set(lines[0])
    assert lines[0]["loss"] != lines[1]["loss"]  # all records are the same one
    # What was asked for is kept, not what it came to.
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (kept["num_train_epochs"], kept["max_steps"]) == (1.0, 0)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--config.max_steps=5"], "max_steps is 5 and config.num_train_epochs is 1: set exactly one"),
        (["--config.num_train_epochs=0"], "max_steps is 0 and config.num_train_epochs is 0: set exactly one"),
        (
            ["--config.evidence.hidden_size=18"],
            "evidence.hidden_size must be a positive multiple of 2 x num_heads",
        ),
        (["--config.evidence.strategy=wormhole"], "evidence.strategy is 'wormhole'; choose one of halo"),
        (["--config.box_frames=best"], "config.box_frames is 'best'; choose one of stream, pointed"),
        (["--config.frames.layout=tiles"], "frames: layout must be one of native, images, not 'tiles'"),
        (["--config.max_grad_norm=0"], "config.max_grad_norm is 0; write more than 0"),
        (["--config.evidence.dense_fps=60"], "evidence.dense_fps is 60, more than the 30 frames per second"),
        (
            [
                "--config.model_name_or_path=o3-tiny",
                "--config.data_path=synthetic:1",
                "--config.max_steps=1",
                "--config.num_train_epochs=0",
            ],
            "config.evidence.hidden_size is 16, but the model has evidence modules with 128",
        ),
        (["--config.data_path=synthetic:1"], "num_train_epochs is 1, but synthetic:1 has no end"),
        (
            ["--config.lora.rank=2", "--config.lora.targets=('heads',)"],
            "names 'heads', which is no projection",
        ),
    ],
)
def test_mistakes_are_one_sentence(small, tmp_path, capfd, flags, says):
    done = run_command(capfd, "sft", f"--config={small}", f"--workdir={tmp_path / 'run'}", *flags)
    assert done.code == 2 and says in done.err and done.err.count("\n") == 1, done.err
    assert Workdir(tmp_path / "run", ConfigDict({})).manager.latest_step() is None


# --- the text alone ---


@pytest.mark.parametrize(
    ("config", "flags", "says"),
    [
        ("sft_open_o3", ["feedback=prompt"], "config.feedback is 'prompt', but config.evidence is None"),
        ("sft_open_o3", ["box_frames=pointed"], "config.box_frames is 'pointed', but config.evidence is"),
        ("sft_tiny.py:questions", [], "the model's text reads its evidence modules' proposals, but"),
    ],
)
def test_a_text_alone_does_not_read_what_modules_say(tmp_path, capfd, config, flags, says):
    flags = [f"--config.{flag}" for flag in ("model_name_or_path=o3-tiny", *flags)]
    config = f"--config=configs/{config if ':' in config else config + '.py'}"
    done = run_command(capfd, "sft", config, f"--workdir={tmp_path / 'run'}", *flags)
    assert done.code == 2 and says in done.err and done.err.count("\n") == 1, done.err


def test_which_modules_a_text_alone_may_have_beside_it():
    plain = EvidenceConfig(16, 2, box_frames="pointed")
    c = load("sft_open_o3")
    for have, rules in ((None, (None, None)), (plain, (None, None)), (None, ("none", "stream"))):
        c.feedback, c.box_frames = rules
        check_sft(c)
        check_text_alone(have)
    with pytest.raises(UserError, match="the model's text reads its evidence modules' proposals"):
        check_text_alone(dataclasses.replace(plain, feedback="prompt"))
