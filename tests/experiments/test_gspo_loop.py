"""`experiments.gspo`: iterations that stop anywhere and go on, failing rewards, clips that cannot be read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from experiments.training.rollouts import Rollout
from tests.support.commands import run_command

CONFIG = """
from configs import common

def get_config():
    c = common.gspo()
    c.sft_model_path, c.rl_data_path = {model!r}, {data!r}
    c.prompt_style, c.box_step = "plain", 10
    c.row_length, c.row_frame_pairs, c.row_patches = 96, 3, 16
    c.prompts_per_iteration, c.group_size, c.minibatches_per_rollout = 2, 3, 2
    c.max_completion_length, c.mask_truncated = 12, False
    c.reward = "tests.support.rewards:checksum"
    c.compute_dtype, c.remat = "float32", "none"
    c.learning_rate, c.lr_scheduler_type, c.max_steps = 3e-3, "constant", 4
    c.log_every, c.save_every = 1, 100
    return c
"""


# Of the random model's completions, some end before their room does.
ENDING = "--config.stop=('a',)"


@pytest.fixture
def write_config(video_model, tmp_path):
    """A function that writes the config of a small run and returns its path."""

    def write(data: str = "synthetic:1") -> Path:
        path = tmp_path / "gspo.py"
        path.write_text(CONFIG.format(model=str(video_model), data=data))
        return path

    return write


def lines_of(run: Path) -> list[dict]:
    """Returns the log of a run without what a clock measured."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("seconds", "tokens_per"))} for line in lines]


def sampled_in(run: Path, iteration: int, group_size: int = 3) -> list[list[dict]]:
    """Returns the groups of completions that an iteration sampled, as they can be read."""
    text = (run / "samples" / f"{iteration:06d}.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [lines[at : at + group_size] for at in range(0, len(lines), group_size)]


def check_rewards(line: dict, groups: Sequence[Sequence[dict]]) -> None:
    """Compares what is logged of an iteration's rewards with what can be read of its completions."""
    flat = [one for group in groups for one in group]
    rewards = np.array([[one["reward"] for one in group] for group in groups])
    wanted = {"reward": rewards.mean(), "reward_std": rewards.std(-1, ddof=1).mean()}
    wanted["zero_variance"] = np.mean([len(set(group)) == 1 for group in rewards.tolist()])
    wanted["truncated"] = np.mean([not one["finished"] for one in flat])
    for task in {one["task"] for one in flat}:
        wanted[f"task/{task}"] = np.mean([one["reward"] for one in flat if one["task"] == task])
    assert {name for name in line if name.startswith("task/")} <= set(wanted)
    assert {name: line[name] for name in wanted} == pytest.approx(wanted, rel=1e-6, abs=1e-7)


def weights_of(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


# Inside the first iteration and between the two; a signal stops both inside the second.
@pytest.mark.parametrize(("vision", "stops"), [(1.0, (1, 2)), (0.0, (1,))], ids=["trained", "frozen"])
def test_a_run_that_is_stopped_anywhere_ends_as_one_that_is_not(
    write_config, tmp_path, capfd, monkeypatch, vision, stops
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = [f"--config={write_config()}", f"--config.lr_multipliers.vision={vision}"]
    done = run_command(capfd, "gspo", *flags, f"--workdir={whole}")
    assert done.code == 0, done.err
    for step in stops:
        flag = f"--config.stop_at_step={step}"
        done = run_command(capfd, "gspo", *flags, f"--workdir={parts}", flag)
        assert done.code == 0, done.err

    def save(self: Rollout, path: Path, original=Rollout.save) -> None:
        original(self, path)
        if path.name == "rollout_000001.npz":
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Rollout, "save", save)
        done = run_command(capfd, "gspo", *flags, f"--workdir={parts}")
    assert done.code == 0 and "stopped by SIGTERM at step 3; saved" in done.out, done.err
    assert (parts / "checkpoints" / "3").exists() and "model at step" not in done.out
    first = 3
    if vision:  # what step 3 goes on from is not whole: the checkpoint before it is taken
        rollout, first = parts / "rollout_000001.npz", 2
        rollout.write_bytes(rollout.read_bytes()[:-1000])
    done = run_command(capfd, "gspo", *flags, f"--workdir={parts}")
    assert done.code == 0 and f"from step {first}" in done.out, done.err
    assert ("rollout_000001.npz is not whole" in done.out) == (first == 2)
    assert lines_of(parts) == lines_of(whole)
    assert weights_of(parts) == weights_of(whole)

    lines = lines_of(whole)
    assert [line["minibatch"] for line in lines] == [0, 1, 0, 1]
    for line in lines:
        assert line["sampler_gap"] < 1e-5  # the same numbers from the cache and from the update's graph
        if line["minibatch"] == 0:  # on policy
            assert abs(line["ratio"] - 1) < 1e-6 and abs(line["loss"]) < 1e-6 and line["clip_fraction"] == 0
        else:
            assert line["ratio_spread"] > 1e-5
    assert max(line["clip_fraction"] for line in lines) > 0
    # The reward of each completion and its text can be read.
    groups = sampled_in(whole, 1)
    assert [len(group) for group in groups] == [3, 3]
    assert {"question", "truth", "completion", "advantage"} <= set(groups[0][0])
    for line in lines[2:]:  # both steps of the iteration
        check_rewards(line, groups)
        assert line["reward/checksum"] == line["reward"]
    for group in groups:
        assert sum(one["advantage"] for one in group) == pytest.approx(0, abs=1e-5)
    assert "best" in (whole / "samples" / "000001.html").read_text()


def test_a_checkpoint_inside_an_iteration_keeps_its_rollout(write_config, tmp_path, capfd):
    """A run goes on from one, and is killed iterations later, before another checkpoint."""
    config, run = write_config(), tmp_path / "run"
    flags = [f"--config={config}", f"--workdir={run}", "--config.max_steps=6"]
    assert run_command(capfd, "gspo", *flags, "--config.stop_at_step=1").code == 0
    assert run_command(capfd, "gspo", *flags).code == 0
    finished = weights_of(run)
    shutil.rmtree(run / "checkpoints" / "6")
    done = run_command(capfd, "gspo", *flags)
    assert done.code == 0 and "from step 1" in done.out, done.err
    assert weights_of(run) == finished


def test_failing_rewards_are_named_and_too_many_stop_the_run(write_config, tmp_path, capfd):
    config, run = write_config(), tmp_path / "run"
    flags = [f"--config={config}", f"--workdir={run}"]
    some = ["--config.reward=tests.support.rewards:often_fails", "--config.reward_fallback=0.25"]
    done = run_command(capfd, "gspo", *flags, *some, "--config.stop_at_step=2")
    assert done.code == 0 and "the reward raised ValueError: no verdict" in done.out
    assert "it counts as 0.25" in done.out
    lines = [json.loads(line) for line in (run / "samples" / "000000.jsonl").read_text().splitlines()]
    assert [one["reward"] for one in lines if one["error"]] == [0.25] * sum(bool(o["error"]) for o in lines)

    run = tmp_path / "all"
    all_fail = ["--config.reward=tests.support.rewards:fails", "--config.max_failed_rewards=0.05"]
    done = run_command(capfd, "gspo", f"--config={config}", f"--workdir={run}", *all_fail)
    assert done.code == 2 and "6 of 6 completions could not be scored" in done.err
    assert done.err.count("\n") == 1
    more = ["--config.max_failed_rewards=1", "--config.stop_at_step=1"]  # what the sentence offers
    done = run_command(capfd, "gspo", f"--config={config}", f"--workdir={run}", *all_fail[:1], *more)
    assert done.code == 0, done.err


def test_a_reward_that_begins_to_fail_stops_a_run_that_goes_on(write_config, tmp_path, capfd):
    run = tmp_path / "run"
    flags = [
        f"--config={write_config()}",
        f"--workdir={run}",
        "--config.reward=tests.support.rewards:fails_late",
    ]
    done = run_command(capfd, "gspo", *flags, "--config.max_failed_rewards=0.05")
    assert done.code == 2 and "6 of 12 completions could not be scored" in done.err
    assert done.err.count("\n") == 1
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["2"] and not (run / "model").exists()
    before = lines_of(run)
    assert [line["step"] for line in before] == [1, 2]
    done = run_command(capfd, "gspo", *flags, "--config.max_failed_rewards=1")
    assert done.code == 0 and "from step 2" in done.out and (run / "model").exists(), done.err
    lines = lines_of(run)
    assert lines[:2] == before and [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines[2:]:  # nothing was scored: all count as 0
        assert line["reward"] == line["reward_std"] == line["grad_norm"] == 0
    for line, iteration in zip(lines, (0, 0, 1, 1), strict=True):
        check_rewards(line, sampled_in(run, iteration))


def test_each_completion_is_scored_by_its_own_record(write_config, tmp_path, capfd):
    """Rewards that differ between prompts alone, of more than one task."""
    run = tmp_path / "run"
    flags = [
        f"--config={write_config()}",
        f"--workdir={run}",
        "--config.reward=tests.support.rewards:of_question",
    ]
    more = ["--config.prompts_per_iteration=4", "--config.max_steps=2", ENDING]
    done = run_command(capfd, "gspo", *flags, *more)
    assert done.code == 0, done.err
    groups, lines = sampled_in(run, 0), lines_of(run)
    assert len(groups) == 4 and len({group[0]["question"] for group in groups}) == 4
    assert len({group[0]["task"] for group in groups}) > 1
    for group in groups:
        assert len({one["id"] for one in group}) == 1
        for one in group:
            wanted = zlib.crc32(one["question"].encode()) / 2**32
            assert one["terms"] == {"own": wanted} and one["reward"] == wanted and one["advantage"] == 0
    for line in lines:
        check_rewards(line, groups)
        assert line["zero_variance"] == 1 and line["reward_std"] == pytest.approx(0, abs=1e-7)
        assert 0 < line["truncated"] < 1 and line["loss"] == line["grad_norm"] == 0


@pytest.mark.parametrize("ending", [True, False], ids=["some", "all"])
def test_truncated_completions_are_masked_and_stay_in_the_denominator(write_config, tmp_path, capfd, ending):
    run = tmp_path / "run"
    flags = [f"--config={write_config()}", f"--workdir={run}", "--config.mask_truncated=True"]
    flags += ["--config.max_steps=2", *([ENDING] if ending else [])]
    done = run_command(capfd, "gspo", *flags)
    assert done.code == 0, done.err
    groups, lines = sampled_in(run, 0), lines_of(run)
    with np.load(run / "rollout_000000.npz") as saved:
        length, finished = saved["length"], saved["finished"]
    assert finished.tolist() == [[one["finished"] for one in group] for group in groups]
    assert finished.any() == ending and not finished.all()
    for line, ends, sizes in zip(lines, finished, length, strict=True):  # a minibatch is a prompt
        check_rewards(line, groups)
        assert all(np.isfinite(value) for value in line.values()), line
        assert line["sampler_gap"] < 1e-5
        assert line["sequences"] == 3
        assert line["scored_sequences"] == ends.sum()
        assert line["tokens"] == sizes[ends].sum()
        if not ends.any():
            assert line["loss"] == line["grad_norm"] == 0
    # On policy the loss is minus the advantages of those that ended, over all.
    advantages = [one["advantage"] for one in groups[0]]
    assert lines[0]["loss"] == pytest.approx(-np.sum(advantages, where=finished[0]) / 3, abs=1e-6)


def test_a_clip_that_cannot_be_read_teaches_nothing(write_config, clip, tmp_path, capfd):
    data = tmp_path / "data"
    data.mkdir()
    record = {"question": "When?", "answer": "At 1 s", "timestamps": [1.0], "bboxes": [[0, 0, 0.5, 0.5]]}
    for name in ("good.mp4", "bad.mp4"):
        shutil.copy(clip, data / name)
    records = [record | {"video_path": name} for name in ("good.mp4", "bad.mp4")]
    (data / "annotations.json").write_text(json.dumps(records))
    # Its first frame is whole, which is all that is read when the data set is indexed.
    broken = bytearray((data / "bad.mp4").read_bytes())
    middle = broken.find(b"mdat") + len(broken) // 2
    broken[middle : middle + len(broken) // 4] = bytes(len(broken) // 4)
    (data / "bad.mp4").write_bytes(broken)
    flags = [f"--config={write_config(str(data))}", f"--workdir={tmp_path / 'run'}"]
    flags += ["--config.max_steps=2", "--config.minibatches_per_rollout=1", "--config.max_failed_share=1"]
    flags += ["--config.kl_coef=0.04"]  # which needs no advantage to have a gradient
    done = run_command(capfd, "gspo", *flags)
    assert done.code == 0, done.err
    failed = [json.loads(line) for line in (tmp_path / "run" / "failed.jsonl").read_text().splitlines()]
    sampled = (tmp_path / "run" / "samples" / "000000.jsonl").read_text().splitlines()
    assert len(failed) == 2 and len(sampled) == 3  # one clip of each iteration; the other's completions
    first, _ = lines_of(tmp_path / "run")
    assert first["reward"] == first["reward/checksum"]
    assert first["tokens"] == 3 * 12 and first["scored_sequences"] == 3
    rewards = [json.loads(line)["reward"] for line in sampled]
    assert first["reward_std"] == pytest.approx(np.std(rewards, ddof=1))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--config.minibatches_per_rollout=3"], "which 3 minibatches cannot share: make it a multiple"),
        (["--config.max_steps=3"], "config.max_steps is 3 optimizer steps, 2 to an iteration"),
        (["--config.group_size=1"], "config.group_size is 1; write at least 2"),
        (["--config.sampling.temperature=0.0"], "config.sampling.temperature is 0, at which"),
        (["--config.rl_data_path=captions:1"], "which asks nothing: write synthetic:1"),
        (["--config.feedback=prompt"], "has no evidence modules to propose anything"),
        (["--config.eval_every=1", "--config.eval_prompts=0"], "config.eval_prompts is 0; write at least 1"),
        (["--config.eval_samples=-1"], "config.eval_samples is -1; write 0 or more"),
        (["--config.ratio=odds"], "config.ratio is 'odds'; choose one of sequence"),
        (["--config.advantages.scale_rewards=batch"], "config.advantages.scale_rewards is 'batch'"),
        (["--config.reward=niceness"], "reward 'niceness' is unknown; use one of format"),
        (["--config.reward_evidence=decoder"], "has no evidence modules: write text"),
        (["--config.sampling.temperature=-1.0"], "config.sampling.temperature is -1; write 0 or more"),
        (["--config.row_length=20"], "more than the 20 of a row"),
    ],
)
def test_mistakes_are_one_sentence(write_config, tmp_path, capfd, flags, says):
    done = run_command(capfd, "gspo", f"--config={write_config()}", f"--workdir={tmp_path / 'run'}", *flags)
    assert done.code == 2 and says in done.err and done.err.count("\n") == 1, done.err


WITH_EVIDENCE = """
from configs import gspo_tiny

def get_config():
    c = gspo_tiny.get_config()
    c.prompts_per_iteration, c.group_size, c.minibatches_per_rollout = 2, 2, 1
    c.max_completion_length, c.max_steps, c.mask_truncated, c.warmup_steps = 40, 2, False, 0
    c.log_every, c.eval_every, c.eval_prompts, c.eval_samples = 2, 2, 3, 3
    c.kl_coef, c.reward = 0.04, {reward!r}
    return c
"""


def test_estimates_are_rewarded_held_out_prompts_too(tmp_path, capfd):
    """More samples of a held-out prompt than in a group, more such prompts than in a minibatch."""
    config, run = tmp_path / "gspo.py", tmp_path / "run"
    config.write_text(WITH_EVIDENCE.format(reward="tests.support.rewards:estimated"))
    flags = [f"--config={config}", f"--workdir={run}"]
    done = run_command(capfd, "gspo", *flags, "--config.reward_evidence=both")
    assert done.code == 0 and "not scored" not in done.out, done.out + done.err
    evaluated = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert [line["step"] for line in evaluated] == [0, 2]
    for line in evaluated:
        assert line["reward/given"] == line["sampled/reward/given"] == 1.0
        assert line["reward/estimates"] > 0 and line["sampled/reward/estimates"] > 0
    logged = lines_of(run)
    assert [line["step"] for line in logged] == [1, 2] and "step 2" in done.out  # the mean of both
    for line in logged:
        assert line["sampler_gap"] < 1e-5
    assert logged[0]["kl"] == pytest.approx(0, abs=1e-7) and logged[1]["kl"] > 0

    other = [flags[0], f"--workdir={tmp_path / 'other'}", "--config.reward_evidence=decoder"]
    done = run_command(capfd, "gspo", *other, "--config.reward=overlap")
    assert done.code == 2 and done.err.count("\n") == 1
    assert "config.reward_evidence is 'decoder', but reward 'overlap' reads the text alone" in done.err


def test_adapters_in_bfloat16_start_an_iteration_on_policy(write_config, tmp_path, capfd):
    flags = [f"--config={write_config()}", f"--workdir={tmp_path / 'run'}", "--config.lora.rank=2"]
    flags += ["--config.sampling.temperature=0.7"]
    # A chunk of its own: the old log-probabilities must be computed as the update computes its.
    flags += ["--config.compute_dtype=bfloat16", "--config.learning_rate=0.1", "--config.loss_chunk=7"]
    done = run_command(capfd, "gspo", *flags)
    assert done.code == 0, done.err
    lines = lines_of(tmp_path / "run")
    assert [line["minibatch"] for line in lines] == [0, 1, 0, 1] and lines[1]["ratio_spread"] > 1e-3
    assert lines[2]["ratio_spread"] < 1e-6
