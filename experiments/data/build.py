"""`experiments.data build`: a data set's usable samples as a TFDS folder of ArrayRecord files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipelines.formats import tfds as tfds_builders
from data_pipelines.formats.index import data_root, index_folder
from data_pipelines.formats.sample import Sample
from experiments.cli import terminal
from experiments.library.beam import pipeline_options
from experiments.library.records import Shard
from o3jax.errors import UserError

# The published data come in two files, of one root folder.
_PUBLISHED = {"sft": "json_data/STGR-SFT.json", "rl": "json_data/STGR-RL.json"}


def build(path: str, out: str | None, shard: Shard, runner: str | None, options: Sequence[str]) -> None:
    """Writes a data set, given as folder or annotation file, as a TFDS folder; prints how to read it.

    Args:
        shard: the share of the samples that is written, of several into a folder of its own.
        runner, options: of Apache Beam, by which TFDS then writes.
    """
    if not out:
        raise UserError("--out is missing: name the folder of the built data set")
    beam = {"beam_runner": runner, "beam_options": pipeline_options(runner, options)} if runner else None
    given, out = Path(path), out + shard.suffix
    files = {split: given / name for split, name in _PUBLISHED.items() if (given / name).is_file()}
    splits: dict[str, list[Sample]] = {}
    rejected = 0
    for split, file in (files or {"train": given}).items():
        samples, rejects = index_folder(file)
        splits[split] = shard.of(samples)
        rejected += len(rejects)
    folder = tfds_builders.write(out, data_root(given), splits, beam)
    counts = ", ".join(f"{split} {len(samples)}" for split, samples in splits.items())
    console = terminal.console(soft_wrap=True, highlight=False)
    console.print(f"{folder}: {counts}; {rejected} records rejected", markup=False)
    name = folder.parent.name
    console.print(f'tfds.data_source("{name}", split="{next(iter(splits))}", data_dir="{out}")', markup=False)
