"""Which clips a training command reads, in which order, and what it does with records that it cannot use."""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from ml_collections import ConfigDict

import data_pipelines
import o3jax.inputs
import o3jax.prompts
from configs.checks import generated
from configs.common import given
from data_pipelines.formats.index import Index, read_index
from data_pipelines.reading.frame_cache import ArrayCache, CachedReader
from data_pipelines.reading.guarded import GuardedReader
from data_pipelines.rows.clips import Clip, FolderClips
from data_pipelines.rows.packing import PlannedRows, RowCost, check_fit, fingerprint, padding, plan_rows
from data_pipelines.rows.supervised import MakeRow
from data_pipelines.synthetic.clips import SyntheticClips
from data_pipelines.synthetic.grounding import FramePairs
from experiments.training.hosts import is_first_host
from experiments.training.workdir import Workdir
from o3jax.errors import UserError
from o3jax.files import write_arrays, write_text
from o3jax.inputs.processor import Processor, load_processor


def open_processor(source: Path, config: ConfigDict) -> Processor:
    """Returns the processor of a model's folder, with what `config.video` changes."""
    processor = load_processor(source)
    processor.video_config = dataclasses.replace(processor.video_config, **given(config.video))
    return processor


def open_clips(
    config: ConfigDict, processor: Processor, workdir: Workdir, field: str = "data_path"
) -> tuple[Sequence[Clip], str]:
    """Returns the clips that a field of the config names, and what to note about them on the progress lines.

    `synthetic:LEVEL` renders clips with questions, `captions:LEVEL` frame pairs with captions (as
    many pairs as a row has); anything else is a dataset folder, of which the usable samples are
    taken and the others are listed in `WORKDIR/rejected.jsonl`.
    """
    path, kind = config[field], generated(config[field])
    level = path.partition(":")[2]
    if kind == "captions":
        return FramePairs(processor, int(level), config.row_frame_pairs, config.seed), ""
    if kind == "synthetic":
        return SyntheticClips(config.split, int(level), config.questions_per_row, config.seed), ""
    index, note = usable_samples(path, workdir, config.max_rejected_share)
    return FolderClips(index, config.questions_per_row), note


def open_reader(config: ConfigDict) -> GuardedReader | CachedReader:
    """Returns what reads the clips' files: with the cache of decoded frames that the config names, if any."""
    if not config.frame_cache:
        return GuardedReader()
    cache = ArrayCache(config.frame_cache, int(config.frame_cache_gib * 2**30))
    return CachedReader(GuardedReader(), cache)


def clip_costs(clips: Sequence[Clip], rows: MakeRow, file: Path | None = None) -> list[RowCost]:
    """Returns what each clip takes of a row.

    To find out, every text is turned into tokens: a minute for 31,000 clips. So it is kept in `file`, and
    read from there as long as nothing has changed that it depends on.
    """
    if file is None:
        return [rows.cost(clip) for clip in clips]
    depends = _costs_depend_on(clips, rows)
    try:
        with np.load(file, allow_pickle=False) as kept:
            if str(kept["depends"]) == depends:
                return [RowCost(*row[:4], alike=tuple(row[4:])) for row in kept["costs"].tolist()]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):  # not there yet, or half written
        pass
    costs = [rows.cost(clip) for clip in clips]
    table = [(n.tokens, n.frame_pairs, n.questions, n.dense_pairs, *n.alike) for n in costs]
    if is_first_host():
        write_arrays(file, depends=np.array(depends), costs=np.array(table))
    return costs


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


def plan(
    config: ConfigDict,
    clips: Sequence[Clip],
    rows: MakeRow,
    batch_size: int,
    field: str = "data_path",
    kept: Path | None = None,
) -> tuple[Sequence, dict, int]:
    """Returns the rows of the run, the fingerprint of what their order depends on, and the number of steps.

    The synthetic world is endless and already in random order: each of its clips is a row. What the clips of
    a data set take of a row is kept in the file `kept`, so that a resumed run need not find out again.
    """
    data_fingerprint = {"seed": config.seed, "data": str(config[field])}
    if not isinstance(clips, FolderClips):
        return clips, data_fingerprint, config.max_steps
    costs, capacity = clip_costs(clips.clips, rows, kept), rows.capacity()
    ids = [clip.samples[0].id for clip in clips.clips]
    check_fit(ids, costs, capacity)
    sources = [clip.samples[0].source for clip in clips.clips]
    planned = plan_rows(
        costs,
        sources,
        capacity,
        seed=config.seed,
        mixture=dict(config.mixture),
        epochs=config.num_train_epochs,
        least=config.max_steps * batch_size,
    )
    clips_each = sum(map(len, planned)) / len(planned)
    shares = padding(planned, costs, capacity)
    waste = ", ".join(f"{share:.1%} of the {name}" for name, share in shares.items())
    print(f"{len(planned)} rows of {clips_each:.1f} clips; padding is {waste}", flush=True)
    asked = [[sample.id for sample in clip.samples] for clip in clips.clips]
    data_fingerprint["data"] = fingerprint(asked, [dataclasses.astuple(one) for one in costs])
    data_fingerprint["rows"] = fingerprint(capacity.counts(), dict(config.mixture))
    steps = config.max_steps or math.ceil(len(planned) / batch_size)
    return PlannedRows(clips.clips, planned), data_fingerprint, steps


def usable_samples(folder: str, workdir: Workdir, max_rejected_share: float) -> tuple[Index, str]:
    """Returns the index of a data set, and a note of how many records were rejected.

    `WORKDIR/rejected.jsonl` lists these, one a line; it is empty where all can be used.

    Raises:
        UserError: if the folder cannot be indexed, nothing is usable, the share of
            rejected records is above the limit, or a resumed run has other ones than at its start.
    """
    index = read_index(folder)
    samples, rejects = index.samples, index.rejects
    report, total = workdir.path / "rejected.jsonl", len(samples) + len(rejects)
    text = "".join(json.dumps(dataclasses.asdict(r), ensure_ascii=False) + "\n" for r in rejects)
    resumed = workdir.manager.latest_step() is not None and report.exists()
    if resumed and report.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{folder} has other rejected records than {report} lists from the start of this run, and so "
            "another order: put the data set back as it was, or remove that file to go on all the same"
        )
    if is_first_host():
        write_text(report, text)
    print(f"indexed {len(samples)} samples of {folder}; {len(rejects)} rejected ({report})", flush=True)
    if len(rejects) > max_rejected_share * total:
        raise UserError(
            f"{len(rejects)} of the {total} records of {folder} are rejected, more than the share "
            f"config.max_rejected_share={max_rejected_share:g}: mend what {report} names, or raise the share"
        )
    if not samples:
        raise UserError(f"{folder} has no usable sample: add records to it")
    return index, f"rejected {len(rejects)}"
