"""The command of hostile inputs notices every way to fail, goes on where it was, tells the counts."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from experiments.hostility.compare_videos import Compared
from experiments.hostility.outcome import FAULTS, Outcome
from experiments.hostility.parts import PARTS
from experiments.hostility.pool import Limits, try_all
from experiments.hostility.table import comparison, line_of, read_lines, table
from experiments.hostility.worker import Tried
from tests.support.misbehaving import WAYS, misbehaving
from tests.support.numbered import write_video
from tests.support.paths import ROOT


def command(*flags):
    return subprocess.run(
        [sys.executable, "-m", "experiments.hostile", *map(str, flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("processes", [1, 3])
def test_every_way_to_fail_is_noticed_and_the_cases_after_it_are_tried(tmp_path, processes):
    log = tmp_path / "log"
    limits = Limits(2.0, 0.3)
    found = list(
        try_all(misbehaving, tmp_path / "cases", limits, log, processes=processes, chosen=lambda names: names)
    )
    said = {tried.name.partition(" ")[2]: tried for tried in found}
    assert [said[name].outcome.status for name in ("used", "refused")] == ["used", "refused"]
    faults = {name: tried.outcome.fault for name, tried in said.items() if tried.outcome.status == "failed"}
    left = [name for name in faults if name.startswith("left after")]
    assert len(left) == 1
    assert faults == {
        "traceback": "traceback",
        "crash": "traceback",
        "large": "memory",
        "too_large": "memory",
        "slow": "time",
        left[0]: "orphans",
    }
    assert len(found) == len(WAYS) + 1
    assert 2 <= said["slow"].seconds < 20


def test_what_is_larger_than_wanted_is_named_with_its_memory(tmp_path):
    found = try_all(
        misbehaving,
        tmp_path / "cases",
        Limits(20.0, 1.0),
        tmp_path / "log",
        processes=1,
        chosen=lambda names: [name for name in names if "large" in name],
    )
    large, too_large = found
    assert large.outcome.status == "used" and 0.39 < large.gib < 0.6
    assert too_large.outcome.fault == "memory"


def test_the_table_counts_each_kind_once(tmp_path):
    outcomes = [Outcome("used"), Outcome("refused", "write 1"), Outcome("skipped", "no root")]
    outcomes += [Outcome("failed", "x", fault) for fault in FAULTS]
    cases = [Tried(str(number), outcome, 1.0, 0.5) for number, outcome in enumerate(outcomes)]
    path = tmp_path / "part.jsonl"
    assert read_lines(path) == {}
    path.write_text("".join(map(line_of, [Tried("0", Outcome("failed", "x", "time"), 1.0, 0.5), *cases])))
    with path.open("a") as file:
        file.write('{"name": "cut')
    assert read_lines(path) == {case.name: case for case in cases}
    last = table({"records": cases}).splitlines()[-1]
    assert last == "| records | 7 | 1 | 1 | 1 | 1 | 1 | 1 | 1 |"


def test_the_command_goes_on_and_tells_the_counts(tmp_path):
    flags = ("--out", tmp_path, "--only=texts", "--processes=1")
    assert command(*flags, "--cases=5").returncode == 0
    first = (tmp_path / "texts.jsonl").read_text()
    run = command(*flags, "--cases=8")
    assert run.returncode == 0, run.stderr
    lines = (tmp_path / "texts.jsonl").read_text()
    assert lines.startswith(first)
    names = [json.loads(line)["name"] for line in lines.splitlines()]
    assert len(names) == len(set(names)) == 8
    rows = (tmp_path / "table.md").read_text().splitlines()[2:]
    assert Counter(row.split("|")[2].strip() for row in rows) == {"8": 1}
    assert rows[0] in run.stdout


PARTS_OF_COMMANDS = [("flags", 150), ("workdirs", 80), ("disks", 20), ("kills", 40), ("hosts", 50)]


@pytest.mark.parametrize(("part", "least"), PARTS_OF_COMMANDS)
def test_cases_of_commands_have_names_of_their_own(tmp_path, part, least):
    opened = pickle.loads(pickle.dumps(PARTS[part].opened))  # as a worker gets it
    with opened(tmp_path) as attempts:
        assert len({name for name, _ in attempts}) == len(attempts) >= least


def test_a_command_with_a_wrong_flag_is_refused(tmp_path):
    with PARTS["flags"].opened(tmp_path) as attempts:
        attempt = dict(attempts)["data make --out=WORK --count=-5"]
    assert attempt().status == "refused"


def test_an_unknown_part_is_refused(tmp_path):
    run = command("--out", tmp_path, "--only=texts,nothing")
    assert run.returncode == 2 and "--only=nothing names no part; the parts are " in run.stderr


def test_a_file_that_is_read_otherwise_without_a_word_is_seen():
    def line(**found):
        return comparison(Compared(**{"path": Path("a/b.mp4"), "apart": (), "said": ""} | found), Path("a"))

    assert line(presented=3, counted=3, apart=(0.0, 1.26)) == (
        "same  b.mp4  frames 3 (ffprobe 3)  pictures differ by 0.0/1.3"
    )
    assert line(presented=3, counted=3, apart=(0.0, 40.0)).startswith("OTHER ")
    assert line(presented=2, counted=3).startswith("OTHER ")
    assert line(presented=2, counted=3, said="cut off").startswith("told ")
    assert line(presented=None, counted=3, said="no video").startswith("told  b.mp4  frames refused ")


@pytest.mark.skipif(not all(map(shutil.which, ("ffprobe", "ffmpeg"))), reason="ffmpeg is not installed")
def test_videos_of_a_user_are_compared_with_ffmpeg(tmp_path):
    (tmp_path / "mine").mkdir()
    write_video(tmp_path / "mine" / "a.mp4", range(30), Fraction(1, 25))
    (tmp_path / "mine" / "text.mp4").write_text("no video")
    Image.new("RGB", (32, 32)).save(tmp_path / "mine" / "photo.png")
    run = command("--out", tmp_path / "out", "--videos", tmp_path / "mine")
    assert run.returncode == 0, run.stderr
    first, photo, second, last = run.stdout.splitlines()
    assert photo.startswith("told  photo.png  frames refused (ffprobe 1)  pictures differ by -  ")
    assert first.startswith("same  a.mp4  frames 30 (ffprobe 30)  pictures differ by ")
    assert len(first.split()[9].split("/")) == 4
    assert second.startswith("same  text.mp4  frames refused (ffprobe 0)  pictures differ by -  ")
    assert last == "2 of 3 files are read as ffmpeg reads them; of the others 1 say why, 0 do not"
    assert (tmp_path / "out" / "videos.txt").read_text() == run.stdout
