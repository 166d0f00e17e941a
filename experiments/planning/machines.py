"""Machines that a program can be compiled for without having one: `a100:4x8`, `v5p:4x4x4`.

The compilers are those of the real machines: libtpu, and the CUDA plugin of jax. Neither needs its device.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re

import jax
from jax.experimental import topologies

from o3jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip can do, from its maker's data sheet.

    `link` is what one collective can use between chips of a node (NVLink, one direction) or of a slice (ICI,
    the two directions of one axis of the torus); `network` is between nodes or slices. Bytes per second.
    """

    kind: str  # the plugin that compiles: tpu, cuda
    memory_gib: float  # that a program can have
    flops: float  # of bfloat16 products, per second
    memory_rate: float  # bytes per second
    link: float
    network: float
    description: str = ""  # of a GPU, for its compiler
    cores: int = 1  # of a chip, each of them a device


def _gpu(
    major: int, cores: int, fpus: int, clock: float, rate: float, memory: int, name: str, l2: int
) -> str:
    """Returns a GPU as its compiler is told of it (stream_executor.GpuTargetConfigProto)."""
    shared = {8: (167936, 166912), 9: (233472, 232448)}[major]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {shared[0]} shared_memory_per_block_optin: {shared[1]} threads_per_core_limit: 2048
  core_count: {cores} fpus_per_core: {fpus} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {rate:.0f} l2_cache_size: {l2} clock_rate_ghz: {clock}
  device_memory_size: {memory} cuda_compute_capability {{ major: {major} }} registers_per_core_limit: 65536
  registers_per_block_limit: 65536 thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  runtime_version: "12.8.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""


CHIPS = {
    "a100": Chip(
        *("cuda", 79.25, 312e12, 2.04e12, 300e9, 25e9),
        _gpu(8, 108, 64, 1.41, 2.04e12, 85100068864, "NVIDIA A100-SXM4-80GB", l2=41943040),
    ),
    "h100": Chip(
        *("cuda", 79.1, 989e12, 3.35e12, 450e9, 50e9),
        _gpu(9, 132, 128, 1.98, 3.35e12, 84942979072, "NVIDIA H100 80GB HBM3", l2=52428800),
    ),
    "v5e": Chip("tpu", 15.75, 197e12, 0.82e12, 90e9, 6.25e9),
    "v5p": Chip("tpu", 95.0, 459e12, 2.77e12, 180e9, 6.25e9),
    "v6e": Chip("tpu", 31.25, 918e12, 1.64e12, 180e9, 12.5e9),
    "tpu7x": Chip("tpu", 94.75, 1154e12, 3.69e12, 200e9, 12.5e9, cores=2),  # figures of a core
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Chips of one kind, as a topology names them; none is there."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Devices that a program is compiled for."""
        return math.prod(self.shape) * self.chip.cores

    @property
    def per_node(self) -> int:
        """Devices that the fast links connect."""
        return self.shape[-1] if self.chip.kind == "cuda" else self.count

    @property
    def platform(self) -> str:
        return self.chip.kind

    @functools.cached_property
    def devices(self) -> tuple[jax.Device, ...]:
        """To compile for; they run nothing.

        Raises:
            UserError: if the compiler is not installed, or does not know the shape.
        """
        try:
            if self.platform == "cuda":
                text = "x".join(str(size) for size in (1, 1, *self.shape)[-3:])
                found = topologies.get_topology_desc(
                    "", "cuda", topology=text, target_config=self.chip.description
                )
                return tuple(found.devices)
            # Nobody is asked for the machine that this runs on.
            os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
            os.environ |= {"TPU_ACCELERATOR_TYPE": "v5p-8", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
            return tuple(topologies.get_topology_desc(self.name, "tpu").devices)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise UserError(_why(self.name, self.platform, str(error))) from error


def read_topology(topology: str) -> Machine:
    """Returns the machine of a topology: `CHIP:NODESxGPUS`, `CHIP:GPUS`, or `CHIP:XxYxZ` of a TPU slice.

    Raises:
        UserError: if no chip has this name, or this is no shape.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS:
        raise UserError(f"--topology={topology} names no known chip: choose one of {', '.join(CHIPS)}")
    gpus = CHIPS[name].kind == "cuda"
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,3}){0,2}", shape):
        example = "a100:8 or a100:4x8" if gpus else f"{name}:4x4"
        raise UserError(f"--topology={topology} has no shape: write for example {example}")
    sizes = tuple(int(size) for size in shape.split("x"))
    if gpus and len(sizes) > 2:
        raise UserError(f"--topology={topology}: GPUs are told as NODESxGPUS, for example {name}:4x8")
    return Machine(topology, CHIPS[name], sizes)


def _why(topology: str, kind: str, error: str) -> str:
    gpu = " ".join(f"jax-cuda12-{part}=={jax.__version__}" for part in ("plugin", "pjrt"))
    package = {"tpu": "libtpu", "cuda": gpu}[kind]
    if "not installed" in error or "not implemented" in error:  # for want of its plugin
        return (
            f"--topology={topology} needs a compiler that is not installed: pip install --no-deps {package}"
        )
    return f"--topology={topology} is no shape that the compiler knows ({error.splitlines()[0][:120]})"
