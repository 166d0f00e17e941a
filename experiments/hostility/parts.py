"""The parts of `python -m experiments.hostile`: what opens the cases of each, and what they may take."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from experiments.hostility import hosts, runs
from experiments.hostility.outcome import LIMIT_GIB, LIMIT_S, Outcome, outcome_of
from experiments.hostility.pool import Limits
from experiments.hostility.worker import Attempts, Opened
from o3jax.errors import UserError
from o3jax.printing import shortened


class Part(NamedTuple):
    """A kind of hostile cases."""

    title: str
    opened: Opened
    limits: Limits = Limits(LIMIT_S, LIMIT_GIB)


@contextlib.contextmanager
def _folders(folder: Path) -> Iterator[Attempts]:
    from experiments.hostility import folders

    good = folders.make_good(folder / "good")

    def attempt(case: folders.Case) -> Outcome:
        try:
            return folders.try_folder(folders.make(case, good, folder / "case"))
        finally:
            shutil.rmtree(folder / "case", ignore_errors=True)

    yield [(case.name, partial(attempt, case)) for case in folders.cases()]


@contextlib.contextmanager
def _media(folder: Path) -> Iterator[Attempts]:
    from data_pipelines.reading.guarded import GuardedReader
    from experiments.hostility import media
    from o3jax.video import probe, read_video

    def attempt(path: Path) -> str:
        replaced = reader.replaced
        try:
            reader.run(probe, path)
            reader.run(read_video, path, times_s=[0.0], size=(16, 16))
            reader.run(read_video, path, fps=2.0, size=(16, 16))
        except UserError as error:
            # Its process keeps the command from harm, but nothing should need that.
            if "reading it failed" in str(error) or reader.replaced > replaced:
                raise RuntimeError(str(error)) from error
            raise
        return ""

    with contextlib.closing(GuardedReader()) as reader:
        paths = media.make_media(folder / "media", 400)
        yield [(path.name, partial(outcome_of, partial(attempt, path))) for path in paths]


@contextlib.contextmanager
def _records(folder: Path) -> Iterator[Attempts]:
    from experiments.hostility import records

    with contextlib.closing(records.Bench.make(folder)) as bench:
        yield [(case.name, partial(bench.attempt, case)) for case in records.cases(folder)]


@contextlib.contextmanager
def _texts(folder: Path) -> Iterator[Attempts]:
    from experiments.hostility import texts
    from o3jax.api import model_folder

    del folder
    bench = texts.Bench.make(model_folder("o3-tiny"))
    yield [(case.name, partial(bench.attempt, case)) for case in texts.cases()]


# Cases of commands: the cases, their names, what tries one.
_COMMANDS: dict[str, tuple[Callable[[], list], Callable[[Any], str], Callable[..., Outcome]]] = {
    "flags": (runs.flag_cases, " ".join, runs.try_flags),
    "workdirs": (runs.damage_cases, lambda case: f"{case.stage}: {case.name}", runs.try_damage),
    "disks": (runs.full_cases, lambda case: f"{case.name}, {case.kib or 'no'} KiB", runs.try_full),
    "kills": (
        runs.kill_cases,
        lambda case: f"{case.stage}, {case.workers} workers, at {case.share:.2%}",
        runs.try_kill,
    ),
    "hosts": (hosts.cases, str, hosts.attempt),
}


@contextlib.contextmanager
def _commands(kind: str, folder: Path) -> Iterator[Attempts]:
    cases, name, attempt = _COMMANDS[kind]
    place = runs.Workplace(folder)
    yield [(shortened(name(case)), partial(attempt, place, case)) for case in cases()]


_OWN_LIMITS = Limits(0.0, 0.0)  # each command that a case starts has them
PARTS = {
    "folders": Part("model folders", _folders),
    "media": Part("media files", _media),
    "records": Part("records", _records),
    "texts": Part("texts", _texts),
    "flags": Part("wrong flags", partial(_commands, "flags"), _OWN_LIMITS),
    "workdirs": Part("damaged workdirs", partial(_commands, "workdirs"), _OWN_LIMITS),
    "disks": Part("full and read-only disks", partial(_commands, "disks"), _OWN_LIMITS),
    "kills": Part("runs that are killed", partial(_commands, "kills"), _OWN_LIMITS),
    "hosts": Part("runs on two hosts that are stopped", partial(_commands, "hosts"), _OWN_LIMITS),
}
