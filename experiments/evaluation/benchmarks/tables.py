"""What people read of results: one benchmark with its floors and published figures, and all in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from experiments.evaluation.benchmarks.analysis import KINDS
from experiments.evaluation.benchmarks.frames import in_words
from experiments.evaluation.benchmarks.suite import SUITE

_COUNTS = ("counted", "groups", "N")
Result = Mapping[str, Any]


def _table(title: str, *headers: str) -> Table:
    """Returns a table whose cells are folded on a narrow screen, never cut off."""
    return Table(*(Column(header, overflow="fold") for header in headers), title=title)


def print_result(result: Result, console: Console) -> None:
    """Prints the tables of one benchmark: metrics beside floors and anchors, groups, errors, notes."""
    name, floors, anchors = result["benchmark"], result["floors"], result["anchors"]
    title = f"{name}: {result['items']} items, {result['model']['name']}, prompts {result['harness']}, "
    title += f"parser {result['parser']}, frames {in_words(result['frames'])}; in percent"
    headline = [metric for metric in SUITE[name].headline if metric in result["metrics"]]
    table = _table(title, "", *headline)
    table.add_row("this model", *(_shown(metric, result["metrics"][metric]) for metric in headline))
    table.add_section()
    for floor, metrics in floors.items():
        table.add_row(floor, *(_shown(metric, metrics[metric]) for metric in headline))
    if "text only" not in floors:
        table.add_row("text only", *("not run" for _ in headline))
    table.add_section()
    for anchor, values in anchors.items():
        table.add_row(f"{anchor}*", *(f"{values[m]:.1f}" if m in values else "" for m in headline))
    console.print(table)
    if anchors:
        console.print("*published, with their own frames and prompts")
    groups = result["groups"].items()
    if any(len(group) > 1 for _, group in groups):
        table = _table(f"{name} by group", "", "N", *headline)
        for tag, group in groups:
            for value, metrics in group.items():
                row = (_shown(metric, metrics[metric]) for metric in headline)
                table.add_row(f"{tag}: {value}", str(metrics["N"]), *row)
            table.add_section()
        console.print(table)
    table = _table(f"{name}: what goes wrong", "share of the answers with", "percent")
    for kind, words in KINDS.items():
        table.add_row(words, _shown(kind, result["errors"][kind]))
    console.print(table)
    for note in result["notes"]:
        console.print(f"note: {note}")
    if judge := result.get("judge"):
        console.print(
            f"judge: {judge['name']}, {judge['asked']} answers, {judge['unreadable']} replies unreadable"
        )
    for item, error in list(result["failed"].items())[:10]:
        console.print(f"failed: {item}: {error}")
    if len(result["failed"]) > 10:
        console.print(f"failed: {len(result['failed'])} in all")


def print_overview(results: Sequence[Result], console: Console) -> None:
    """Prints one table of several benchmarks: the first metrics of each beside its floor and the best
    anchor."""
    headers = ("benchmark", "items", "metric", "model", "random", "best floor", "published*")
    table = _table("in percent", *headers)
    for result in results:
        name = result["benchmark"]
        for metric in SUITE[name].headline[:4]:
            if metric not in result["metrics"]:
                continue
            known = [(f[metric], floor) for floor, f in result["floors"].items() if f.get(metric) is not None]
            best = max(known, default=None)
            anchors = [(values[metric], one) for one, values in result["anchors"].items() if metric in values]
            published = max(anchors, default=None)
            table.add_row(
                name,
                str(result["items"]),
                metric,
                _shown(metric, result["metrics"][metric]),
                _shown(metric, result["floors"]["random"].get(metric)),
                f"{_shown(metric, best[0])} ({best[1]})" if best else "-",
                f"{published[0]:.1f} ({published[1]})" if published else "-",
            )
        table.add_section()
    console.print(table)


def _shown(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if metric in _COUNTS else f"{100 * value:.1f}"
