"""`python -m experiments.gspo`: group sequence policy optimisation of a fine-tuned model.

An iteration samples a group of completions for each of its prompts, rewards them and takes
`minibatches_per_rollout` optimizer steps on them; a step of the log is an optimizer step. `WORKDIR/model`
is the result, a Hugging Face folder; WORKDIR/samples has what was sampled, as JSON lines and as a page.
What an iteration does: `experiments.training.iteration`.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from configs.checks import check_gspo
from experiments.cli import shell
from experiments.cli.distributed import define_distributed, join_hosts
from experiments.training.build_gspo import build_gspo
from experiments.training.iteration import train_gspo
from experiments.training.workdir import Workdir

_CONFIG = shell.define_config("configs/gspo_tiny.py")
_DISTRIBUTED = define_distributed()
_WORKDIR = shell.takes_store(
    flags.DEFINE_string("workdir", None, "Folder of this run; the same folder resumes.", required=True)
)


def main(argv: Sequence[str]) -> None:
    del argv
    join_hosts(_DISTRIBUTED.value)
    shell.use_compilation_cache()
    config = _CONFIG.value
    check_gspo(config)
    with Workdir(_WORKDIR.value, config) as workdir:
        run = build_gspo(config, workdir)
        state = train_gspo(run)
        run.export(state, workdir, config)


if __name__ == "__main__":
    shell.run(main)
