"""Settings that every test shares, and the tiny reference models as session fixtures."""

from __future__ import annotations

import gc
import os
from pathlib import Path

# Before jax or transformers is imported: the CPU with eight virtual devices, and never the network.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ[name] = "1"
os.environ["O3JAX_CACHE"] = ""  # features of long videos are kept where a test says so
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# What follows is in the environment, so that commands that a test starts share it. Programs are compiled
# with little effort, in a third of the time: tests compile for longer than they run.
# Eight virtual devices share few cores: on a busy machine one may wait for the others for minutes.
_FLAGS = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",  # the other core has tests of its own
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".cache" / "jax")
)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# Tracing makes many objects and few cycles; looking for these took a twelfth of the time.
gc.set_threshold(50_000, 10, 10)

# Few files that take long: first, so that no process waits for them at the end.
_LONG = (
    *("test_train_loop.py", "test_gspo_loop.py", "test_joint.py", "test_configs.py", "test_hosts.py"),
    *("test_bench_gpu.py", "test_wheel.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the files; xdist hands them out in this order."""
    items.sort(key=lambda item: item.path.name not in _LONG)
    gc.freeze()  # what is imported by now stays


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    """A function that returns the tiny reference model of a kind (see tests/support/tiny.py), made once."""
    from tests.support.tiny import Reference

    made: dict[str, Reference] = {}

    def get(kind: str) -> Reference:
        if kind not in made:
            made[kind] = Reference.make(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return get


@pytest.fixture(scope="session")
def video_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a very small random Qwen3-VL with a tokenizer, that can be asked about a video."""
    from tests.support.tiny import make_video_model

    return make_video_model(tmp_path_factory.mktemp("video_model"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of the synthetic world: 6 s, 128 x 128 pixels, 25 frames per second, H.264 in mp4."""
    from data_pipelines.synthetic.datasets import write_video
    from data_pipelines.synthetic.scenes import make_scene

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(make_scene(8), path)
    return path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The benchmarks of the field in their official layouts, made of the synthetic world."""
    from data_pipelines.synthetic.benchmarks.make import make_benchmarks

    make_benchmarks(folder := tmp_path_factory.mktemp("benchmarks"))
    return folder


@pytest.fixture(scope="session")
def numbered(tmp_path_factory: pytest.TempPathFactory):
    """A `videos.Fixture` of four seconds at 10 frames per second, each frame with its number."""
    from fractions import Fraction

    from tests.support import numbered as videos

    return videos.write_video(tmp_path_factory.mktemp("numbered") / "clip.mp4", range(40), Fraction(1, 10))
