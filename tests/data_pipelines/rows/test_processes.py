"""The processes that read data end with the run, however it ends, and not before it has saved."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# As in a training run: this process, two workers of Grain's, and the child of each, which reads files.
RUN = """
import signal, sys
from data_pipelines.rows.pipeline import Pipeline
from tests.support.streams import ReadInChild

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    source = [(number,) * 3 for number in range(99)]
    rows = Pipeline(source, [ReadInChild()], batch_size=1, seed=0, num_workers=2).open()
    print(*[next(rows).failures.number[0, 0] for _ in range(4)], flush=True)
    for line in sys.stdin:
        print(*[next(rows).failures.number[0, 0] for _ in range(20)], flush=True)
    rows.close()
"""

STARTING = """
import time
from data_pipelines.rows.pipeline import Pipeline
from o3jax.child import guard_from_the_first_line
from tests.support.streams import ReadInChild

if __name__ != "__main__":
    time.sleep(60)
else:
    guard_from_the_first_line()
    rows = Pipeline([(0,) * 3], [ReadInChild()], batch_size=1, seed=0, num_workers=2).open()
    print("open", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path):
    """A run that has read its first rows, in a session of its own."""
    (tmp_path / "run.py").write_text(RUN)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "run.py"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MARK": str(tmp_path)}, start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "0 1 2 3\n", process.stderr.read()
    yield process
    process.kill()
    process.communicate()


def started(tmp_path: Path) -> list[int]:
    """Returns the processes of the run that are alive."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={tmp_path}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            pass
    return found


def shared(processes: list[int]) -> set[Path]:
    """Returns the files of the shared memory of processes."""
    maps = "".join((Path("/proc") / str(number) / "maps").read_text() for number in processes)
    return {Path(path) for path in re.findall(r"/dev/shm/psm_\w+", maps)}


def wait_until_none(tmp_path: Path) -> None:
    until = time.monotonic() + 20
    while started(tmp_path) and time.monotonic() < until:
        time.sleep(0.1)
    assert not started(tmp_path)


def test_a_killed_run_leaves_no_process_and_no_shared_memory(run, tmp_path):
    processes = started(tmp_path)
    assert len(processes) >= 5  # and what tracks shared memory
    ours = shared(processes)
    assert ours
    run.kill()
    wait_until_none(tmp_path)
    assert "Traceback" not in run.communicate()[1]
    assert not [path for path in ours if path.exists()]


def test_a_run_killed_while_its_processes_start_leaves_none(tmp_path):
    """A command's own imports take seconds, here a minute; its workers need none of them."""
    (tmp_path / "run.py").write_text(STARTING)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MARK": str(tmp_path)}
    run = subprocess.Popen(
        [sys.executable, "run.py"], env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE
    )
    assert run.stdout.readline() == "open\n"
    until = time.monotonic() + 60
    while len(started(tmp_path)) < 4 and time.monotonic() < until:  # it, two workers, a tracker of memory
        time.sleep(0.02)
    run.kill()
    run.communicate()
    wait_until_none(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_asks_a_whole_run_to_stop_is_for_its_first_process(run, tmp_path, number):
    """Ctrl-C in a terminal, and a batch system, send it to all of them; the run still reads what it needs."""
    before = set(started(tmp_path))
    for one in before:
        os.kill(one, number)
    print("more", file=run.stdin, flush=True)
    assert run.stdout.readline().split() == [str(at) for at in range(4, 24)]
    assert set(started(tmp_path)) == before
    assert run.communicate(timeout=60)[1].count("Traceback") == 0 and run.returncode == 0
    wait_until_none(tmp_path)


def test_a_process_that_a_server_forks_is_not_ended(tmp_path):
    """Its parent is the server, not who asked for it."""
    (tmp_path / "fork.py").write_text(
        "import multiprocessing\n"
        "from o3jax.child import guard_from_the_first_line\n"
        "if __name__ == '__main__':\n"
        "    guard_from_the_first_line()\n"
        "    process = multiprocessing.get_context('forkserver').Process(target=print, args=('done',))\n"
        "    process.start()\n"
        "    process.join()\n"
        "    assert process.exitcode == 0, process.exitcode\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, tmp_path / "fork.py"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr
