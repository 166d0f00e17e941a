"""A plan as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.planning.compiled import Plan


def show(plan: Plan) -> str:
    """Returns a plan as text."""
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1) or "one device"
    lines = [f"{plan.topology}, {mesh}; compiled in {plan.compile_s:.0f} s"]
    if not plan.memory.get("arguments_gib"):
        return "\n".join([*lines, f"does not fit: {plan.why}", advice(plan)])
    m = plan.memory
    lines += [
        f"memory of a chip   {m['peak_gib']:8.1f} of {m['chip_gib']:.1f} GiB ({m['share']:.0%})"
        f" = {m['arguments_gib']:.1f} arguments + {m['temporaries_gib']:.1f} temporaries"
        f" + {m['outputs_gib']:.1f} outputs + {m['beside_gib']:.1f} beside",
        f"  by arithmetic    {_listed(_unit(plan.analytic, '_gib'))} GiB",
        f"operations         {plan.flops / 1e12:8.0f} TFLOP on all chips",
        f"memory traffic     {plan.hbm_gb:8.0f} GB a chip (an upper bound: fused reads count)",
        f"on the wire        {sum(plan.collectives_gb.values()):8.1f} GB a chip: "
        + _listed(plan.collectives_gb),
        f"  along            {_listed(plan.axes_gb)}",
        f"  by arithmetic    {_listed(_unit(plan.analytic, '_gb'))} GB",
        "roofline           " + ", ".join(f"{name} {1e3 * s:.0f} ms" for name, s in plan.roofline_s.items()),
        f"projected MFU      {plan.mfu['sum']:.2f} (sum of the terms), {plan.mfu['max']:.2f} (largest alone)",
        "largest buffers",
        *[f"  {b.gib:7.2f} GiB  {b.shape}  {b.source}" for b in plan.largest_buffers],
        "largest transfers",
        *[
            f"  {c.wire_bytes / 1e9:7.2f} GB   {c.kind} {c.shape} x {c.times:.0f} along "
            f"{'+'.join(c.axes)}  {c.source}"
            for c in plan.largest_collectives
        ],
        advice(plan),
    ]
    return "\n".join(lines)


def line_of(kind: str, changes: Mapping[str, str], plan: Plan) -> str:
    """Returns the plan of a step as a line of a table."""
    what = " ".join([kind, *(f"{name}={value}" for name, value in changes.items())])
    if not plan.memory.get("arguments_gib"):
        return f"{what:60} does not fit ({plan.compile_s:.0f} s): {plan.why}"
    return (
        f"{what:60} {plan.memory['peak_gib']:6.1f} of {plan.memory['chip_gib']:.1f} GiB "
        f"{'fits' if plan.fits else 'TOO LARGE':9} {plan.hbm_gb:8.0f} GB memory "
        f"{sum(plan.collectives_gb.values()):7.1f} GB wire  MFU {plan.mfu['sum']:.2f}-{plan.mfu['max']:.2f} "
        f"({plan.compile_s:.0f} s)"
    )


def advice(plan: Plan) -> str:
    """Returns a sentence that says what limits the step, and which setting would help."""
    if not plan.fits:
        return (
            "It does not fit. Less memory: config.remat=full, shorter rows (config.row_length), fewer rows a "
            "device, more devices on fsdp, or a row over several devices (config.mesh.context)."
        )
    limit = max(plan.roofline_s, key=plan.roofline_s.__getitem__)
    says = {
        "products": "The products limit it, as they should.",
        "memory": "Memory traffic limits it: a flash kernel (config.kernel) writes no scores, and "
        "config.remat=names computes less twice; for TPUs see also docs/pods.md, note (4).",
        "link": "The links of a node or slice limit it: more rows a device for each gather of the weights.",
        "network": "The network limits it: put fsdp inside a node and data between the nodes.",
    }
    return says[limit]


def _unit(figures: Mapping[str, float], unit: str) -> dict[str, float]:
    """Returns the figures of a unit, their names as words."""
    return {
        name.removesuffix(unit).replace("_", " "): value
        for name, value in figures.items()
        if name.endswith(unit)
    }


def _listed(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in figures.items()) or "nothing"
