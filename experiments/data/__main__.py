"""Makes data sets and checks them.

o3jax data make --out DIR --split train --count 100 --level 1 --format stgr|published|article
o3jax data check DIR [--out PICTURES]
o3jax data check DIR --benchmark NAME
o3jax data build DIR --out OUT
o3jax data from-reviews DIR --out OUT
o3jax data audit DIR --reward=NAME
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from absl import flags
from rich.markup import escape
from rich.table import Table

from data_pipelines.synthetic import datasets
from data_pipelines.synthetic.benchmarks.make import make_benchmarks
from data_pipelines.synthetic.published import make_article, make_published
from data_pipelines.synthetic.scenes import LEVELS
from experiments.cli import shell, terminal
from experiments.data import audit as data_audit
from experiments.data import benchmark as data_benchmark
from experiments.data import build as data_build
from experiments.data import check as data_check
from experiments.data import reviews as data_reviews
from experiments.library import beam
from experiments.library.records import Shard
from o3jax.errors import UserError

_OUT = flags.DEFINE_string(
    "out", None, "make, build, from-reviews: the folder of the new data set; check: of the pictures"
)
_SPLIT = flags.DEFINE_string("split", "train", "make: train, val or test; they never share a clip")
_COUNT = flags.DEFINE_integer(
    "count",
    100,
    "make: number of clips, each with two questions (published: one; level 4: five)",
    lower_bound=1,
    upper_bound=10000000,
)
_FORMAT = flags.DEFINE_enum(
    "format",
    "stgr",
    ["stgr", "published", "article", "benchmarks"],
    "make: our own records; every published task and source in the published tree; the article's records; "
    "or small stand-ins for the benchmarks of the field",
)
_LEVEL = flags.DEFINE_integer(
    "level", 1, "make: difficulty of the synthetic world, 1 to 4", lower_bound=1, upper_bound=4
)
_REWARD = flags.DEFINE_string("reward", "format", "audit: the name of a reward function")
_BENCHMARK = flags.DEFINE_string("benchmark", None, "check: which benchmark of the field the folder holds")
_SHARD = flags.DEFINE_string("shard", "0/1", "build: the share of the samples, written into OUT-0-of-4")
_RUNNER, _BEAM = beam.define()
_SEED = flags.DEFINE_integer(
    "seed", 0, "make: another seed makes other clips", lower_bound=0, upper_bound=2**32 - 1
)


def make() -> None:
    """Writes a synthetic data set and prints what is in it."""
    if not _OUT.value:
        raise UserError("--out is missing: name the folder of the new data set")
    if _FORMAT.value == "benchmarks":
        names = make_benchmarks(_OUT.value, max(5, _COUNT.value), _LEVEL.value)
        print(f"{_OUT.value}: {', '.join(names)}")
        return
    write = {"stgr": datasets.make_dataset, "article": make_article, "published": make_published}[
        _FORMAT.value
    ]
    with terminal.progress() as progress:
        bar = progress.add_task("rendering clips", total=_COUNT.value)
        made = write(
            _OUT.value,
            _SPLIT.value,
            _COUNT.value,
            _LEVEL.value,
            _SEED.value,
            on_clip=lambda: progress.advance(bar),
        )
    if _FORMAT.value == "published":
        counts = ", ".join(f"STGR-{stage.upper()}.json: {len(made[stage])} questions" for stage in made)
        print(f"{_OUT.value}: {_COUNT.value} videos and images; {counts}")
        return
    table = Table(title=f"{escape(_OUT.value)}: {_COUNT.value} clips, {len(made)} questions")
    for heading in ("question kind", "English", "Chinese"):
        table.add_column(heading)
    counts = Counter((sample.kind, sample.language) for sample in made)
    for kind in LEVELS[_LEVEL.value].kinds:
        table.add_row(kind, str(counts[kind, "en"]), str(counts[kind, "zh"]))
    terminal.print_table(table)


def main(argv: Sequence[str]) -> None:
    match argv[1:]:
        case ["make"]:
            make()
        case ["check", folder] if _BENCHMARK.value:
            data_benchmark.check(_BENCHMARK.value, folder)
        case ["check", folder]:
            data_check.check(folder, _OUT.value)
        case ["build", folder]:
            data_build.build(folder, _OUT.value, Shard.parse(_SHARD.value), _RUNNER.value, _BEAM.value)
        case ["from-reviews", folder]:
            data_reviews.from_reviews(folder, _OUT.value)
        case ["audit", folder]:
            data_audit.audit(folder, _REWARD.value)
        case given:
            raise UserError(
                "write 'make', or 'check', 'build', 'from-reviews' or 'audit' and a folder, first, not "
                f"{' '.join(given)!r}"
            )


if __name__ == "__main__":
    shell.run(main)
