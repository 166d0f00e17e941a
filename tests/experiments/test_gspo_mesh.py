"""`experiments.gspo` on several devices: the completions, rewards and steps of one device."""

from __future__ import annotations

import numpy as np
import pytest

from tests.experiments.test_gspo_loop import CONFIG, lines_of, sampled_in
from tests.support.commands import run_command


@pytest.mark.parametrize("vision", [0.0, 1.0], ids=["frozen", "trained"])
def test_four_devices_do_what_one_does(video_model, tmp_path, capfd, vision):
    path = tmp_path / "gspo.py"
    path.write_text(CONFIG.format(model=str(video_model), data="synthetic:1"))
    flags = [f"--config={path}", f"--config.lr_multipliers.vision={vision}", "--config.max_steps=2"]
    flags += ["--config.prompts_per_iteration=3", "--config.minibatches_per_rollout=1"]
    for name, *more in (("one",), ("four", "--config.mesh.data=2", "--config.mesh.fsdp=2")):
        done = run_command(capfd, "gspo", *flags, *more, f"--workdir={tmp_path / name}")
        assert done.code == 0, done.err
    for iteration in range(2):
        one, four = (sampled_in(tmp_path / name, iteration) for name in ("one", "four"))
        assert [[c["completion"] for c in group] for group in one] == [
            [c["completion"] for c in group] for group in four
        ]
    one, four = (lines_of(tmp_path / name) for name in ("one", "four"))
    assert len(one) == len(four) == 2
    for expected, found in zip(one, four, strict=True):
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
