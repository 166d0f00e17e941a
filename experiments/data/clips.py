"""Which clips a training command reads, in which order, and what it does with records that it cannot use."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

import data_pipelines
import o3jax.inputs
import o3jax.prompts
from configs.checks import generated, warmup_note
from configs.common import given
from data_pipelines.formats.index import Index, Reject, read_index
from data_pipelines.formats.sample import Sample
from data_pipelines.formats.targets import EvidenceCount, annotated, count_evidence, rejected_evidence
from data_pipelines.reading.frame_cache import ArrayCache, CachedReader
from data_pipelines.reading.guarded import GuardedReader
from data_pipelines.rows.clips import Clip, FolderClips
from data_pipelines.rows.costs import DoesNotFitError, Overrun
from data_pipelines.rows.packing import PlannedRows, RowCost, fingerprint, padding, plan_rows
from data_pipelines.rows.sizes import RowSize, padded_patches, patches_of, plan_sized_rows
from data_pipelines.rows.supervised import MakeRow
from data_pipelines.synthetic.clips import SyntheticClips
from data_pipelines.synthetic.grounding import FramePairs
from data_pipelines.synthetic.windows import LevelClips
from experiments.training.hosts import is_first_host
from experiments.training.workdir import Workdir
from o3jax.errors import UserError
from o3jax.files import read_json, write_json, write_text
from o3jax.inputs.processor import Processor, load_processor
from o3jax.printing import shortened


def open_processor(source: Path, config: ConfigDict) -> Processor:
    """Returns the processor of a model's folder, with what `config.video` changes."""
    processor = load_processor(source)
    processor.video_config = dataclasses.replace(processor.video_config, **given(config.video))
    return processor


def open_clips(config: ConfigDict, processor: Processor, field: str = "data_path") -> Sequence[Clip]:
    """Returns the clips that a field of the config names.

    `synthetic:LEVEL` renders clips with questions, `levels:LEVEL` clips of all levels up to that one, of the
    long ones a film of some windows, `captions:LEVEL` frame pairs with captions (as many pairs as a row has);
    anything else is a dataset folder, of which the usable samples are taken.

    Raises:
        UserError: if the folder cannot be indexed.
    """
    path, kind = config[field], generated(config[field])
    level = path.partition(":")[2]
    if kind == "captions":
        return FramePairs(processor, int(level), config.row_frame_pairs, config.seed)
    if kind == "levels":
        return LevelClips(config.split, int(level), config.questions_per_row, config.seed)
    if kind == "synthetic":
        return SyntheticClips(config.split, int(level), config.questions_per_row, config.seed)
    return FolderClips(read_index(path), config.questions_per_row)


def open_reader(config: ConfigDict) -> GuardedReader | CachedReader:
    """Returns what reads the clips' files: with the cache of decoded frames that the config names, if any."""
    if not config.frame_cache:
        return GuardedReader()
    cache = ArrayCache(config.frame_cache, int(config.frame_cache_gib * 2**30))
    return CachedReader(GuardedReader(), cache)


class Fit(NamedTuple):
    """Clips that fit into a row, what each takes of it, and the samples that fit into none."""

    clips: list[Clip]
    costs: list[RowCost]
    lost: list[Lost]


class Lost(NamedTuple):
    """A sample that cannot be planned, why, and what it has more of than a row, where that is why."""

    sample: Sample
    reason: str
    overruns: tuple[Overrun, ...] = ()


def fit_clips(clips: Sequence[Clip], rows: MakeRow, file: Path | None = None) -> Fit:
    """Returns which clips fit into a row, planned without decoding anything.

    Where a clip with several questions does not, each of them is tried alone.

    To find out, every text is turned into tokens: a minute for 31,000 clips. So it is kept in `file`, and
    read from there as long as nothing has changed that it depends on.
    """
    if file is None:
        return _fit_of(clips, [_judged(clip, rows) for clip in clips])
    depends = _costs_depend_on(clips, rows)
    with contextlib.suppress(UserError, KeyError):  # not there yet, or damaged
        kept = read_json(file)
        if kept["depends"] == depends:
            return _fit_of(clips, kept["clips"])
    judged = [_judged(clip, rows) for clip in clips]
    if is_first_host():
        write_json(file, {"depends": depends, "clips": judged})
    return _fit_of(clips, judged)


def _judged(clip: Clip, rows: MakeRow) -> list[list]:
    """Returns [cost] of a clip, or of each of its questions [cost] or [None, reason, overruns], for JSON."""
    whole = _cost_or_reason(clip, rows)
    if whole[0] is not None or len(clip.samples) == 1:
        return [whole]
    return [_cost_or_reason(part, rows) for part in _parts(clip)]


def _cost_or_reason(clip: Clip, rows: MakeRow) -> list:
    try:
        return [list(dataclasses.astuple(rows.cost(clip)))]
    except DoesNotFitError as error:
        return [None, shortened(str(error), 900), [list(one) for one in error.overruns]]
    except UserError as error:
        return [None, shortened(str(error)), []]


def _parts(clip: Clip) -> list[Clip]:
    return [dataclasses.replace(clip, samples=(sample,)) for sample in clip.samples]


def _fit_of(clips: Sequence[Clip], judged: Sequence[Sequence[Sequence[Any]]]) -> Fit:
    fit = Fit([], [], [])
    for clip, found in zip(clips, judged, strict=True):
        for part, (cost, *why) in zip([clip] if len(found) == 1 else _parts(clip), found, strict=True):
            if cost is None:
                reason, overruns = why
                overruns = tuple(Overrun(*one) for one in overruns)
                fit.lost.extend(Lost(sample, reason, overruns) for sample in part.samples)
            else:
                *counts, alike, patches = cost
                fit.clips.append(dataclasses.replace(part, number=len(fit.clips)))
                fit.costs.append(RowCost(*counts, tuple(alike), patches))
    return fit


def _costs_depend_on(clips: Sequence[Clip], rows: MakeRow) -> str:
    p = rows.processor
    left = ("processor", "reader", "features")
    settings = [getattr(rows, f.name) for f in dataclasses.fields(rows) if f.name not in left]
    texts = p.chat_template, p.tokenizer.backend_tokenizer.to_str()
    made = type(rows).__name__, repr(settings), repr((p.image_config, p.video_config))
    return fingerprint(repr(clips), made, texts, code_of(data_pipelines, o3jax.inputs, o3jax.prompts))


def code_of(*packages: ModuleType) -> list[str]:
    """Returns the source of all modules of packages: what is kept in a file may depend on any of them."""
    folders = [Path(package.__file__).parent for package in packages]
    return [path.read_text(encoding="utf-8") for root in folders for path in sorted(root.rglob("*.py"))]


class Plan(NamedTuple):
    """The rows of a run, the fingerprint of what their order depends on, the number of steps.

    `clips` are those that the rows hold, by their numbers; `note` is for the progress lines.
    """

    rows: Sequence
    data_fingerprint: dict[str, str | int]
    steps: int
    clips: Sequence[Clip]
    note: str = ""
    sizes: tuple[RowSize, ...] = ()  # of the frames of rows, see `MakeRow.sizes`


def plan(
    config: ConfigDict,
    clips: Sequence[Clip],
    rows: MakeRow,
    batch_size: int,
    workdir: Workdir | None = None,
    field: str = "data_path",
) -> Plan:
    """Returns the plan of a run.

    The synthetic world is endless and already in random order: each of its clips is a row. Of a data set,
    what cannot be planned is rejected, see `report_rejects`. What its clips take of a row is kept in the
    workdir, so that a resumed run need not find out again.

    Raises:
        UserError: if too many records are rejected, or no annotated evidence would be trained.
    """
    data_fingerprint = {"seed": config.seed, "data": str(config[field])}
    if not isinstance(clips, FolderClips):
        return Plan(clips, data_fingerprint, config.max_steps, clips)
    fit = fit_clips(clips.clips, rows, workdir and workdir.path / "costs.json")
    note = report_rejects(config[field], clips.index, fit.lost, workdir, config.max_rejected_share)
    capacity = rows.capacity()
    if rows.supervised:
        note = f"{note}  {check_evidence(config[field], clips.index, fit)}"
    sources = [clip.samples[0].source for clip in fit.clips]
    options = {
        "seed": config.seed,
        "mixture": dict(config.mixture),
        "epochs": config.num_train_epochs,
        "least": config.max_steps * batch_size,
    }
    sizes: tuple[RowSize, ...] = ()
    if rows.supervised:
        most = rows.shape.patches
        planned, sizes = plan_sized_rows(fit.costs, sources, capacity, most, batch_size, **options)
    else:
        planned = plan_rows(fit.costs, sources, capacity, **options)
    clips_each = sum(map(len, planned)) / len(planned)
    shares = padding(planned, fit.costs, capacity)
    if sizes:
        del shares["frame pairs"]
    waste = ", ".join(f"{share:.1%} of the {name}" for name, share in shares.items())
    print(f"{len(planned)} rows of {clips_each:.1f} clips; padding is {waste}", flush=True)
    if sizes:
        share = 1 - patches_of(planned, fit.costs) / padded_patches(planned, fit.costs, sizes)
        named = ", ".join(f"{size.frame_pairs} x {size.patches}" for size in sizes)
        print(f"frames are unlike: batches of {named} patches, padding is {share:.1%} of these", flush=True)
    asked = [[sample.id for sample in clip.samples] for clip in fit.clips]
    data_fingerprint["data"] = fingerprint(asked, [dataclasses.astuple(one) for one in fit.costs])
    shapes = [[dataclasses.astuple(size) for size in sizes], batch_size] if sizes else []
    data_fingerprint["rows"] = fingerprint(capacity.counts(), dict(config.mixture), *shapes)
    steps = config.max_steps or math.ceil(len(planned) / batch_size)
    if not config.max_steps and (short := warmup_note(config, steps)):
        print(f"note: {short}", flush=True)
    return Plan(PlannedRows(fit.clips, planned), data_fingerprint, steps, fit.clips, note, sizes)


def report_rejects(
    folder: str, index: Index, lost: Sequence[Lost], workdir: Workdir | None, max_rejected_share: float
) -> str:
    """Returns a note of how many records of a data set are rejected: by its index, or in planning.

    `WORKDIR/rejected.jsonl` lists them, one a line; it is empty where all can be used.

    Raises:
        UserError: if nothing is usable, the share of rejected records is above the limit, or a resumed run
        has
            other ones than at its start.
    """
    late = [
        Reject(
            *(one.sample.id, one.reason, "", one.sample.task, one.sample.source),
            evidence=len(annotated(one.sample)),
        )
        for one in lost
    ]
    rejects, total = [*index.rejects, *late], len(index.samples) + len(index.rejects)
    text = "".join(json.dumps(dataclasses.asdict(r), ensure_ascii=False) + "\n" for r in rejects)
    named = "the reasons"
    if workdir is not None:
        named = report = workdir.path / "rejected.jsonl"
        resumed = workdir.manager.latest_step() is not None and report.exists()
        if resumed and report.read_text(encoding="utf-8", errors="replace") != text:
            raise UserError(
                f"{folder} has other rejected records than {report} lists from the start of this run, and so "
                "another order: put the data set back as it was, or remove that file to go on all the same"
            )
        if is_first_host():
            write_text(report, text)
    kept = total - len(rejects)
    print(f"indexed {kept} samples of {folder}; {len(rejects)} rejected ({named})", flush=True)
    room = room_for(lost)
    if len(rejects) > max_rejected_share * total:
        larger = f"{len(lost)} fit into no row: {room}; " if room else ""
        first = f", such as {rejects[0].id}: {rejects[0].reason}"[:300] if not room else ""
        raise UserError(
            f"{len(rejects)} of the {total} records of {folder} are rejected, more than the share "
            f"config.max_rejected_share={max_rejected_share:g}{first}: {larger}mend what {named} names, "
            "or raise the share"
        )
    if not kept:
        raise UserError(f"{folder} has no usable sample: add records to it")
    if room:
        print(f"to train those that fit into no row too: {room}", flush=True)
    return f"rejected {len(rejects)}"


def room_for(lost: Sequence[Lost]) -> str:
    """Returns the flags with which all that fits into no row would fit; "" where none would help."""
    values: dict[str, int] = {}
    for one in (overrun for sample in lost for overrun in sample.overruns):
        values[one.field] = max(values.get(one.field, 0), one.fits())
    return " ".join(f"--config.{field}={value}" for field, value in values.items())


def check_evidence(folder: str, index: Index, fit: Fit) -> EvidenceCount:
    """Returns how much of the annotated evidence of a data set reaches a loss, and prints why any does not.

    Raises:
        UserError: if there is some, and none of it does.
    """
    rejected = [*rejected_evidence(index)]
    rejected += [(len(annotated(one.sample)), "in records that cannot be planned") for one in fit.lost]
    found = count_evidence((sample for clip in fit.clips for sample in clip.samples), rejected)
    if found.annotated and not found.reached:
        raise UserError(
            f"none of the {found.annotated} annotated pieces of evidence of {folder} would be trained: "
            f"{found.reasons()}; mend these records"
        )
    reasons = found.reasons()
    print(f"{found} reaches the loss" + (f"; lost: {reasons}" if reasons else ""), flush=True)
    return found
