"""Nothing from records, files or models steers the terminal: what commands print, byte by byte."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress
from rich.table import Table

from data_pipelines.synthetic.datasets import write_video
from data_pipelines.synthetic.scenes import make_scene
from experiments.cli import terminal
from o3jax.printing import printable
from tests.support.paths import ROOT

TITLE = "\x1b]0;owned\x07"
HOSTILE = f"{TITLE}\x1b[31mred\x1b[2J\x9b5n\x08\x7f\u202eesrever\u2066x\u200b\ufeff 时间 é 🚗"


def steering(text: str) -> set[str]:
    """Returns the characters of a text that a terminal would obey or hide."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t\u200c\u200d"}


@given(st.text() | st.text(alphabet=st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp", "Lo"])))
def test_what_is_printable_cannot_steer(text):
    shown = printable(text)
    shown.encode()
    assert not steering(shown) and not set(shown) & set("\n\t\u2028\u2029\r\x85")
    assert printable(shown) == shown


def test_chinese_and_accents_stay():
    assert printable(HOSTILE) == "]0;owned[31mred[2J5nesreverx 时间 é 🚗"
    assert printable("两行\n\t第二") == "两行  第二" and printable("两行\n", keep="\n") == "两行\n"
    assert printable("a\ud800\udcff") == "a??"


def test_streams_tables_and_bars(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    with terminal.guarded():
        print(HOSTILE, "\ud800")
        terminal.console().print(table)
        terminal.console().print(HOSTILE, markup=False)
        terminal.console(soft_wrap=True).print(HOSTILE, markup=False)
        terminal.print_table(table)
        with Progress(console=terminal.console()) as progress:
            progress.add_task(HOSTILE.replace("[", ""), total=1)
    assert sys.stdout is out
    out.flush()
    text = out.buffer.getvalue().decode()
    assert text.count("时间") >= 7 and not steering(text)


def test_a_terminal_that_knows_little_text_gets_question_marks(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", out)
    with terminal.guarded():
        print("时间 é")
    out.flush()
    assert out.buffer.getvalue() == b"?? ?\n"


def test_a_coloured_terminal_keeps_its_colours(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    with terminal.guarded():
        terminal.console(force_terminal=True, color_system="standard").print(
            f"[red]{TITLE}x[/]", highlight=False
        )
    out.flush()
    assert out.buffer.getvalue().decode() == "\x1b[31m]0;ownedx\x1b[0m\n"


def test_no_word_of_a_table_is_broken(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    table = Table(*[f"heading{i}_that_is_long" for i in range(7)])
    table.add_row(*[f"word{i}_of_a_cell_too" for i in range(7)])
    terminal.print_table(table)
    out.flush()
    text = out.buffer.getvalue().decode()
    assert all(f"heading{i}_that_is_long" in text and f"word{i}_of_a_cell_too" in text for i in range(7))


def test_only_one_module_makes_consoles():
    for path in (ROOT / "experiments").rglob("*.py"):
        if path.name != "terminal.py":
            assert " Console(" not in path.read_text(encoding="utf-8"), path


@pytest.fixture
def hostile_folder(tmp_path):
    write_video(make_scene(1), tmp_path / "clip.mp4")
    good = {
        "id": f"a{HOSTILE}",
        "source": HOSTILE,
        "task": "temporal-spatial free-form QA",
        "question": "When?",
        "answer": "Now.",
        "video_path": "clip.mp4",
        "key_frames": [{"idx": 25, "time": 1.0}],
        "key_items": {"25": {"dog": [[0, 0, 1, 1]]}},
    }
    records = [good, good | {"answer": ""}, good | {"key_items": {TITLE: {}}}, good | {TITLE: 1}]
    (tmp_path / "stgr.json").write_text(json.dumps(records))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["data", "check", "{folder}"], 0),
        (["data", "check", f"{{folder}}/{TITLE}"], 2),
        (["data", "check", b"{folder}/\xff\xe9"], 2),
        ([f"{TITLE}verb"], 2),
        ([b"\xff"], 2),
        (["data", b"\xff\x1b]0;x\x07"], 2),
        (["data", "check", "{folder}", f"--{TITLE}=1"], 2),
        (["ask", b"\xff.mp4", b"When \xff?"], 2),
        (["ask", "{folder}/clip.mp4", b"When \xff?"], 2),
    ],
)
def test_commands(hostile_folder, arguments, code):
    def filled(one):
        name = str(hostile_folder)
        return one.replace(b"{folder}", name.encode()) if isinstance(one, bytes) else one.format(folder=name)

    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli.main", *map(filled, arguments)], cwd=ROOT, capture_output=True
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, err
    assert not steering(out + err) and "Traceback" not in err
    if code == 2:
        assert err.startswith("error: ") and err.count("\n") == 1
    else:
        assert "evidence 1 of 3 annotated" in out and "时间" in out


def test_who_reads_no_more_of_a_table_does_not_end_the_command(tmp_path):
    """As in `o3jax evaluate --out=result.json | head -1`: the results are still written."""
    code = f"""if True:
        import pathlib, sys
        from experiments.cli import terminal
        console = terminal.console()
        for _ in range(20_000):
            console.print("a line of a table")
        pathlib.Path({str(tmp_path / "result")!r}).write_text("whole")
    """
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "a line of a table\n"
        run.stdout.close()
    assert run.returncode == 0 and (tmp_path / "result").read_text() == "whole"
