"""Where the videos and subtitles of a benchmark are: in folders, or in archives as they were downloaded.

A member of a zip file is found at once; a `.tar.gz` is read from its beginning for each of its videos, which
is slow where it is large.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from o3jax.errors import UserError

VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".mpg", ".flv")
_SUBTITLES = (".srt", ".jsonl", ".json", ".vtt", ".txt")
_INSIDE = "::"  # between an archive and what is in it
_TARS = (".tar", ".tar.gz", ".tgz")
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, zlib.error),
    *(KeyError, NotImplementedError, RuntimeError),
)


class Media:
    """The media files below a folder, found by their path or by their name."""

    def __init__(self, root: Path):
        self.root = root
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self.packed: list[Path] = []  # parts of archives, which are not read where they are
        for folder, folders, names in os.walk(root, followlinks=True):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if name.endswith((".zip", *_TARS)):
                    self._add_archive(path)
                elif any(f"{ending}.part" in name for ending in (".zip", *_TARS)):
                    self.packed.append(path)
                else:
                    self._add(path.relative_to(root).as_posix(), str(path))

    def _add_archive(self, path: Path) -> None:
        try:
            for name in _members(path):
                self._add(name, f"{path}{_INSIDE}{name}")
        except _DAMAGED as error:
            raise UserError(f"{path} is no whole archive ({error}): download it again") from None

    def _add(self, name: str, location: str) -> None:
        pure = PurePosixPath(name)
        if pure.suffix.lower() in VIDEOS + _SUBTITLES:
            self._by_name[pure.name.lower()].append(location)

    def video(self, name: str, folder: str = "videos") -> str:
        """Returns where a video is, by its path or its name, with or without an ending.

        Of several with one name the one whose folders agree with more of the path; unpacked before packed.
        Where there is none: the path that is expected, in the folder.
        """
        found = self._find(name, VIDEOS)
        return found or str(self.root / folder / (name if PurePosixPath(name).suffix else f"{name}.mp4"))

    def subtitles(self, name: str) -> str | None:
        """Returns where subtitles are, by their path or name, None where there are none."""
        return self._find(name, _SUBTITLES)

    def _find(self, name: str, endings: tuple[str, ...]) -> str | None:
        pure = PurePosixPath(name)
        if pure.is_absolute() and Path(name).is_file():
            return name
        # A name may have dots of its own; another ending than the annotated one is also taken.
        names = [pure.name] if pure.suffix.lower() in endings else []
        stems = {pure.name, pure.stem} if names else {pure.name}
        names += [f"{stem}{ending}" for stem in sorted(stems, key=len, reverse=True) for ending in endings]
        for candidate in names:
            if places := self._by_name.get(candidate.lower()):
                folders = [part for part in pure.parts[:-1] if part not in (".", "..")]
                return max(places, key=lambda place: (_agreement(place, folders), _INSIDE not in place))
        return None


def _agreement(place: str, folders: list[str]) -> int:
    """Returns how many of the last folders of a path are those of a place."""
    parents = PurePosixPath(place.replace(_INSIDE, "/")).parts[:-1]
    count = 0
    for mine, wanted in zip(reversed(parents), reversed(folders), strict=False):
        if mine.lower() != wanted.lower():
            break
        count += 1
    return count


def _members(path: Path) -> list[str]:
    """Returns the names of what is in an archive."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    with tarfile.open(path, "r|*") as archive:
        return [member.name for member in archive if member.isfile()]


def _unpack(path: Path, name: str, target: IO[bytes]) -> None:
    """Writes a member of an archive into a file."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive, archive.open(name) as source:
            shutil.copyfileobj(source, target)
        return
    with tarfile.open(path, "r|*") as archive:
        member = next((one for one in archive if one.isfile() and one.name == name), None)
        if member is None:
            raise KeyError(name)
        shutil.copyfileobj(archive.extractfile(member), target)


def exists(location: str) -> bool:
    """Returns whether what `Media` found is there."""
    return _INSIDE in location or Path(location).is_file()


@contextlib.contextmanager
def local(location: str) -> Iterator[Path]:
    """Yields a path that can be opened; what is in an archive is unpacked for as long.

    Raises:
        UserError: if it is not there, or damaged in its archive.
    """
    archive, inside, member = location.partition(_INSIDE)
    if not inside:
        if not Path(location).is_file():
            raise UserError(f"{location} is missing: put the video there")
        yield Path(location)
        return
    with tempfile.TemporaryDirectory(prefix="o3jax-") as folder:
        path = Path(folder) / PurePosixPath(member).name
        try:
            with path.open("wb") as target:
                _unpack(Path(archive), member, target)
        except _DAMAGED as error:
            raise UserError(f"{archive}: {member} cannot be unpacked ({error}): download it again") from None
        yield path
