"""Training steps compiled by the real compilers of TPUs and GPUs, for machines that are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from experiments.planning.machines import read_topology
from o3jax.errors import UserError
from tests.support.commands import run_command


def can_compile(topology: str) -> bool:
    """Returns whether the compiler of a machine is installed."""
    try:
        return bool(read_topology(topology).devices)
    except UserError:
        return False


TINY = """
from configs import {stage}_article

def get_config():
    c = {stage}_article.get_config()
    c.{model} = "{folder}"
    c.row_length, c.row_frame_pairs, c.row_patches = 256, 4, 16
    c.evidence_shape.frame_pairs, c.evidence_shape.patches = 32, 16
    c.evidence_shape.question_length = 32
    {more}
    return c
"""


def planned(tmp_path, video_model, topology, *flags, stage="sft", more="pass"):
    model = {"sft": "model_name_or_path", "gspo": "sft_model_path"}[stage]
    (tmp_path / "tiny.py").write_text(TINY.format(stage=stage, model=model, folder=video_model, more=more))
    out = tmp_path / "plan.json"
    command = [sys.executable, "-m", "experiments.plan", f"--topology={topology}", f"--out={out}"]
    command += [f"--config={tmp_path / 'tiny.py'}", *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=os.environ | {"XLA_FLAGS": ""}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text()), done.stdout


def check(plan):
    assert plan["fits"] and 0 < plan["memory"]["peak_gib"] < plan["memory"]["chip_gib"]
    assert plan["flops"] > 0 and plan["hbm_gb"] > 0 and plan["compile_s"] > 0
    assert sum(plan["collectives_gb"].values()) > 0 and "fsdp" in "".join(plan["axes_gb"])
    assert 0 < plan["mfu"]["sum"] <= plan["mfu"]["max"] <= 1


@pytest.fixture(
    params=[
        pytest.param(
            "a100:8",
            marks=[
                pytest.mark.gpu_compile,
                pytest.mark.skipif(not can_compile("a100:8"), reason="jax-cuda12-plugin is not installed"),
            ],
        ),
        pytest.param(
            "v5e:2x4",
            marks=[
                pytest.mark.tpu_compile,
                pytest.mark.skipif(not can_compile("v5e:2x4"), reason="libtpu is not installed"),
            ],
        ),
    ]
)
def topology(request):
    """A machine that is not there, its compiler is."""
    return request.param


def test_sft_compiles(tmp_path, video_model, topology):
    kernels = ["xla", "splash"] if topology.startswith("v") else ["xla"]
    plans, text = planned(tmp_path, video_model, topology, f"--sweep=kernel={'/'.join(kernels)}")
    plans = plans if len(kernels) > 1 else [plans]
    for plan, kernel in zip(plans, kernels, strict=True):
        check(plan)
        assert plan["step"] == "sft" and plan["changes"] == {"kernel": kernel}
        assert f"sft kernel={kernel}" in text if len(kernels) > 1 else "memory of a chip" in text


def test_an_iteration_of_gspo_compiles(tmp_path, video_model, topology):
    more = "c.max_completion_length, c.prompts_per_iteration, c.minibatches_per_rollout = 32, 8, 1"
    steps = ["update", "prefill", "rollout"]
    plans, _ = planned(tmp_path, video_model, topology, f"--step={','.join(steps)}", stage="gspo", more=more)
    for step, plan in zip(steps, plans, strict=True):
        assert plan["step"] == step
        assert plan["fits"] and plan["flops"] > 0 and plan["hbm_gb"] > 0, step
        if step == "update":
            check(plan)
        else:  # the state stays on the chips, the caches lie on one of them each
            assert plan["memory"]["beside_gib"] > 0
        if step == "rollout":
            assert plan["analytic"]["caches_of_all_gib"] == pytest.approx(8 * plan["analytic"]["caches_gib"])


@pytest.mark.parametrize(
    ("name", "said", "package"),
    [
        ("a100:8", "topology not implemented for cuda", "jax-cuda12-plugin"),  # as jax says it without them
        ("v5e:2x2", "JAX TPU support not installed; cannot generate TPU topology. See ...", "libtpu"),
    ],
)
def test_a_compiler_that_is_missing_is_named_with_its_package(monkeypatch, name, said, package):
    def missing(*_, **__):
        raise NotImplementedError(said)

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    with pytest.raises(UserError, match=f"a compiler that is not installed: pip install --no-deps {package}"):
        _ = read_topology(name).devices


@pytest.mark.parametrize("name", ["a100", "a100:", "b9:8", "v5p:0x2", "a100:2x2x2", "v5e:3x5"])
def test_a_machine_that_is_none_is_refused_in_one_sentence(name):
    with pytest.raises(UserError, match="--topology=") as refused:
        _ = read_topology(name).devices
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--step=foo"], "--step=foo is none of sft, update"),
        (["--step=update"], "--step=update needs a config of the other stage"),
        (["--topology=a9:8"], "--topology=a9:8 names no known chip"),
        (["--topology=a100:2x2x2"], "GPUs are told as NODESxGPUS"),
        (
            ["--topology=tpu7x:2x2x1"],
            "config.mesh has 4 devices, tpu7x:2x2x1 has 8: write --config.mesh.fsdp=8",
        ),
        (["--config.remat=some"], "config.remat is 'some'"),
        (["--config.kernel=flash"], "config.kernel is 'flash'"),
        (
            ["--config.lora.rank=2", "--config.lora.targets=('heads',)"],
            "names 'heads', which is no projection",
        ),
        (["--config.sharding.embed=node"], "config.sharding.embed names node"),
        (["--config.model_name_or_path=none"], "the config names the model 'none', which is no folder"),
        (["--sweep=remat=names/some"], "config.remat is 'some'"),  # of the second combination too
        (["--sweep=lora.rank=0/x"], "lora.rank=x is no int"),
        (["--sweep=full_text_loss=maybe"], "full_text_loss=maybe is no bool"),
        (["--sweep=rank=0"], "--sweep names rank, which is no field"),
        (["--step=sft,foo"], "--step=foo is none of sft, update"),
        (["--search=row_length", "--sweep=remat=names/full"], "--search looks for one value of one step"),
        (["--search=remat"], "--search=remat is none of row_length"),
    ],
)
def test_what_is_wrong_is_said_before_a_compiler_is_asked_for(monkeypatch, capfd, video_model, flags, says):
    def asked(*_, **__):
        raise AssertionError("a compiler was asked for")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", asked)
    monkeypatch.setattr("jax.config.update", lambda *_: None)  # which is for the process of the command
    for name in ("JAX_PLATFORMS", "XLA_FLAGS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    known = ["--topology=a100:4", "--config=sft_article", "--config.mesh.fsdp=4"]
    model = f"--config.model_name_or_path={video_model}"
    done = run_command(capfd, "plan", *known, model, *flags)
    assert done.code == 2 and "Traceback" not in done.err, done.err
    assert says in done.err.splitlines()[-1], done.err  # what devices do not divide may be said before
