"""`python -m experiments.sft`: supervised fine-tuning, from a Hugging Face folder to a Hugging Face folder.

`WORKDIR/model` is the result. What a run is made of: `experiments.training.build_sft`.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from configs.checks import check_sft
from experiments.cli import shell
from experiments.cli.distributed import define_distributed, join_hosts
from experiments.training.build_sft import build_sft
from experiments.training.loop import train
from experiments.training.workdir import Workdir
from o3jax.sharding import use_mesh

_CONFIG = shell.define_config("configs/sft_tiny.py")
_DISTRIBUTED = define_distributed()
_WORKDIR = shell.takes_store(
    flags.DEFINE_string("workdir", None, "Folder of this run; the same folder resumes.", required=True)
)


def main(argv: Sequence[str]) -> None:
    del argv
    join_hosts(_DISTRIBUTED.value)
    shell.use_compilation_cache()
    config = _CONFIG.value
    check_sft(config)
    with Workdir(_WORKDIR.value, config) as workdir:
        run = build_sft(config, workdir)
        with use_mesh(run.mesh, run.rules):
            state = train(run.state, run.step, run, workdir, run.length, held_out=run.held_out)
        run.export(state, workdir, config)


if __name__ == "__main__":
    shell.run(main)
