"""Makes data sets and checks them.

python -m experiments.data make --out DIR --split train --count 100 --level 1
python -m experiments.data check DIR
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from absl import flags
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from data_pipelines import synthetic
from data_pipelines.index import index_folder
from experiments import cli
from o3jax.errors import UserError

_OUT = flags.DEFINE_string("out", None, "make: the folder of the new data set")
_SPLIT = flags.DEFINE_string("split", "train", "make: train, val or test; they never share a clip")
_COUNT = flags.DEFINE_integer("count", 100, "make: number of clips, each with two questions")
_LEVEL = flags.DEFINE_integer("level", 1, "make: difficulty of the synthetic world, 1 to 3")
_SEED = flags.DEFINE_integer("seed", 0, "make: another seed makes other clips")


def make() -> None:
    """Writes a synthetic data set and prints what is in it."""
    if not _OUT.value:
        raise UserError("--out is missing: name the folder of the new data set")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("rendering clips", total=_COUNT.value)
        samples = synthetic.make_dataset(
            _OUT.value,
            _SPLIT.value,
            _COUNT.value,
            _LEVEL.value,
            _SEED.value,
            on_clip=lambda: progress.advance(bar),
        )
    table = Table(title=f"{_OUT.value}: {_COUNT.value} clips, {len(samples)} questions")
    for heading in ("question kind", "English", "Chinese"):
        table.add_column(heading)
    counts = Counter((sample.kind, sample.language) for sample in samples)
    for kind in synthetic.LEVELS[_LEVEL.value].kinds:
        table.add_row(kind, str(counts[kind, "en"]), str(counts[kind, "zh"]))
    Console().print(table)


def check(folder: str) -> None:
    """Prints what is in a data set, how many of its records are rejected, and for each of them why."""
    samples, rejects = index_folder(folder)
    kept = Counter((sample.task, sample.source) for sample in samples)
    lost: dict[tuple[str, str], Counter[str]] = {}
    for reject in rejects:
        lost.setdefault((reject.task, reject.source), Counter())[reject.field or "record"] += 1
    table = Table(title=f"{folder}: {len(samples)} samples, {len(rejects)} rejected")
    for heading in ("task", "source", "samples", "rejected", "reasons"):
        table.add_column(heading)
    for group in sorted({*kept, *lost}):
        fields = lost.get(group, Counter())
        reasons = ", ".join(f"{count} {field}" for field, count in fields.most_common())
        table.add_row(*map(escape, group), str(kept[group]), str(fields.total()), escape(reasons))
    Console().print(table)
    for reject in rejects:
        print(f"{reject.id}: {reject.reason}")


def main(argv: Sequence[str]) -> None:
    match argv[1:]:
        case ["make"]:
            make()
        case ["check", folder]:
            check(folder)
        case given:
            raise UserError(f"write one of the commands 'make' or 'check DIR' first, not {' '.join(given)!r}")


if __name__ == "__main__":
    cli.run(main)
