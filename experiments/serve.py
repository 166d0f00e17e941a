"""`o3jax serve`: a page to ask videos, and an API that OpenAI's clients speak.

The page is at http://127.0.0.1:8000/, the API below /v1. docs/serve.md says more.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.cli import shell
from o3jax.errors import UserError
from o3jax.files import try_to_write

_MODEL = flags.DEFINE_string("model_path", "o3-tiny", "A model folder, or the embedded o3-tiny.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Where to listen; --api_key is needed beyond this machine.")
_PORT = flags.DEFINE_integer("port", 8000, "The port; 0 takes a free one.", 0, 65535)
_KEY = flags.DEFINE_string("api_key", None, "What clients must send; better in the variable O3JAX_API_KEY.")
_FOLDER = flags.DEFINE_string("workdir", "o3jax-serve", "Keeps uploads, answers and reviews.")
_ROOT = flags.DEFINE_string("media_root", None, "A folder; paths below it may be asked about.")
_HOSTS = flags.DEFINE_multi_string(
    "allow_url", [], "A host (HOST or HOST:PORT) that videos may be fetched from."
)
_SLOTS = flags.DEFINE_integer("slots", 8, "Texts that are generated at a time.", 1, 1024)
_QUEUE = flags.DEFINE_integer("max_queue", 64, "Requests that may wait; more are refused with 429.", 1, 10**6)
_TIMEOUT = flags.DEFINE_float("request_timeout", 300, "Seconds that a request may take, waiting included.", 1)
_GRACE = flags.DEFINE_float("grace", 60, "Seconds that requests have to end after SIGTERM.", 0)
_TOKENS = flags.DEFINE_integer("max_tokens", 768, "Of a text at most.", 1, 2**16)
_UPLOAD = flags.DEFINE_integer("max_upload_mib", 512, "Of a file.", 1, 2**20)
_BODY = flags.DEFINE_integer("max_body_mib", 64, "Of a chat request, data URLs included.", 1, 2**11)
_FILES = flags.DEFINE_integer("max_files", 256, "Uploads that are stored.", 1, 10**6)
_DURATION = flags.DEFINE_float("max_duration_s", 4 * 3600.0, "Of a video.", 0.1)
_PIXELS = flags.DEFINE_integer("max_pixels", 8192 * 4320, "Of a frame.", 1)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: o3jax serve takes flags alone, see --help")
    try:
        import fastapi  # noqa: F401
        import multipart  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"o3jax serve needs the package {error.name}: pip install 'o3jax[serve]'") from None
    from experiments.serving.security import is_loopback
    from experiments.serving.server import Server, listen

    key, loopback = _KEY.value or os.environ.get("O3JAX_API_KEY") or None, is_loopback(_HOST.value)
    if key is None and not loopback:
        raise UserError(
            f"--host={_HOST.value} is open to other machines: set O3JAX_API_KEY to a key that they must send"
        )
    root = Path(_ROOT.value) if _ROOT.value is not None else None
    if root is not None and not root.is_dir():
        raise UserError(f"--media_root={root} is no folder: name one that holds videos")
    folder = Path(_FOLDER.value)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try_to_write(folder / "probe")
    except OSError as error:
        raise UserError(f"--workdir={folder} cannot be written ({error.strerror}): name another") from None
    with listen(_HOST.value, _PORT.value) as socket:
        # After the flags are checked: starting JAX takes seconds.
        from data_pipelines.reading.guarded import Limits
        from experiments.serving.answers import Answers
        from experiments.serving.app import guarded, make_app
        from experiments.serving.engine import Engine
        from experiments.serving.files import Files
        from experiments.serving.videos import Videos

        model = shell.load_model(_MODEL.value)
        most_bytes = _UPLOAD.value * 2**20
        limits = dataclasses.replace(
            Limits(), max_duration_s=_DURATION.value, max_pixels=_PIXELS.value, max_bytes=most_bytes
        )
        videos = Videos(limits)
        files = Files(
            folder / "files",
            videos,
            most_bytes=most_bytes,
            most_files=_FILES.value,
            media_root=root,
            hosts=_HOSTS.value,
        )
        engine = Engine(
            model,
            videos,
            slots=_SLOTS.value,
            max_tokens=_TOKENS.value,
            queue=_QUEUE.value,
            seconds=_TIMEOUT.value,
        )
        answers = Answers(folder / "answers", videos)
        app = make_app(engine, files, answers, max_tokens=_TOKENS.value)
        guard = guarded(app, key=key, loopback=loopback, max_upload=most_bytes, max_chat=_BODY.value * 2**20)
        host, port = socket.getsockname()[:2]
        print(f"serving {model.folder.name} at http://{f'[{host}]' if ':' in host else host}:{port}/")
        sys.stdout.flush()
        Server(guard, engine, _GRACE.value).run(sockets=[socket])
        videos.close()


if __name__ == "__main__":
    shell.run(main)
