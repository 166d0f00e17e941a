"""What the commands `watch` and `label` have in common: their flags, and a run from the paths to the page."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

import o3jax
from experiments.cli import shell, terminal
from experiments.cli.locks import lock_folder
from experiments.evaluation.benchmarks.command import model_digest
from experiments.library import beam
from experiments.library.records import Record, Shard
from experiments.library.session import Extras, Follow, Job, Session, SessionWork
from experiments.library.videos import list_videos
from experiments.library.windows import Readers
from o3jax.api import Model
from o3jax.errors import UserError
from o3jax.files import writing
from o3jax.printing import shortened
from o3jax.report.exports import EXPORTS, export
from o3jax.report.moments import VideoMoments
from o3jax.report.session import write_session

flags.disclaim_key_flags()  # the flags below are those of the command that defines them


class Flags(NamedTuple):
    """The flags of a command over folders."""

    out: flags.FlagHolder
    model_path: flags.FlagHolder
    shard: flags.FlagHolder
    readers: flags.FlagHolder
    window_s: flags.FlagHolder
    overlap_s: flags.FlagHolder
    join_s: flags.FlagHolder
    max_new_tokens: flags.FlagHolder
    export: flags.FlagHolder
    runner: flags.FlagHolder
    beam_option: flags.FlagHolder


def define(command: str, exports: Sequence[str] = ()) -> Flags:
    """Returns the flags, which are the calling command's."""
    return Flags(
        flags.DEFINE_string(
            "out", f"o3jax-{command}", "The folder of the run; the same one goes on where it stopped."
        ),
        flags.DEFINE_string("model_path", "o3-tiny", "A model folder, or the embedded o3-tiny."),
        flags.DEFINE_string("shard", "0/1", "Which share of the videos this process takes: 0/4, 1/4, ..."),
        flags.DEFINE_integer("readers", 2, "Processes that read ahead.", lower_bound=1, upper_bound=256),
        flags.DEFINE_float(
            "window_s",
            None,
            "Seconds that the model is asked about at a time; None: as the model says (clip_s).",
            lower_bound=0.1,
            upper_bound=86400,
        ),
        flags.DEFINE_float(
            "overlap_s",
            None,
            "Seconds by which windows overlap; None: a third of a window.",
            lower_bound=0,
            upper_bound=86400,
        ),
        flags.DEFINE_float(
            "join_s",
            1.0,
            "Findings of one name that are no further apart are one.",
            lower_bound=0,
            upper_bound=86400,
        ),
        flags.DEFINE_integer(
            "max_new_tokens", 768, "Where an answer is cut off.", lower_bound=1, upper_bound=2**20
        ),
        flags.DEFINE_list(
            "export", list(exports), f"What else is written into OUT/exports: {', '.join(EXPORTS)}, or all."
        ),
        *beam.define(),
    )


def run(
    command: str,
    given: Flags,
    paths: Sequence[str],
    make_job: Callable[[dict[str, Any]], Job],
    extras: Extras,
    follow: Follow | None = None,
) -> None:
    """Runs a job over the videos below some paths, and prints a line for each video and a summary.

    Args:
        make_job: of what the flags say: command, length_s, overlap_s, join_s, max_new_tokens.

    Raises:
        UserError: if something is wrong with the flags, or no video could be read; records stay.
    """
    if not given.out.value:
        raise UserError("--out is empty: name the folder of this run")
    formats = wanted_exports(given.export.value)
    shard = Shard.parse(given.shard.value)
    videos = shard.of(list_videos(paths))
    folder = Path(given.out.value)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder, "--out", f".lock{shard.suffix}")
    model = shell.load_model(given.model_path.value)
    length = given.window_s.value or model.settings.clip_s
    overlap = length / 3 if given.overlap_s.value is None else given.overlap_s.value
    if overlap > length / 2:
        raise UserError(f"--overlap_s={overlap:g} is more than half a window of {length:g} s: lower it")
    plain = {"command": command, "length_s": length, "overlap_s": overlap, "join_s": given.join_s.value}
    job = make_job(plain | {"max_new_tokens": given.max_new_tokens.value})
    readers = Readers(given.readers.value)
    session = Session(folder, shard.suffix, job, extras, readers)
    try:
        session.begin(made_with(model, dataclasses.asdict(job)))
        waiting = session.start(videos)
        if given.runner.value and not follow:
            work = SessionWork(str(folder), given.model_path.value, job, extras)
            beam.spread(work, waiting, session.records, given.runner.value, given.beam_option.value)
            for left in folder.glob("alerts-beam-*.jsonl"):
                left.unlink()  # what is in them is in the records
            waiting = [path for path in session.start(videos) if path not in session.known]
        _work(session, model, videos, waiting, follow)
        finish(session, videos, formats)
    finally:
        readers.close()
        lock.close()


def made_with(model: Model, about: dict[str, Any]) -> dict[str, Any]:
    """Returns what a run must have in common with the one that it goes on from."""
    named = {"name": model.folder.name, "digest": model_digest(model.folder)}
    return {**about, "model": named, "versions": {"o3jax": o3jax.__version__}}


def wanted_exports(given: Sequence[str]) -> list[str]:
    """Returns the names of formats, all of them for `all`; UserError if one is unknown."""
    for name in given:
        if name not in (*EXPORTS, "all"):
            raise UserError(f"--export={name:.40} is unknown: there is {', '.join(EXPORTS)}, and all")
    return list(EXPORTS) if "all" in given else list(given)


def _work(
    session: Session, model: Model, videos: Sequence[str], waiting: Sequence[str], follow: Follow | None
) -> None:
    console = terminal.console(soft_wrap=True, highlight=False)
    columns = (
        *(SpinnerColumn(), TextColumn("{task.description}"), BarColumn()),
        *(TextColumn("{task.completed:.0f}/{task.total} videos"), TimeRemainingColumn()),
    )
    with terminal.progress(*columns) as progress:
        bar = progress.add_task(session.job.command, total=len(videos), completed=len(videos) - len(waiting))
        part = 0.0  # of the videos that are begun
        for task, record, alerts in session.work(model, waiting, follow):
            if task.piece is None:
                progress.update(bar, advance=1 - part)
                part = 0.0
                console.print(_line(record), markup=False)
                continue
            share = (task.piece[1] - task.piece[0]) / max(task.facts.info.duration_s, task.piece[1])
            part = min(part + share, 0.99)
            for alert in alerts:
                console.print(alert_line(alert), markup=False)


def alert_line(alert: Record) -> str:
    """Returns an alert in one line."""
    when = alert.get("start_at") or f"{alert['start_s']:.1f} s"
    return f"ALERT {alert['camera']}: {alert['label']} at {when} (confidence {alert['confidence']:.2f})"


def _line(record: Record) -> str:
    if "error" in record:
        return f"{record['file']}: not read: {shortened(record['error'])}"
    counts = Counter(moment["label"] for moment in record["moments"])
    said = ", ".join(f"{count} {label}" for label, count in sorted(counts.items())) or "nothing found"
    notes = "".join(f"; {shortened(note)}" for note in record.get("notes", ()))
    return f"{record['file']}: {record['duration_s']:.1f} s, {said}{notes}"


def finish(session: Session, videos: Sequence[str], formats: Sequence[str]) -> None:
    """Writes the page and the exports of all that is done, and prints the summary.

    Raises:
        UserError: if nothing could be read.
    """
    session.start(videos)  # of other processes there may be more by now
    done = [record for record in session.known.values() if "moments" in record and "size" in record]
    failed = [path for path in videos if "error" in session.known.get(path, {})]
    found = [moment for record in done for moment in record["moments"]]
    console = terminal.console(soft_wrap=True, highlight=False)
    table = Table(title=f"{escape(str(session.folder))}: {len(done)} videos, {len(failed)} not read")
    for heading in ("what", "found", "in videos", "needs review"):
        table.add_column(heading)
    for label in sorted({moment["label"] for moment in found}):
        mine = [moment for moment in found if moment["label"] == label]
        files = {moment["file"] for moment in mine}
        numbers = (len(mine), len(files), sum(moment["needs_review"] for moment in mine))
        table.add_row(escape(label), *map(str, numbers))
    terminal.print_table(table)
    page = write_session(session.folder, f"o3jax {session.job.command}", done)
    console.print(f"wrote {page}", markup=False)
    for name in formats:
        where = session.folder / "exports" / name
        export(name, [VideoMoments.from_dict(record) for record in done], where, session.readers.run)
        console.print(f"wrote {where}", markup=False)
    if videos and len(failed) == len(videos):
        raise UserError(f"none of {len(videos)} videos could be read: {session.known[failed[0]]['error']}")
