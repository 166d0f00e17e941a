"""Which videos a command is about: files and folders, always in the same order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from o3jax.errors import UserError
from o3jax.video.files import find_file, refuse_protocol

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("mp4", "m4v", "mov", "3gp", "3g2", "mkv", "webm", "avi", "ts", "m2ts", "mts", "mpg", "mpeg"),
        *("flv", "ogv", "ogg", "wmv", "asf", "gif"),
    )
)


def list_videos(paths: Sequence[str]) -> list[str]:
    """Returns the absolute paths of the videos that are named or lie below the folders that are, each once.

    In the order of the arguments, and by name inside a folder; without hidden files and links to folders.

    Raises:
        UserError: if a path is missing, or a folder holds no video.
    """
    if not paths:
        raise UserError("no video is named: write files or folders behind the verb")
    found: dict[str, None] = {}
    for given in paths:
        refuse_protocol(given)
        if not find_file(given).is_dir():
            found[os.path.abspath(given)] = None
            continue
        mine = list(_below(os.path.abspath(given)))
        if not mine:
            raise UserError(f"{given} holds no video ({', '.join(sorted(SUFFIXES))}): name another folder")
        found |= dict.fromkeys(mine)
    return list(found)


def _below(folder: str) -> Iterator[str]:
    for where, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield os.path.join(where, name)


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}): check its permissions")
