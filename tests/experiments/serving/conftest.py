"""One live server for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Live, live


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the server may read from."""
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, media: Path) -> Iterator[Live]:
    """A server without a key, that reads below a folder, and fetches from one host that is not there."""
    flags = ("--slots=4", "--max_queue=8", f"--media_root={media}", "--max_upload_mib=1", "--max_body_mib=2")
    with live(tmp_path_factory.mktemp("server"), *flags, "--allow_url=127.0.0.1:9") as running:
        yield running


@pytest.fixture(scope="session")
def uploaded(server: Live, clip: Path) -> str:
    """The id of the synthetic clip."""
    return server.upload(clip)
