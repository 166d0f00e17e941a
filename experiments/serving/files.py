"""Where videos of requests come from: uploads, data URLs, a folder, and hosts that the server names."""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import hashlib
import http.client
import os
import re
import secrets
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import IO, Any

from data_pipelines.reading.guarded import inside
from experiments.serving.errors import ApiError
from experiments.serving.videos import Videos
from o3jax.errors import UserError
from o3jax.files import read_json, write_json
from o3jax.printing import printable
from o3jax.video.files import MissingFileError

_ID = re.compile(r"file-[0-9a-f]{24}")
_DATA = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+=-]+)*;base64,")
_CHUNK = 2**20
_PASSING = 128  # files that came with a request, the newest of which are kept
_FETCH_S = 60.0  # for a whole file; a single read may take a tenth


@dataclasses.dataclass(frozen=True)
class Stored:
    """An uploaded file."""

    id: str
    filename: str
    bytes: int
    created_at: int
    purpose: str
    width: int
    height: int
    duration_s: float
    fps: float | None

    def to_json(self) -> dict[str, Any]:
        """Returns it as OpenAI's API does, and what it shows beside that."""
        shows = ("width", "height", "duration_s", "fps")
        fields = dataclasses.asdict(self)
        own = {name: fields.pop(name) for name in shows}
        return {"object": "file", "status": "processed", **fields, "o3": own}


@dataclasses.dataclass(frozen=True)
class Medium:
    """A file to be asked about, and what it is called."""

    path: Path
    name: str


class Files:
    """The uploads of a server, in a folder of their own, which outlive it.

    Args:
        most_bytes: of one file, of which there may be `most_files`.
        media_root: paths below it may be asked about; None: none.
        hosts: that may be fetched from, as in a URL.
    """

    def __init__(
        self,
        folder: Path,
        videos: Videos,
        *,
        most_bytes: int,
        most_files: int,
        media_root: Path | None = None,
        hosts: Iterable[str] = (),
    ):
        self.folder, self.videos = folder, videos
        self.most_bytes, self.most_files = most_bytes, most_files
        self.media_root, self.hosts = media_root, {host.lower() for host in hosts}
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.part"):  # of a server that was killed
            left.unlink()
        self._files: dict[str, Stored] = {}
        for path in folder.glob("file-*.json"):
            with contextlib.suppress(UserError, TypeError):
                stored = Stored(**read_json(path))
                if _ID.fullmatch(stored.id) and self._data(stored.id).is_file():
                    self._files[stored.id] = stored

    def add(self, content: IO[bytes], filename: str, purpose: str) -> Stored:
        """Returns an upload that was kept.

        Raises:
            ApiError: there are too many, or it is too large.
            UserError: it is neither a video nor a picture.
        """
        if len(self._files) >= self.most_files:
            raise ApiError(413, f"{self.most_files} files are stored: delete some", "storage_full")
        name = f"file-{secrets.token_hex(12)}"
        part = self.folder / f"{name}.part"
        try:
            size = self._copy(content, part)
            with named(filename, part):
                info = self.videos.info(part)
            shown = printable(PurePath(filename.replace("\\", "/")).name)[:200] or "video"
            stored = Stored(
                *(name, shown, size, int(time.time()), printable(purpose)[:50]),
                *(info.width, info.height, info.duration_s, info.fps),
            )
            part.rename(self._data(name))
            write_json(self.folder / f"{name}.json", dataclasses.asdict(stored))
        finally:
            part.unlink(missing_ok=True)
        with self._lock:
            self._files[name] = stored
        return stored

    def all(self) -> list[Stored]:
        """Returns the uploads, the newest first."""
        with self._lock:
            return sorted(self._files.values(), key=lambda file: (-file.created_at, file.id))

    def get(self, name: str) -> tuple[Stored, Path]:
        """Returns an upload and where it is; ApiError if there is none of this id."""
        with self._lock:
            stored = self._files.get(name)
        if stored is None:
            raise ApiError(404, f"there is no file {name[:100]!r}", "not_found")
        return stored, self._data(name)

    def remove(self, name: str) -> None:
        """Deletes an upload; ApiError if there is none of this id."""
        self.get(name)
        with self._lock:
            self._files.pop(name, None)
        for path in (self.folder / f"{name}.json", self._data(name)):
            path.unlink(missing_ok=True)

    def medium(self, url: str) -> Medium:
        """Returns the file that a URL of a request names.

        What was sent or fetched for one request is kept until many others came, for its report.

        Raises:
            ApiError, UserError: it names none, or one that may not be read.
        """
        kind = url[:200].partition(":")[0].lower() if ":" in url[:200] else ""
        if _ID.fullmatch(url):
            stored, path = self.get(url)
            return Medium(path, stored.filename)
        if kind == "data":
            return Medium(self._passing(lambda path: self._decode(url, path)), "data URL")
        if kind in ("http", "https"):
            host = self._allowed(url)
            name = PurePath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name or host
            return Medium(self._passing(lambda path: self._fetch(url, host, path)), printable(name)[:200])
        if self.media_root is not None and len(url) < 4096:
            with named("the media root", self.media_root):
                path = inside(self.media_root, url)
                if not path.is_file():
                    raise MissingFileError(f"{url[:200]!r} is no file; name a video")
            return Medium(path, printable(url)[:200])
        raise ApiError(400, f"{url[:100]!r} names no uploaded file; upload it to /v1/files", "bad_url")

    def _data(self, name: str) -> Path:
        return self.folder / f"{name}.data"

    def _passing(self, write: Callable[[Path], None]) -> Path:
        """Returns the file that `write` writes, under a name that its content gives it."""
        part = self.folder / f"{secrets.token_hex(12)}.part"
        try:
            write(part)
            with part.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            path = self.folder / f"passing-{digest}.data"
            if not path.exists():
                part.rename(path)
            os.utime(path)
        finally:
            part.unlink(missing_ok=True)
        kept = sorted(self.folder.glob("passing-*.data"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-_PASSING]:
            old.unlink(missing_ok=True)
        return path

    def _copy(self, content: IO[bytes], path: Path, until: float | None = None) -> int:
        size = 0
        with path.open("xb") as out:
            while chunk := content.read(_CHUNK):
                size += len(chunk)
                if size > self.most_bytes:
                    raise ApiError(413, f"the file is larger than {self.most_bytes} bytes", "too_large")
                if until is not None and time.monotonic() > until:
                    raise ApiError(422, f"fetching it took longer than {_FETCH_S:g} s", "fetch_failed")
                out.write(chunk)
        return size

    def _decode(self, url: str, path: Path) -> None:
        head = _DATA.match(url, 0, 300)
        if head is None:
            raise ApiError(422, "a data URL must be data:TYPE;base64,...", "bad_data_url")
        if (len(url) - head.end()) * 3 // 4 > self.most_bytes:
            raise ApiError(413, f"the file is larger than {self.most_bytes} bytes", "too_large")
        try:
            path.write_bytes(base64.b64decode(url[head.end() :], validate=True))
        except (binascii.Error, ValueError):
            raise ApiError(422, "the data URL is no base64", "bad_data_url") from None

    def _allowed(self, url: str) -> str:
        """Returns the host of a URL that may be fetched."""
        try:
            parts = urllib.parse.urlsplit(url)
            host = parts.netloc.lower()
            _ = parts.port
        except ValueError:
            host = ""
        # The host is compared as it is written: no user, no other port, no other spelling of an address.
        if not host or host not in self.hosts or re.search(r"[\s\x00-\x1f\\]", url):
            raise ApiError(
                400, f"the server fetches nothing from {host[:100]!r}; upload the file", "url_not_allowed"
            )
        return host

    def _fetch(self, url: str, host: str, path: Path) -> None:
        parts = urllib.parse.urlsplit(url)
        secure = parts.scheme.lower() == "https"
        connection = (http.client.HTTPSConnection if secure else http.client.HTTPConnection)(
            host, timeout=_FETCH_S / 10
        )
        until = time.monotonic() + _FETCH_S
        try:
            target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
            query = f"?{urllib.parse.quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else ""
            connection.request("GET", target + query, headers={"Accept-Encoding": "identity"})
            response = connection.getresponse()
            if response.status != 200:  # a redirect leads elsewhere, and is not followed
                raise ApiError(422, f"{host} answers {response.status} for this URL", "fetch_failed")
            self._copy(response, path, until)
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(
                422, f"fetching from {host} fails ({type(error).__name__})", "fetch_failed"
            ) from None
        finally:
            connection.close()


@contextlib.contextmanager
def named(name: str, path: Path) -> Iterator[None]:
    """Lets errors about a file speak of it by the name that people know."""
    try:
        yield
    except UserError as error:
        said = str(error).replace(str(path.resolve()), name).replace(str(path), name)
        raise type(error)(said) from None
