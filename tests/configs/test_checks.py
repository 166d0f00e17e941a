"""Numbers that no run can mean, and fields of earlier revisions."""

from __future__ import annotations

import fnmatch
import json
import math
import re

import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from configs import common
from configs.checks import NUMBERS, check_fields, leaves
from experiments.training.workdir import Position, Workdir
from o3jax.errors import UserError
from tests.support.commands import run_command
from tests.support.configs import CONFIGS, load


@pytest.mark.parametrize(("name", "argument"), CONFIGS)
def test_the_numbers_of_every_config_make_sense(name, argument):
    check_fields(load(name, argument))


def test_every_number_that_is_checked_is_a_field_of_a_stage():
    names = set()
    for stage in (common.sft(), common.gspo(), load("ground_tiny"), load("match_tiny")):
        if "video" in stage:
            stage.video = ConfigDict(dict.fromkeys(stage.video, 1))
        names |= {name for name, _ in leaves(stage)}
    names |= {name for name, _ in leaves(load("sft_tiny", "evidence"))}
    for _, _, fields in NUMBERS:
        assert all(fnmatch.filter(names, field) for field in fields), fields


@pytest.mark.parametrize(("name", "argument"), CONFIGS)
def test_no_number_is_without_limits(name, argument):
    """Each is refused as nan, as more than any run can mean, and as less."""
    c = load(name, argument)
    numbers = {n: v for n, v in leaves(c) if isinstance(v, int | float) and not isinstance(v, bool)}
    for field in numbers:
        for wrong in (math.nan, math.inf, 10**20, -(10**20)):
            if field == "max_grad_norm" and wrong > 0:  # inf is off
                continue
            changed = ConfigDict(c.to_dict(), convert_dict=True, type_safe=False)
            part, _, last = field.rpartition(".")
            (changed[part] if part else changed)[last] = wrong
            with pytest.raises(UserError, match=re.escape(f"config.{field} is ")):
                check_fields(changed)


@pytest.mark.parametrize(
    ("stage", "field", "value", "says"),
    [
        ("sft", "log_every", 0, "log_every is 0; write at least 1"),
        ("sft", "save_every", 0, "save_every is 0; write at least 1"),
        ("sft", "per_device_train_batch_size", 0, "at least 1"),
        ("gspo", "gradient_accumulation_steps", 0, "at least 1"),
        ("gspo", "groups_per_row", 0, "at least 1"),
        ("gspo", "mesh.fsdp", 0, "config.mesh.fsdp is 0; write at least 1"),
        ("sft", "evidence_shape.mentions", 0, "config.evidence_shape.mentions is 0; write at least 1"),
        ("sft", "video.fps", 0.0, "more than 0"),
        ("sft", "num_workers", -1, "config.num_workers is -1; write 0 or more"),
        ("sft", "max_steps", -1, "0 or more"),
        ("sft", "num_train_epochs", -1.0, "0 or more"),
        ("sft", "warmup_steps", -1, "0 or more"),
        ("sft", "learning_rate", -1e-3, "config.learning_rate is -0.001; write 0 or more"),
        ("gspo", "learning_rate", math.nan, "0 or more"),
        ("sft", "lr_multipliers.text", -1.0, "config.lr_multipliers.text is -1; write 0 or more"),
        ("sft", "lora.rank", -1, "0 or more"),
        ("sft", "loss.box_l1", -1.0, "0 or more"),
        ("gspo", "eval_every", -1, "0 or more"),
        ("gspo", "clip_low", -1e-4, "0 or more"),
        ("gspo", "kl_coef", -0.1, "0 or more"),
        ("sft", "adam_b2", 1.0, "0 or more, but less than 1"),
        ("sft", "loss.evidence_weight", 40.0, "config.loss.evidence_weight is 40; write a share from 0 to 1"),
        ("sft", "max_failed_share", 1.5, "a share from 0 to 1"),
        ("sft", "max_rejected_share", 5.0, "a share from 0 to 1"),
        ("gspo", "max_failed_rewards", -0.1, "a share from 0 to 1"),
    ],
)
def test_numbers_that_no_run_can_mean_are_refused(stage, field, value, says):
    c = getattr(common, stage)()
    check_fields(c)
    c.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=re.escape(f"config.{field} is {value:g}; write ")) as error:
        check_fields(c)
    assert says in str(error.value)


@pytest.mark.parametrize("stop", [(1,), ("a", ""), (None,)])
def test_what_no_text_can_end_with_is_refused(stop):
    c = common.gspo()
    c.stop = ("(", "\n\n")
    check_fields(c)
    c.stop = stop
    with pytest.raises(UserError, match="config.stop is .*; write strings that are not empty"):
        check_fields(c)


# --- fields of earlier revisions ---

OLD = {
    "rates": ("c.rates = c.lr_multipliers", "config.rates is now called lr_multipliers"),
    "read": ("c.rates.vision = 0.0", "config.rates is now called lr_multipliers"),
    "row_groups": ("c.row_groups = 3", "config.row_groups is now called row_frame_pairs"),
    "groups": (
        "c.evidence_shape = common.evidence_shape(groups=75)",
        "config.evidence_shape.groups is now called evidence_shape.frame_pairs",
    ),
    "head": (
        "c.reward_evidence = 'head'",
        "config.reward_evidence='head' is now called reward_evidence='decoder'",
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_an_old_field_in_a_file_is_told_its_new_name(tmp_path, capfd, name):
    line, says = OLD[name]
    path, command_name = tmp_path / "old.py", "gspo" if name == "head" else "sft"
    path.write_text(
        f"from configs import common, {command_name}_tiny\n"
        f"def get_config():\n    c = {command_name}_tiny.get_config()\n    {line}\n    return c\n"
    )
    done = run_command(capfd, command_name, f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert done.code == 2 and says in done.err and done.err.count("\n") == 1, done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "flag", "says"),
    [
        ("sft", "rates.vision=0", OLD["rates"][1]),
        ("gspo", "row_groups=3", OLD["row_groups"][1]),
        ("sft", "evidence_shape.groups=75", OLD["groups"][1]),
        ("gspo", "reward_evidence=head", OLD["head"][1]),
    ],
)
def test_an_old_field_as_a_flag_is_told_its_new_name(tmp_path, capfd, name, flag, says):
    done = run_command(capfd, name, f"--config.{flag}", f"--workdir={tmp_path / 'run'}")
    assert done.code == 2 and says in done.err and done.err.count("\n") == 1, done.err


def test_a_run_of_an_earlier_revision_is_refused(tmp_path, capfd):
    """First by the names in its config.json, then by what its checkpoints hold."""
    run, config = tmp_path / "run", load("sft_tiny", "captions")
    config.model_name_or_path, config.row_length = "o3-tiny", 224
    workdir = Workdir(run, config)
    args = ocp.args.Composite(
        state=ocp.args.StandardSave({".step": np.zeros(())}),
        data=ocp.args.JsonSave({"rows": 0, "clips": 0, "facts": {"seed": 0}}),
    )
    workdir.manager.save(1, args=args)
    workdir.manager.wait_until_finished()
    workdir.close()
    with pytest.raises(UserError, match="of an earlier revision, which cannot be continued.*--workdir"):
        Workdir(run, config).restore(None, Position())
    old = json.loads((run / "config.json").read_text())
    old["rates"] = old.pop("lr_multipliers")
    (run / "config.json").write_text(json.dumps(old))
    flags = ["--config=configs/sft_tiny.py:captions", f"--workdir={run}"]
    done = run_command(capfd, "sft", *flags, "--config.model_name_or_path=o3-tiny")
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert "of an earlier revision, whose rates is now called lr_multipliers" in done.err
