"""The statistics of studies."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.study import entry, signal_share


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_the_share_of_a_common_part_is_found(share):
    rng = np.random.default_rng(0)
    common = np.sqrt(share) * rng.standard_normal(2000)
    gradients = [common + np.sqrt(1 - share) * rng.standard_normal(2000) for _ in range(12)]
    found, error = signal_share(gradients)
    assert abs(found - share) < max(3 * error, 0.02) and error < 0.02


def test_the_error_is_that_of_repetition():
    rng = np.random.default_rng(1)
    found = [signal_share(rng.standard_normal((10, 50)) + 0.3) for _ in range(200)]
    assert np.std([share for share, _ in found]) == pytest.approx(
        np.mean([error for _, error in found]), rel=0.5
    )


def test_an_entry_tells_the_seeds_apart():
    assert entry([0.5]) == "0.500"
    assert entry([0.25, 0.75]) == "0.500 (0.250-0.750)"
    assert entry([0.5, None]) == "-"
