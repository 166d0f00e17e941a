"""`python -m experiments.rates`: do the evidence decoder's times depend on the camera or move with the event?

Prints the medians of what its estimates differ by; `experiments.rate_study` says between which films.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from experiments import cli
from experiments.rate_study import study
from o3jax import api

_MODEL_PATH = flags.DEFINE_string("model_path", "o3-tiny", "A model folder, or the embedded model.")
_NUM_CLIPS = flags.DEFINE_integer("num_clips", 40, "Clips of the test split.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    del argv
    cli.use_compilation_cache()
    model = api.load(_MODEL_PATH.value)
    for case, values in study(model, _NUM_CLIPS.value).items():
        said = ", ".join(f"{name} {value:.3f} s" for name, value in values.items())
        print(f"{case}: median difference of {said}")


if __name__ == "__main__":
    cli.run(main)
