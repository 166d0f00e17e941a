"""The steps that are planned, on abstract arrays: what they take and where it lies; nothing is compiled."""

from __future__ import annotations

import jax
import pytest

from configs import gspo_article, sft_article
from configs.common import with_whole_frames
from experiments.planning.kinds import make_step
from experiments.planning.steps import shapes_of, sizes
from o3jax.errors import UserError
from o3jax.sharding import ShardingRules, make_mesh


def test_sft_of_8b_is_spread_over_eight_devices():
    c = sft_article.get_config()
    c.model_name_or_path = "models/Qwen3-VL-8B-Instruct"
    step = make_step(c, "sft", make_mesh(fsdp=8), ShardingRules())
    # Nine billion parameters and their two moments, float32, an eighth of them on each device.
    figures = step.analytic
    assert 4.0 < figures["parameters_gib"] < 4.5
    assert figures["moments_gib"] == pytest.approx(2 * figures["parameters_gib"], rel=0.01)
    assert step.tokens == 8 * 4 * 8192  # a row a device, four times
    # Nine billion parameters of two bytes, each time three times, seven eighths of them from other devices.
    assert (
        figures["weights_gb"] == pytest.approx(4 * 3 * 2 * 8.9 * 7 / 8, rel=0.01) and figures["keys_gb"] == 0
    )
    batch = step.arguments[1]
    ids = batch.inputs.text.input_ids
    assert ids.shape == (4, 8, 8192) and ids.sharding.shard_shape(ids.shape) == (4, 1, 8192)


def test_what_is_sent_of_adapters_and_of_rows_over_several_devices():
    c = sft_article.get_config()
    c.model_name_or_path, c.gradient_accumulation_steps, c.kernel = "Qwen3-VL-8B", 1, "splash"
    c.row_length, whole = 131072, make_step(c, "sft", make_mesh(fsdp=8), ShardingRules()).analytic
    figures = make_step(c, "sft", make_mesh(context=8), ShardingRules()).analytic
    # 36 layers of 8 heads of 128, keys and values: twice in bfloat16, once in float32.
    a_row = 36 * 2 * 8 * 128 * 131072
    assert figures["keys_gb"] == pytest.approx(a_row * (2 * 2 + 4) * 7 / 8 / 1e9)
    assert figures["weights_gb"] == whole["weights_gb"] and whole["keys_gb"] == 0
    c.lora.rank = 8  # of what is frozen there is no gradient
    adapted = make_step(c, "sft", make_mesh(fsdp=8), ShardingRules()).analytic
    assert adapted["weights_gb"] == pytest.approx(2 / 3 * whole["weights_gb"], rel=0.03)


def test_the_update_of_gspo_has_prompts_and_responses():
    c = gspo_article.get_config()
    c.sft_model_path = "Qwen3-VL-2B"
    step = make_step(c, "update", make_mesh(fsdp=8), ShardingRules())
    batch = step.arguments[1]
    assert batch.inputs.text.input_ids.shape == (1, 8, c.row_length + 3 * c.max_completion_length)
    assert batch.response_ids.shape == (1, 8, 3, c.max_completion_length)
    assert batch.inputs.features is not None  # of the tower, which is frozen
    assert all(hasattr(a, "sharding") for a in jax.tree.leaves(step.arguments))


def test_frames_that_the_devices_of_a_row_cannot_share_are_padded():
    c = sft_article.get_config()
    c.model_name_or_path, c.mesh.context, c.mesh.fsdp = "Qwen3-VL-8B", 8, 1
    c.row_frame_pairs, c.evidence_shape.frame_pairs = 30, 75
    padded = with_whole_frames(c)
    assert (padded.row_frame_pairs, padded.evidence_shape.frame_pairs, c.row_frame_pairs) == (32, 80, 30)
    batch = make_step(padded, "sft", make_mesh(context=8), ShardingRules()).arguments[1]
    assert batch.inputs.patches.values.shape[2] == 32 and batch.inputs.dense.times.shape[2] == 80


def test_rollouts_are_spread_over_eight_devices():
    """16 prompts of 12,288 tokens with 8 completions of 512: none of it twice, each weight once."""
    c = gspo_article.get_config()
    c.sft_model_path, c.row_length, c.group_size, c.max_completion_length = "Qwen3-VL-8B", 12288, 8, 512
    mesh, rules = make_mesh(fsdp=8), ShardingRules()
    step = make_step(c, "rollout", mesh, rules, 8)
    tokens = 16 * 12288 + 16 * 8 * 512
    assert step.analytic["caches_of_all_gib"] == pytest.approx(tokens * 36 * 2 * 8 * 128 * 2 / 2**30)
    decoder, _, slots, *_ = step.arguments
    caches = (slots.prefix.keys, slots.prefix.values, slots.keys, slots.values)
    assert sizes(caches) * 8 == pytest.approx(step.analytic["caches_of_all_gib"] * 2**30)
    every_weight = 2 * (8.77e9 - 0.58e9)  # bytes of the checkpoint, without its tower
    assert sizes(decoder) * 8 == pytest.approx(every_weight, rel=0.01)
    assert step.options["sampling"].temperature == 1 and step.loops == 512
    prompts = make_step(c, "prefill", mesh, rules, 8).arguments[1]
    ids = prompts.text.input_ids
    assert ids.shape == (8, 12288) and ids.sharding.shard_shape(ids.shape) == (1, 12288)


def test_a_model_that_nobody_knows_is_refused():
    with pytest.raises(UserError, match="the config names the model 'nothing', which is no folder"):
        shapes_of("nothing")
