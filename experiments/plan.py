"""`python -m experiments.plan`: compiles a training step for a machine that you do not have.

The step is the one that the command would run with this config; the compiler is the machine's own. Printed
are the memory of a chip, what limits the step, and which setting would help. Nothing is computed.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

from absl import flags

from experiments.cli import shell
from experiments.cli.outputs import check_outputs
from o3jax import files
from o3jax.errors import UserError

_CONFIG = shell.define_config("configs/sft_article.py")
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "The machine: a100:8, h100:4x8, v5e:4x4, v5p:4x4x4, v6e:16x16, tpu7x:2x2x1.",
    required=True,
)
_STEPS = flags.DEFINE_list(
    "step", [], "Of sft, update, prefill, decode, rollout one or several; by default what the config trains."
)
_SWEEP = flags.DEFINE_list(
    "sweep",
    [],
    "Fields to vary, such as row_length=8192/16384,remat=names/full: a line for each combination.",
)
_SEARCH = flags.DEFINE_string(
    "search",
    None,
    "A field whose largest value that fits is looked for: row_length (with frames for its length), "
    "per_device_train_batch_size or rollout_slots.",
)
_OUT = flags.DEFINE_string("out", None, "A JSON file of all figures.")


def main(argv: Sequence[str]) -> None:
    del argv
    # Nothing runs: this machine's devices are left alone, and no kernel is tried out to find the fastest.
    os.environ["JAX_PLATFORMS"] = "cpu"
    quiet = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quiet}"
    import jax

    from experiments.planning.compiled import Plan
    from experiments.planning.machines import read_topology
    from experiments.planning.report import line_of, show
    from experiments.planning.search import changes_to, largest
    from experiments.planning.sweep import plan_of, step_of

    # A TPU's compiler then takes a quarter of the time; the memory it finds is the same, or a little more.
    for effort in ("jax_exec_time_optimization_effort", "jax_memory_fitting_effort"):
        jax.config.update(effort, -1.0)
    check_outputs({"--out": _OUT.value})
    machine = read_topology(_TOPOLOGY.value)
    kinds = _STEPS.value or ["sft" if "data_path" in _CONFIG.value else "update"]
    config, field, records = _CONFIG.value, _SEARCH.value, []
    combinations = list(itertools.product(kinds, _combinations(_SWEEP.value)))
    if len(combinations) > 1 and field:
        raise UserError("--search looks for one value of one step: leave out --sweep, and other steps")
    several = bool(len(combinations) > 1 or field)
    # What is wrong is said before a compiler is asked for, of all combinations before the first is compiled.
    for kind, changes in combinations:
        step_of(config, changes, kind, machine)

    def planned(kind: str, changes: dict[str, str]) -> Plan:
        plan = plan_of(config, changes, kind, machine)
        print(line_of(kind, changes, plan) if several else show(plan), flush=True)
        records.append({"step": kind, "changes": changes, **plan.to_json()})
        if _OUT.value:
            files.write_json(_OUT.value, records if several else records[0], indent=1)
        return plan

    if field:
        found = largest(field, config, lambda value: planned(kinds[0], changes_to(config, field, value)))
        print(f"the largest {field} that fits: {found}" if found else f"no {field} was found that fits")
        return
    for combination in combinations:
        planned(*combination)


def _combinations(sweep: Sequence[str]) -> list[dict[str, str]]:
    """Returns the changes of each plan.

    Raises:
        UserError: if a part is not FIELD=VALUE/VALUE.
    """
    fields = []
    for part in sweep:
        name, equals, values = part.partition("=")
        if not (name and equals and values):
            raise UserError(f"--sweep={part} is not FIELD=VALUE/VALUE: write for example remat=names/full")
        fields.append([(name, value) for value in values.split("/")])
    return [dict(some) for some in itertools.product(*fields)]


if __name__ == "__main__":
    shell.run(main)
