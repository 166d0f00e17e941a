"""A run's folder that is damaged, or another's: one sentence, and nothing that was answered is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data_pipelines.synthetic.benchmarks.make import make_benchmarks
from tests.support.benchmarks import scripted
from tests.support.commands import run_command


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Where V-STaR's data are, and from the first test on a finished run."""
    place = tmp_path_factory.mktemp("damaged")
    make_benchmarks(place / "data", names=["vstar"])
    return place


def damaged_json(path: Path, change: dict) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def first_line(path: Path, change) -> None:
    lines = path.read_text().splitlines()
    value = json.loads(lines[0])
    change(value)
    path.write_text("\n".join([json.dumps(value), *lines[1:]]) + "\n")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("run.json", lambda path: path.write_text("{}")),
        ("run.json", lambda path: path.write_text("[1]")),
        ("run.json", lambda path: path.write_text('{"benchmark": ')),
        ("run.json", lambda path: damaged_json(path, {"benchmark": "egvqa"})),
        ("run.json", lambda path: damaged_json(path, {"benchmark": ["vstar"]})),
        ("run.json", lambda path: damaged_json(path, {"benchmark": "tvgbench"})),
        ("run.json", lambda path: damaged_json(path, {"model": "o3-tiny"})),
        ("run.json", lambda path: damaged_json(path, {"frames": None})),
        ("items.jsonl", Path.unlink),
        ("items.jsonl", lambda path: path.write_text("")),
        ("items.jsonl", lambda path: path.write_text(path.read_text()[:-40])),
        ("items.jsonl", lambda path: first_line(path, lambda row: row.pop("id"))),
        ("items.jsonl", lambda path: first_line(path, lambda row: row.update(intervals=3))),
        ("items.jsonl", lambda path: first_line(path, lambda row: row.update(tags={}))),
        ("records.jsonl", lambda path: first_line(path, lambda row: row["records"][0].pop("texts"))),
        ("records.jsonl", lambda path: first_line(path, lambda row: row["records"][0]["texts"].pop("vqa"))),
        ("records.jsonl", lambda path: first_line(path, lambda row: row["records"][0].update(texts=3))),
        ("records.jsonl", lambda path: first_line(path, lambda row: row["records"][0].update(video="x"))),
        ("records.jsonl", lambda path: first_line(path, lambda row: row.update(records=[3]))),
        ("records.jsonl", lambda path: first_line(path, lambda row: row["records"][0].pop("id"))),
        ("records.jsonl", lambda path: path.write_bytes(b"\x00\xff" * 99)),
    ],
)
def test_a_damaged_run(run, monkeypatch, tmp_path, capfd, name, damage):
    scripted(monkeypatch)
    whole = run / "run"
    if not whole.exists():
        given = ("--benchmark=vstar", f"--data_root={run / 'data' / 'vstar'}", f"--workdir={whole}")
        assert run_command(capfd, "evaluate", *given).code == 0
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    damage(folder / "vstar" / name)
    kept = {path.name: path.read_bytes() for path in (folder / "vstar").glob("*.jsonl")}
    done = run_command(capfd, "evaluate", f"--rescore={folder}", "--parser=official")
    assert done.code in (0, 2), done.err
    if done.code:
        assert str(folder / "vstar") in done.err and done.err.strip().count("\n") == 0 and len(done.err) < 500
    else:
        assert name == "records.jsonl"
    assert all((folder / "vstar" / name).read_bytes() == data for name, data in kept.items())
