"""Makes data sets: `python -m experiments.data make --out DIR --split train --count 100 --level 1`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from absl import flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from data_pipelines import synthetic
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


COMMANDS = {"make": make}


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2 or argv[1] not in COMMANDS:
        raise UserError(f"name one of the commands {', '.join(COMMANDS)} first, not {' '.join(argv[1:])!r}")
    COMMANDS[argv[1]]()


if __name__ == "__main__":
    cli.run(main)
