"""The longest rows or the most rows that fit a machine, by few compilations."""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from experiments.planning.compiled import Plan
from o3jax.errors import UserError

# What can be searched for, and in which steps.
FIELDS = {"row_length": 1024, "per_device_train_batch_size": 1, "rollout_slots": 1}
_TRIES = 5
_CLOSE = 0.05  # of what fits


def changes_to(config: ConfigDict, field: str, value: int) -> dict[str, str]:
    """Returns the changes to a config that give a field this value; longer rows have more frames."""
    changes = {field: str(value)}
    if field == "row_length":
        changes["row_frame_pairs"] = str(max(1, round(config.row_frame_pairs * value / config.row_length)))
    return changes


def largest(field: str, config: ConfigDict, plan_of: Callable[[int], Plan]) -> int:
    """Returns the largest value of a field that was found to fit, to 5 % or a step of it; 0 if none did.

    What a program takes is nearly a line over rows and their length: the next try is where the line through
    the last two reaches the chip's memory.

    Args:
        config: has the first value.
        plan_of: value -> plan.

    Raises:
        UserError: if the field is none that memory grows with, or not of this config.
    """
    if field not in FIELDS or field not in config:
        raise UserError(f"--search={field} is none of {', '.join(FIELDS)}, or none of this config")
    step, fits, fails, points = FIELDS[field], 0, None, []
    value = max(config[field] or config.prompts_per_iteration, step)
    for _ in range(_TRIES):
        plan = plan_of(value)
        if plan.fits:
            fits = max(fits, value)
        else:
            fails = min(fails or value, value)
        memory = plan.memory
        if (peak := memory.get("peak_gib")) is not None:  # a compiler that refuses may not tell
            if not points:
                points.append((0, memory.get("arguments_gib", 0.0) + memory.get("beside_gib", 0.0)))
            points.append((value, peak))
            value = _where(points[-2:], 0.98 * memory["chip_gib"])
        else:
            value //= 2
        value = max(value // step * step, step)
        if fails and value >= fails:
            value = (fits + fails) // 2 // step * step
        if value <= fits * (1 + _CLOSE):
            break
    return fits


def _where(points: list[tuple[int, float]], level: float) -> int:
    """Returns where the line through two points reaches a level."""
    (a, low), (b, high) = points
    return int(a + (level - low) * (b - a) / (high - low)) if (high - low) * (b - a) > 0 else b
