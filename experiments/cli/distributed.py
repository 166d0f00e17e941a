"""Several processes that train together: they find each other where the machine says how."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from absl import flags

from o3jax.errors import UserError

_BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def define_distributed() -> flags.FlagHolder[str]:
    """Returns the flag --distributed."""
    return flags.DEFINE_enum(
        "distributed",
        "auto",
        ["auto", "on", "off"],
        "Whether several processes train together. auto: on TPU pods, under SLURM or Open MPI, in a job of "
        f"GKE, and where {_BY_HAND[0]} is set; on: must; off: this process alone.",
    )


def join_hosts(mode: str) -> None:
    """Makes this process one of several that train together; nothing of JAX may have been used before.

    By hand: JAX_COORDINATOR_ADDRESS is host:port of the first, JAX_NUM_PROCESSES and JAX_PROCESS_ID tell how
    many there are and which one this is.

    Args:
        mode: of --distributed.

    Raises:
        UserError: if the processes do not find each other.
    """
    where = found_where() if mode != "off" else ""
    if not where:
        if mode == "on":
            raise UserError(
                "--distributed=on, but nothing here says which processes train together: start them with "
                f"srun, on a TPU pod, as an indexed job of GKE, or set {', '.join(_BY_HAND)}"
            )
        return
    import jax

    address, *numbers = (os.environ.get(name, "") for name in _BY_HAND)
    if address and not all(number.isdigit() for number in numbers):
        raise UserError(f"{_BY_HAND[0]} is set: set {_BY_HAND[1]} and {_BY_HAND[2]} too")
    try:
        if address:
            jax.distributed.initialize(address, *map(int, numbers))
        else:
            jax.distributed.initialize()
    except Exception as error:  # of the library, the network, the metadata server
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"the processes of {where} do not find each other ({why}): set {', '.join(_BY_HAND)} by hand, or "
            "--distributed=off to train on this host alone"
        ) from error


def found_where() -> str:
    """Returns what started this process as one of several, "" where nothing did."""
    env = os.environ

    def several(name: str) -> bool:
        return env.get(name, "").isdigit() and int(env[name]) > 1

    platforms = env.get("JAX_PLATFORMS", "")
    if env.get("JAX_COORDINATOR_ADDRESS"):
        return "JAX_COORDINATOR_ADDRESS"
    if several("SLURM_STEP_NUM_TASKS") or (several("SLURM_NTASKS") and "SLURM_STEP_NODELIST" in env):
        return "a SLURM job"
    if several("OMPI_COMM_WORLD_SIZE"):
        return "mpirun"
    if not platforms or "tpu" in platforms:
        if "," in env.get("TPU_WORKER_HOSTNAMES", "") or several("MEGASCALE_NUM_SLICES"):
            return "a TPU pod"
        chips = Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()
        if chips and importlib.util.find_spec("libtpu") and "TPU_WORKER_HOSTNAMES" not in env:
            return "a Cloud TPU VM"
    if (
        "KUBERNETES_SERVICE_HOST" in env
        and "JOB_COMPLETION_INDEX" in env
        and importlib.util.find_spec("kubernetes")
    ):
        return "a Kubernetes job"
    return ""
