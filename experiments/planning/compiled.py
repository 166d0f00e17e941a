"""A step and a machine -> what the real compiler makes of it: memory, transfers, traffic, a roofline."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import jax

from experiments.planning.flops import flops
from experiments.planning.machines import GIB, Machine
from experiments.planning.program import Buffer, Collective, by_key, read_program
from experiments.planning.steps import Step


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step takes of each chip of a machine. Where it does not fit, the compiler may say no more."""

    topology: str
    mesh: dict[str, int]
    fits: bool
    why: str  # it does not, in the compiler's words
    memory: dict[str, float]  # GiB: arguments, temporaries, peak, chip
    flops: float  # of all chips: what the model needs, without what is computed twice
    hbm_gb: float
    collectives_gb: dict[str, float]  # on the wire, by kind
    axes_gb: dict[str, float]  # and by the mesh axes that they go along
    links_gb: dict[str, float]  # and by what carries them: link, network
    roofline_s: dict[str, float]  # products, memory, link, network
    mfu: dict[str, float]  # projected: the products against the largest term, and against the sum of all
    compile_s: float
    largest_buffers: list[Buffer]
    largest_collectives: list[Collective]
    unknown_loops: int
    analytic: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Returns what `--out` writes."""
        return dataclasses.asdict(self)


def compile_step(step: Step, machine: Machine) -> Plan:
    """Returns what a step takes; a program that does not fit is a result too."""
    sizes = dict(step.placement.mesh.shape)
    with step.placement.use():
        needed = flops(step.plain, *step.arguments, assumed=step.loops)
        start = time.perf_counter()
        lowered = step.run.trace(*step.arguments, **step.options).lower(
            lowering_platforms=(machine.platform,)
        )
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "memory" not in str(error).lower():
                raise
            return _refused(machine, sizes, needed, step, str(error), time.perf_counter() - start)
        spent = time.perf_counter() - start
    return _plan(step, machine, sizes, needed, compiled, spent)


def _plan(
    step: Step, machine: Machine, mesh: dict[str, int], needed: float, compiled: Any, spent: float
) -> Plan:
    chip, count = machine.chip, machine.count
    program = read_program(compiled.as_text(), mesh, assumed=step.loops)
    memory = _memory(compiled.memory_analysis(), step.beside_gib, chip.memory_gib)
    links = {"link": 0.0, "network": 0.0}
    for one in program.collectives:
        links["network" if one.chips_apart > machine.per_node else "link"] += one.wire_bytes / 1e9
    roofline = {
        "products": needed / count / chip.flops,
        "memory": program.traffic / chip.memory_rate,
        "link": links["link"] * 1e9 / chip.link,
        "network": links["network"] * 1e9 / chip.network,
    }
    products = roofline["products"]
    return Plan(
        topology=machine.name,
        mesh=mesh,
        fits=memory["peak_gib"] <= chip.memory_gib,
        why="" if memory["peak_gib"] <= chip.memory_gib else "its peak is above the chip's memory",
        memory=memory,
        flops=needed,
        hbm_gb=program.traffic / 1e9,
        collectives_gb=by_key(program.collectives, "kind"),
        axes_gb=by_key(program.collectives, "axes"),
        links_gb=links,
        roofline_s=roofline,
        mfu={"max": products / max(roofline.values()), "sum": products / sum(roofline.values())},
        compile_s=spent,
        largest_buffers=program.buffers[:5],
        largest_collectives=program.collectives[:5],
        unknown_loops=program.unknown_loops,
        analytic=dict(step.analytic),
    )


def _memory(found: Any, beside: float, chip_gib: float) -> dict[str, float]:
    """Returns GiB of a chip; outputs that take the place of arguments count once."""
    arguments, temporaries = found.argument_size_in_bytes / GIB, found.temp_size_in_bytes / GIB
    outputs = (found.output_size_in_bytes - found.alias_size_in_bytes) / GIB
    peak = arguments + temporaries + outputs + beside
    return {
        "arguments_gib": arguments,
        "temporaries_gib": temporaries,
        "outputs_gib": outputs,
        "beside_gib": beside,
        "peak_gib": peak,
        "chip_gib": chip_gib,
        "share": peak / chip_gib,
    }


def _refused(
    machine: Machine, mesh: dict[str, int], needed: float, step: Step, error: str, spent: float
) -> Plan:
    """Returns the plan of a step for which the compiler found no room; it tells how much would be needed."""
    told = re.search(r"[Uu]sed ([\d.]+)([GM])|([\d.]+)([GM])i?B? exceeds|total.*?([\d.]+)([GM])", error)
    parts = [part for part in told.groups() if part] if told else []
    peak = float(parts[0]) / (1024 if parts[1] == "M" else 1) if parts else float("inf")
    chip = machine.chip.memory_gib
    sentence = next((line for line in error.splitlines() if "xceed" in line or "xhaust" in line), error)
    memory = {"peak_gib": peak if peak != float("inf") else None, "chip_gib": chip}
    products = needed / machine.count / machine.chip.flops
    return Plan(
        topology=machine.name,
        mesh=mesh,
        fits=False,
        why=sentence.strip()[:300],
        memory=memory,
        flops=needed,
        hbm_gb=0.0,
        collectives_gb={},
        axes_gb={},
        links_gb={},
        roofline_s={"products": products},
        mfu={},
        compile_s=spent,
        largest_buffers=[],
        largest_collectives=[],
        unknown_loops=0,
        analytic=dict(step.analytic),
    )
