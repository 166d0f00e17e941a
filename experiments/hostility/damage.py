"""What happens to workdirs, disks and command lines in `experiments.hostility.runs`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from experiments.hostility.changes import Change, write


def _newest(run: Path) -> Path:
    steps = [path for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    return max(steps, key=lambda path: int(path.name))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _each(what: Callable[[Path], None]) -> Change:
    """Returns a damage of every file of the newest checkpoint."""
    return lambda run: [what(path) for path in _files(_newest(run))] and None


def _halve(path: Path) -> None:
    write(path, path.read_bytes()[: path.stat().st_size // 2])


def _insert(name: str, content: bytes) -> Change:
    """Returns a damage that puts bytes behind the first line of a file."""

    def change(run: Path) -> None:
        first, _, rest = (
            (run / name).read_bytes().partition(b"\n") if (run / name).exists() else (b"", b"", b"")
        )
        write(run / name, first + b"\n" + content + rest)

    return change


def _folder(name: str) -> Change:
    """Returns a damage that puts a folder where there may be a file."""
    return lambda run: ((run / name).unlink(missing_ok=True), (run / name).mkdir(parents=True)) and None


def _file(name: str) -> Change:
    """Returns a damage that puts a file where there may be a folder."""
    return lambda run: (shutil.rmtree(run / name, ignore_errors=True), write(run / name, b"x")) and None


def _link(name: str, target: str) -> Change:
    """Returns a damage that puts a link where there may be a folder."""

    def change(run: Path) -> None:
        shutil.rmtree(run / name, ignore_errors=True)
        os.symlink(target, run / name)

    return change


def _part(name: str) -> Change:
    return lambda run: ((run / name).mkdir(), write(run / name / "x", b"x" * 1000)) and None


DAMAGES: dict[str, Change] = {
    "config/cut": lambda run: _halve(run / "config.json"),
    "config/empty": lambda run: write(run / "config.json", b""),
    "config/list": lambda run: write(run / "config.json", b"[]"),
    "config/bytes": lambda run: write(run / "config.json", b"\xff\xfe\x00"),
    "config/deep": lambda run: write(run / "config.json", b"[" * 100_000),
    "config/missing": lambda run: (run / "config.json").unlink(),
    "config/folder": _folder("config.json"),
    "log/bytes": _insert("metrics.jsonl", b'\xff\xfe{"step": 1}\n'),
    "log/no object": _insert("metrics.jsonl", b'5\n[]\nnull\n"x"\n'),
    "log/no step": _insert("metrics.jsonl", b'{"loss": 1}\n{"step": "two"}\n{"step": null}\n'),
    "log/deep": _insert("metrics.jsonl", b"[" * 100_000 + b"\n"),
    "log/empty lines": _insert("metrics.jsonl", b"\n\n\r\n"),
    "log/folder": _folder("metrics.jsonl"),
    "failed/bytes": _insert("failed.jsonl", b"\xff\n"),
    "failed/folder": _folder("failed.jsonl"),
    "rejected/bytes": _insert("rejected.jsonl", b"\xff\n"),
    "costs/bytes": lambda run: write(run / "costs.json", b"\xff"),
    "costs/folder": _folder("costs.json"),
    "newest/cut": _each(_halve),
    "newest/empty": _each(lambda path: write(path, b"")),
    "newest/zeros": _each(lambda path: write(path, bytes(path.stat().st_size))),
    "newest/no files": _each(lambda path: path.unlink()),
    "newest/no state": lambda run: shutil.rmtree(_newest(run) / "state"),
    "newest/no data": lambda run: shutil.rmtree(_newest(run) / "data"),
    "newest/no metadata": lambda run: [p.unlink() for p in _newest(run).rglob("*METADATA*")] and None,
    "newest/a file": lambda run: _file(f"checkpoints/{_newest(run).name}")(run),
    "newest/gone": lambda run: shutil.rmtree(_newest(run)),
    "all/cut": lambda run: [_halve(path) for path in _files(run / "checkpoints")] and None,
    "all/gone": lambda run: shutil.rmtree(run / "checkpoints"),
    "stray/folder": lambda run: (run / "checkpoints" / "notes").mkdir(),
    "stray/number": lambda run: (run / "checkpoints" / "99").mkdir(),
    "stray/file": lambda run: write(run / "checkpoints" / "readme", b"x"),
    "stray/number file": lambda run: write(run / "checkpoints" / "99", b"x"),
    "stray/half": _part("checkpoints/5.orbax-checkpoint-tmp"),
    "half/model": _part(".model.0.part"),
    "half/old model": _part(".model.old.part"),
    "half/file": lambda run: write(run / ".config.json.7.part", b"{"),
    "file/checkpoints": _file("checkpoints"),
    "file/model": _file("model"),
    "file/tensorboard": _file("tensorboard"),
    "file/samples": _file("samples"),
    "file/all": lambda run: (shutil.rmtree(run), write(run, b"x")) and None,
    "link/model": lambda run: ((run / "elsewhere").mkdir(), _link("model", "elsewhere")(run)) and None,
    "link/loop": _link("model", "model"),
    "rollouts/cut": lambda run: [_halve(path) for path in run.glob("rollout_*")] and None,
    "rollouts/gone": lambda run: [path.unlink() for path in run.glob("rollout_*")] and None,
}

# Of a run that saves in the middle, and of an iteration of GSPO too.
_TRAINS = "--config.max_steps=6 --config.save_every=3 --config.log_every=1 --config.warmup_steps=0"
_SFT = f"sft --config=sft_tiny:questions --config.model_name_or_path=MODEL --config.data_path=DATA {_TRAINS}"
_SFT += " --config.per_device_train_batch_size=2 --config.questions_per_row=2"
_GSPO = f"gspo --config=gspo_tiny --config.sft_model_path=MODEL --config.rl_data_path=DATA {_TRAINS}"
_GSPO += " --config.prompts_per_iteration=2 --config.group_size=2 --config.minibatches_per_rollout=2"
_GSPO += " --config.max_completion_length=8 --config.reward=format --config.eval_every=0"
STAGES = {"sft": tuple(_SFT.split()), "gspo": tuple(_GSPO.split())}
_ASK = "answer --video_path=CLIP --model_path=MODEL --question=When?"

# What writes, and the KiB of the disks that it writes to.
FULL: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "sft": (f"{_SFT} --workdir=DISK/run".split(), (8, 64, 700, 2000, 3500)),
    "gspo": (f"{_GSPO} --workdir=DISK/run".split(), (8, 64, 700, 2000)),
    "frame cache": (f"{_SFT} --workdir=DISK-run --config.frame_cache=DISK/cache".split(), (8, 200)),
    "json": (f"{_ASK} --json=DISK/a.json".split(), (4,)),
    "report": (f"{_ASK} --report=DISK/a.html".split(), (64,)),
    "annotated": (f"{_ASK} --annotated=DISK/a.mp4".split(), (8,)),
    "evaluate": ("evaluate --model_path=MODEL --num_questions=4 --out=DISK/a.json".split(), (4,)),
    "data make": ("data make --count=4 --out=DISK/set".split(), (8, 100)),
    "data build": ("data build DATA --out=DISK/set".split(), (8, 100)),
    "data check": ("data check DATA --out=DISK/pictures".split(), (8,)),
    "convert": ("convert --source=MODEL --target=DISK/model".split(), (8, 300)),
}

_FIELDS = f"""
seed=100000000000000000000 seed=-1 seed=x num_workers=100000 num_workers=-1
frame_cache_gib=nan frame_cache_gib=inf feature_cache_gib=-1 warmup_steps=1000000000
learning_rate=nan learning_rate=1e300 max_steps=-1 max_steps=1e3 num_train_epochs=inf
row_length=0 row_length=1000000000000 row_patches=-5 mesh.data=0 mesh.data=9999999999
lora.rank=-1 lora.alpha=nan optimizer= remat=maybe compute_dtype=float3 video.fps=1e300
video.fps=nan frames.fps=0 frames.min_frames=99 adam_b2=1 max_grad_norm=nan save_every=0
max_failed_share=2 nothing=1 mesh=5 a.b.c=1 =1 max_steps={"9" * 5000}
""".split()
_CONFIGS = ["/etc/passwd", "/dev/zero", "", "/tmp", "nowhere", "sft_tiny:nothing"]
_CONFIGS += ["MODEL", "CLIP", "MODEL/config.json"]
_STAGE = [f"--workdir=WORK --config.{field}" for field in _FIELDS]
_STAGE += [f"--workdir=WORK --config={path}" for path in _CONFIGS]
_STAGE += ["--workdir=", "--workdir=/dev/null", "--workdir=CLIP", "--workdir=CLIP/run"]
_STAGE += ["--workdir=gs://b/run", "--workdir=/proc/none", "--workdir=WORK --nothing", "--workdir", ""]
_ASKS = [f"--fps={fps}" for fps in ("1e300", "nan", "inf", "0", "-1", "x", "1e-300", "")]
_ASKS += [
    f"--{flag}={to}" for flag in ("json", "report", "annotated") for to in ("", "/nowhere/a", "/tmp", "CLIP")
]
_ASKS += ["--json=/proc/a", "--json=WORK --report=WORK", f"--json={'n' * 256}", f"--json=/{'a/' * 3000}b"]
_ASKS += ["--model_path=", "--model_path=CLIP", "--model_path=/dev/null", "--question=", "more"]
_LEVELS = [f"--{flag}={n}" for flag in ("level", "seed") for n in ("-1", "x", "1e3", "99999999999999999999")]
_GSPO_FIELDS = ("group_size=1", "reward=none", "stop=(1,)", "clip_low=nan")
_EVALUATIONS = "--num_questions=0 --num_questions=1e9 --batch_size=0 --max_new_tokens=-1 --out= --out=/tmp"
_EVALUATIONS += " --out=/nowhere/a --benchmark=none --split=none --data_root=CLIP"
WRONG_FLAGS: dict[str, list[str]] = {
    "sft": _STAGE,
    "gspo": [*_STAGE, *(f"--workdir=WORK --config.{field}" for field in _GSPO_FIELDS)],
    "ground": _STAGE[:8],
    "answer": [f"--video_path=CLIP --question=When? {flag}" for flag in _ASKS],
    "evaluate": [*_LEVELS, *_EVALUATIONS.split()],
    "data": [f"make --out=WORK {flag}" for flag in (*_LEVELS, "--count=0", "--count=-5", "--format=none")]
    + [
        "make",
        "make --out=",
        "make --out=CLIP",
        "build DATA",
        "build DATA --out=",
        "check",
        "check /nowhere",
        "what",
    ]
    + ["check DATA --out=CLIP", "audit DATA --reward=none"],
    "convert": ["--source=MODEL --target=", "--source=MODEL --target=DATA", "--source=CLIP --target=WORK"]
    + ["--source= --target=WORK", "--source=MODEL --target=WORK --dtype=int3", "--source=MODEL"],
}
