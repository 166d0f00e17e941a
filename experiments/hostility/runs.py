"""Commands that meet wrong flags, damaged workdirs, full disks and SIGKILL, each in a process of its own.

`Workplace` makes what they need once: a very small model, a data set, and runs that nothing disturbs, which
those that go on must equal bit for bit. Whoever tries many cases shares compiled programs by
JAX_COMPILATION_CACHE_DIR. What each case does to a command stands in `experiments.hostility.damage`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.hostility.changes import Change
from experiments.hostility.damage import DAMAGES, FULL, STAGES, WRONG_FLAGS
from experiments.hostility.folders import make_good
from experiments.hostility.outcome import LIMIT_GIB, LIMIT_S, Outcome, failed
from experiments.hostility.pool import end_orphans
from o3jax.files import PART

_PATIENCE = 5  # times the limit: until a process is killed that others make slow


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str
    cpu_s: float  # of the process itself
    gib: float  # its largest memory
    orphans: int  # processes that it started and that outlived it

    def outcome(self) -> Outcome:
        """Returns what the command made of its case."""
        lines = self.err.strip().splitlines() or [""]
        errors = [line for line in lines if line.startswith("error: ")]
        problems = (
            ("traceback", "a traceback", "Traceback" in self.err),
            ("orphans", f"{self.orphans} orphans", self.orphans > 0),
            ("memory", f"{self.gib:.1f} GiB", self.gib > LIMIT_GIB),
            ("time", f"{self.cpu_s:.0f} s", self.cpu_s > LIMIT_S),
            ("time", "no end", self.code == -signal.SIGKILL),
            ("wrong", f"exit code {self.code}", self.code not in (0, 2)),
            ("wrong", "no sentence", self.code == 2 and len(errors) != 1),
        )
        for fault, what, is_so in problems:
            if is_so:
                return failed(f"{what}: {lines[-1]:.300}", fault)
        return Outcome("refused", errors[0].removeprefix("error: ")) if self.code else Outcome("used")


def run(arguments: Sequence[str | Path], *, kill_after_s: float | None = None) -> Ended:
    """Returns how `python -m experiments.COMMAND ...` ends.

    Args:
        arguments: the command's name and its flags.
        kill_after_s: when it gets SIGKILL, if it is not done by then.
    """
    mark = f"O3JAX_CASE={uuid.uuid4().hex}"
    environment = os.environ | dict([mark.split("=")])
    command = [sys.executable, "-m", f"experiments.{arguments[0]}", *map(str, arguments[1:])]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment)
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (2 * int(LIMIT_GIB) * 2**30,) * 2)
        until = time.monotonic() + (kill_after_s or _PATIENCE * LIMIT_S)
        while True:  # `wait4` alone tells of the memory
            number, status, usage = os.wait4(process.pid, os.WNOHANG)
            if number:
                break
            if time.monotonic() > until:
                process.kill()
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = [file.seek(0) or file.read() for file in (out, err)]
    return Ended(
        process.returncode,
        *texts,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss / 2**20,
        end_orphans(mark),
    )


class Kill(NamedTuple):
    """A moment of a run at which it is killed."""

    stage: str
    workers: int
    share: float  # of the time that an undisturbed run takes


class Damage(NamedTuple):
    """What happened to the workdir of a run that stopped in the middle."""

    stage: str
    name: str
    change: Change


class Full(NamedTuple):
    """A command that writes to a disk with so little room; 0: to one that is read-only."""

    name: str
    arguments: tuple[str, ...]  # DISK, MODEL, DATA and CLIP stand for paths
    kib: int


def kill_cases() -> list[Kill]:
    """Returns moments of runs of both stages, with and without workers; always the same."""
    draw = random.Random(0)
    kinds = [("sft", 0), ("sft", 2), ("gspo", 0), ("gspo", 2)]
    return [Kill(*kinds[number % 4], draw.uniform(0.1, 1.0)) for number in range(40)]


def damage_cases() -> list[Damage]:
    """Returns every damage, for both stages."""
    return [Damage(stage, name, change) for stage in ("sft", "gspo") for name, change in DAMAGES.items()]


def full_cases() -> list[Full]:
    """Returns every command that writes, on disks with little room and on one that is read-only."""
    return [Full(name, tuple(flags), kib) for name, (flags, sizes) in FULL.items() for kib in (*sizes, 0)]


def flag_cases() -> list[tuple[str, ...]]:
    """Returns commands with a wrong flag, all of which must be refused."""
    return [(command, *flags.split(" ")) for command, given in WRONG_FLAGS.items() for flags in given]


@dataclasses.dataclass(frozen=True)
class Workplace:
    """A folder with all that the cases need."""

    folder: Path

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """What the words in a case's arguments stand for."""
        from data_pipelines.synthetic.datasets import make_dataset

        make_good(self.folder / "model")
        make_dataset(self.folder / "data", "train", 4)
        clip = next((self.folder / "data" / "videos").iterdir())
        return {"MODEL": f"{self.folder}/model", "DATA": f"{self.folder}/data", "CLIP": str(clip)}

    def command(self, arguments: Sequence[str], **more: str) -> list[str]:
        """Returns arguments with the words in them replaced."""
        out = []
        for argument in arguments:
            for word, path in (self.names | more).items():
                argument = argument.replace(word, path)
            out.append(argument)
        return out

    def stage(self, name: str, workdir: Path, *flags: str) -> list[str]:
        """Returns the command of a short run, which saves in the middle."""
        return [*self.command(STAGES[name]), f"--workdir={workdir}", *flags]

    @functools.cache  # noqa: B019 - there is one workplace
    def undisturbed(self, stage: str, workers: int = 0) -> tuple[Path, float]:
        """Returns the workdir of a run that nothing disturbs, and how many seconds it took."""
        workdir = self.folder / f"{stage}-{workers}"
        seconds = 0.0
        for _ in range(2):  # the first one compiles
            shutil.rmtree(workdir, ignore_errors=True)
            began = time.monotonic()
            ended = run(self.stage(stage, workdir, f"--config.num_workers={workers}"))
            seconds = time.monotonic() - began
            if ended.code:
                raise RuntimeError(f"an undisturbed run failed: {ended.err[-2000:]}")
        return workdir, seconds

    def goes_on(self, stage: str, workdir: Path, *flags: str) -> Outcome:
        """Returns what becomes of a run that goes on; one that ends must equal the undisturbed one."""
        outcome = run(self.stage(stage, workdir, *flags)).outcome()
        if outcome.status == "used" and (wrong := difference(self.undisturbed(stage)[0], workdir)):
            return failed(wrong, "wrong")
        return outcome

    @contextlib.contextmanager
    def workdir(self) -> Iterator[Path]:
        """Yields a name for the workdir of a case, which goes at its end."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            yield Path(folder) / "run"


def try_kill(place: Workplace, case: Kill) -> Outcome:
    """Returns "used" for a run that is killed, leaves no process, and goes on to the end it had alone."""
    flag = f"--config.num_workers={case.workers}"
    seconds = place.undisturbed(case.stage, case.workers)[1]
    with place.workdir() as workdir:
        killed = run(place.stage(case.stage, workdir, flag), kill_after_s=case.share * seconds)
        if killed.orphans:
            return failed(f"{killed.orphans} orphans", "orphans")
        if "Traceback" in killed.err:
            return failed(f"a traceback: {killed.err[-300:]}", "traceback")
        outcome = place.goes_on(case.stage, workdir, flag)
    return outcome if outcome.status != "refused" else failed(outcome.said, "wrong")


def try_damage(place: Workplace, case: Damage) -> Outcome:
    """Returns "used" for a run that goes on in spite of the damage, to the end that it would have had."""
    stopped = place.folder / f"{case.stage}-stopped"
    if not stopped.exists():
        run(place.stage(case.stage, stopped, "--config.stop_at_step=5"))
    with place.workdir() as workdir:
        shutil.copytree(stopped, workdir)
        case.change(workdir)
        return place.goes_on(case.stage, workdir)


def try_full(place: Workplace, case: Full) -> Outcome:
    """Returns "refused" for a command that says that there is no room, and works when there is."""
    with tempfile.TemporaryDirectory(dir=place.folder) as folder:
        size = f"size={case.kib or 65536}k"
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", size, "none", folder], capture_output=True
        ).returncode:
            return Outcome("skipped", "mounting a small file system needs root")
        try:
            if not case.kib:
                subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            arguments = place.command(case.arguments, DISK=folder)
            first = run(arguments).outcome()
            if first.status == "failed":
                return first
            subprocess.run(["mount", "-o", "remount,rw,size=65536k", folder], check=True)
            again = run(arguments).outcome()
            if again.status != "used" and first.status == "refused":
                return failed(f"with room again: {again.said}", "wrong")
            return first
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def try_flags(place: Workplace, case: Sequence[str]) -> Outcome:
    """Returns "refused" for a command whose flags cannot be meant."""
    with place.workdir() as workdir:
        outcome = run(place.command(case, WORK=str(workdir))).outcome()
    return outcome if outcome.status != "used" else failed("not refused", "wrong")


def difference(wanted: Path, workdir: Path) -> str:
    """Returns what differs between the workdirs of two runs that are at their end, "" if nothing."""
    for path in (wanted / "model").iterdir():
        other = workdir / "model" / path.name
        if not other.exists() or other.read_bytes() != path.read_bytes():
            return f"model/{path.name} differs"
    if logged(wanted) != logged(workdir):
        return "metrics.jsonl differs"
    left = [p.name for p in workdir.rglob("*") if p.name.endswith(PART) or "orbax-checkpoint-tmp" in p.name]
    return f"{left[0]} is left" if left else ""


def logged(workdir: Path) -> list[dict]:
    """Returns the log of a run, but for what a clock measured."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("seconds", "tokens_per"))} for line in lines]
