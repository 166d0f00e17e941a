"""A folder that one run uses at a time."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO

from o3jax.errors import UserError


def lock_folder(folder: Path, flag: str, name: str = ".lock") -> TextIO:
    """Returns the open file that shows other runs, as long as this process lives, whose a folder is.

    Args:
        flag: names the folder on the command line.
        name: of the file; runs with different ones share the folder.

    Raises:
        UserError: if another run uses it.
    """
    file = (folder / name).open("a+", encoding="utf-8", errors="replace")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise UserError(
            f"{folder} is used by another run ({file.read(100)}): wait for its end, or give another {flag}"
        ) from None
    except OSError:  # a file system without locks
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file
