"""Files that appear whole or not at all, JSON that is read or refused in one sentence, paths into stores.

What is written may lie in a store such as `gs://bucket/run`; etils.epath reaches it. What a library must map
or seek in, a video or a file of weights, has to be on a disk: `local_path` says so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import math
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from etils import epath

from o3jax.errors import UserError

PART = ".part"  # how the names of unfinished files and folders end
_OLD = "old"  # what a folder is numbered while a new one takes its place
_READER_S = 10.0  # that a pipe waits for somebody who reads it
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSALS = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG, errno.EMFILE)
T = TypeVar("T", dict, list)


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path names a place in a store, such as gs://bucket/run."""
    return os.fspath(path).startswith(("gs://", "s3://", "az://"))


def as_path(path: str | os.PathLike) -> Path | epath.Path:
    """Returns a user's path as a `pathlib.Path`, or as an `epath.Path` where it names a store.

    Raises:
        UserError: if it is empty, or the library that reaches this store is not installed.
    """
    if not os.fspath(path):
        raise UserError("the name of a file or folder is empty: write one")
    if not is_remote(path):
        return Path(path)
    import fsspec  # half a second

    scheme = os.fspath(path).partition(":")[0]
    try:
        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        raise UserError(f"{os.fspath(path)} cannot be reached ({error}): install what is missing") from None
    return epath.Path(path)


def local_path(path: str | os.PathLike, what: str) -> Path:
    """Returns a user's path as a `pathlib.Path`.

    Args:
        what: is there, as part of the error's sentence: "a model's weights".

    Raises:
        UserError: if it names a store.
    """
    if is_remote(path):
        raise UserError(
            f"{os.fspath(path)}: {what} must be on a disk: copy it there first, such as with "
            "`gcloud storage cp -r`, or mount the bucket"
        )
    return Path(path)


def refusal(error: BaseException) -> str:
    """Returns what the system said when it refused to read or write, "" for an error of another kind.

    Libraries that write (safetensors, tensorstore, ArrayRecord) tell it in the text of errors of their own.
    """
    text = str(error)
    if isinstance(error, OSError):
        return error.strerror or text
    return next((words for words in map(os.strerror, _REFUSALS) if words in text), "")


def refused(error: BaseException, path: str = "") -> str:
    """Returns the sentence for a user whom the system refused to read or write, "" for another error.

    Args:
        path: what was to be written. An error that names another file, none of ours, is said of that one.
    """
    if not (why := refusal(error)):
        return ""
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)
    ours = not isinstance(named, str) or named.endswith(PART) or f"{PART}{os.sep}" in named
    what = f"cannot write {path or 'the output'}" if ours else f"{named} cannot be used"
    remedy = "make room there, or name" if why in map(os.strerror, _FULL) else "name"
    return f"{what} ({why}): {remedy} another place"


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Raises a UserError that names the path where the system refuses what the block does.

    Such as for want of room or permission.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not (sentence := refused(error, os.fspath(path))):
            raise
        raise UserError(sentence) from error


def mode_of(path: str | os.PathLike) -> int | None:
    """Returns the mode of what a path leads to; None where nothing is."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def is_stream(mode: int | None) -> bool:
    """Whether it takes what is written to it and must not be replaced, as a terminal does, or a pipe."""
    return mode is not None and (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode))


def _open_stream(path: str | os.PathLike) -> BinaryIO | None:
    """Returns what is written to in its place: a device, a pipe, a file that this process prints to.

    None where there is an ordinary file or none. A pipe is waited for until somebody reads it.
    """
    mode = mode_of(path)
    if mode is None:
        return None
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(path), os.fstat(number)):
                stream.flush()
                return open(os.dup(number), "wb")
    if stat.S_ISREG(mode):
        return None
    if not is_stream(mode):
        raise UserError(f"cannot write {os.fspath(path)}: it is no ordinary file; name another one")
    until = time.monotonic() + _READER_S
    while True:
        try:
            opened = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:  # ENXIO: nobody reads the pipe
            if error.errno != errno.ENXIO or time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            os.set_blocking(opened, True)
            return open(opened, "wb")


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a local path to write to; it becomes `path` if the block ends well, and else goes.

    A link stays, and the file that it leads to becomes the new one. A device or a pipe, such as /dev/stdout,
    is written to when the file is complete.

    Raises:
        UserError: if the folder does not exist, something that is no file has the name, or the system
            refuses to write, such as for want of room.
    """
    target = as_path(path)
    with writing(path):
        # A stream takes the file when it is complete, and an upload appears then.
        stream = None if is_remote(path) else _open_stream(target)
        if stream or is_remote(path):
            with stream or contextlib.nullcontext(), tempfile.TemporaryDirectory(prefix="o3jax-") as folder:
                temporary = Path(folder) / "file"
                yield temporary
                if stream:
                    with temporary.open("rb") as made:
                        shutil.copyfileobj(made, stream)
                else:
                    epath.Path(temporary).copy(target, overwrite=True)
            return
        target = Path(os.path.realpath(target))
        if not target.parent.is_dir():
            raise UserError(f"cannot write {path}: its folder does not exist; create it first")
        with _unfinished(target) as temporary:
            yield temporary
            os.replace(temporary, target)


def try_to_write(path: str | os.PathLike) -> None:
    """Raises a UserError where the system would not take a file of this name; leaves nothing."""
    with writing(path), _unfinished(Path(path)):
        pass


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike, *, replace: bool = False) -> Iterator[Path]:
    """Yields a local folder to fill, which becomes `path` if the block ends well, and else goes.

    In a store, which knows no folders, the files are uploaded one after the other when all are written.

    Args:
        replace: a folder that is there is replaced, and stays until the new one is complete.

    Raises:
        UserError: if there is something else than an empty folder, or the system refuses to write.
    """
    target = as_path(path)
    if not replace or not target.is_dir():
        check_new_folder(path)
    with writing(path):
        if is_remote(path):
            with tempfile.TemporaryDirectory(prefix="o3jax-") as folder:
                yield Path(folder)
                target.mkdir(parents=True, exist_ok=True)
                for file in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
                    epath.Path(file).copy(target / file.relative_to(folder).as_posix(), overwrite=True)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        target = Path(os.path.realpath(target))
        with _unfinished(target, folder=True) as temporary:
            yield temporary
            if not replace:
                os.rename(temporary, target)
                return
            old = _unfinished_name(target, _OLD)
            _remove(old)
            with contextlib.suppress(FileNotFoundError):
                os.rename(target, old)
            os.rename(temporary, target)
            _remove(old)


def check_new_folder(path: str | os.PathLike) -> None:
    """Raises a UserError if there is something else than an empty folder."""
    target = as_path(path)
    with writing(path):
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise UserError(f"{target} exists and is not an empty folder: choose another one")


def clear_unfinished(folder: Path) -> None:
    """Deletes what killed processes left half written in a folder that nobody else writes to.

    A folder that was to be replaced at that moment is put back.
    """
    ending = f".{_OLD}{PART}"
    for left in [path for path in folder.iterdir() if path.name.endswith(PART)]:
        target = left.with_name(left.name.removesuffix(ending)[1:])
        if left.name.endswith(ending) and not target.exists():
            os.rename(left, target)
        else:
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _unfinished(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yields an empty file or folder beside `target` that no other writer uses, and deletes it at the end.

    Writers number their names and lock what bears them. So what a killed one left is not locked, and
    is taken over by the next that writes the same target.
    """
    numbers: Iterator[int | str] = itertools.count()
    number = next(numbers)
    while True:
        temporary = _unfinished_name(target, number)
        if folder:
            temporary.mkdir(exist_ok=True)
        opened = os.open(temporary, os.O_RDONLY | (0 if folder else os.O_CREAT), 0o666)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(opened)
            number = next(numbers)
            continue
        except OSError:  # a file system without locks: a name that nobody else has
            if isinstance(number, int):
                os.close(opened)
                number = secrets.token_hex(8)
                continue
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(temporary), os.fstat(opened)):  # not renamed or deleted meanwhile
                break
        os.close(opened)
    try:
        if folder:
            for left in temporary.iterdir():
                _remove(left)
        else:
            os.truncate(temporary, 0)
        yield temporary
    finally:
        if folder:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        os.close(opened)


def _unfinished_name(target: Path, number: int | str) -> Path:
    """Returns a name beside `target` that its content has until it is complete."""
    name = f".{target.name}.{number}{PART}"
    if len(os.fsencode(name)) > os.pathconf(target.parent, "PC_NAME_MAX"):
        name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32]}.{number}{PART}"
    return target.with_name(name)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with whole_file(path) as temporary:
        # The name of a video may be no UTF-8: a question mark then, and no error after all the work.
        temporary.write_text(text, encoding="utf-8", errors="replace")


def append_text(path: Path, text: str) -> None:
    """Adds to a text file on a disk."""
    with writing(path), path.open("a", encoding="utf-8", errors="replace") as file:
        file.write(text)


def write_json(path: str | os.PathLike, values: Any, **options: Any) -> None:
    """Writes a JSON file, whole or not at all.

    Args:
        options: of `json.dumps`.
    """
    write_text(path, json_text(values, **options) + "\n")


def json_text(values: Any, **options: Any) -> str:
    """Returns values as JSON; NaN and infinities, which JSON does not have, become null.

    Args:
        options: of `json.dumps`.
    """
    try:
        return json.dumps(values, ensure_ascii=False, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(values), ensure_ascii=False, allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def read_json(path: str | os.PathLike, kind: type[T] = dict) -> T:
    """Returns the object that a JSON file holds, or the list.

    Raises:
        UserError: if the file cannot be read, is no JSON, or holds something else.
    """
    path = as_path(path)
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore the file") from error
    if not isinstance(value, kind):
        raise UserError(f"{path} must hold a JSON {_NAMES[kind]}: restore the file")
    return value


_NAMES = {dict: "object", list: "list"}


def code_hash(files: Iterable[Path], *libraries: str) -> str:
    """Returns a hash of source files and of the libraries' versions: what a cache was made by."""
    code = [file.read_bytes() for file in files] + [version(library).encode() for library in libraries]
    return hashlib.sha256(b"\0".join(code)).hexdigest()[:16]
