"""Videos that several tests read, written once."""

from collections.abc import Callable

import pytest

from tests.support.numbered import Fixture
from tests.support.written import WRITERS


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Callable[[str], Fixture]:
    """A function that writes a video of `WRITERS` once and returns the truth about it."""
    folder = tmp_path_factory.mktemp("videos")
    done: dict[str, Fixture] = {}

    def get(name: str) -> Fixture:
        if name not in done:
            done[name] = WRITERS[name](folder / name)
        return done[name]

    return get
