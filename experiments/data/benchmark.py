"""`experiments.data check --benchmark`: what is there of a benchmark of the field."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.table import Table

from data_pipelines.formats.benchmarks import registry
from data_pipelines.formats.benchmarks.media import Media
from experiments.cli import terminal
from o3jax.errors import UserError


def check(name: str, folder: str) -> None:
    """Prints a table of a benchmark's folder: items, videos that are there and missing, what is grouped by.

    Raises:
        UserError: if the benchmark is unknown, or its annotations are missing or wrong.
    """
    if name not in registry.FORMATS:
        raise UserError(f"unknown benchmark '{name}': there is {', '.join(registry.FORMATS)}")
    root = Path(folder)
    items = registry.load(name, root)
    missing = registry.missing_videos(items)
    table = Table("", "", title=f"{folder}: {name}", show_header=False)
    counts = {
        "items": len(items),
        "videos": len({item.video for item in items}),
        "items without their video": len(missing),
        "with options": sum(bool(item.options) for item in items),
        "with intervals": sum(bool(item.intervals) for item in items),
        "with boxes": sum(bool(item.boxes) for item in items),
        "with subtitles": sum(item.subtitles is not None for item in items),
        "ends after the duration": sum(
            item.duration is not None and any(end > item.duration for _, end in item.intervals)
            for item in items
        ),
    }
    for words, count in counts.items():
        table.add_row(words, str(count))
    for tag in sorted({tag for item in items for tag in item.tags}):
        values = Counter(value for item in items if isinstance(value := item.tags.get(tag), str))
        if 1 < len(values) <= min(30, len(items) // 2):
            table.add_row(f"by {tag}", ", ".join(f"{value} {n}" for value, n in sorted(values.items())))
    console = terminal.console(markup=False, highlight=False)
    console.print(table)
    console.print(f"harnesses: {', '.join(registry.FORMATS[name].prompts)}")
    if missing:
        console.print(f"the first that is missing: {missing[0].video}")
        if packed := Media(root).packed:
            console.print(f"not unpacked: {packed[0]} ({len(packed)} such archives); unpack them")
    console.print(f"expected: {registry.FORMATS[name].layout}")
