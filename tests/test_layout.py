"""Imports point one way, and what data workers import stays light."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("o3jax", "data_pipelines", "configs", "experiments")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "torch", "tensorflow"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


@functools.cache
def imports_of(name: str) -> set[str]:
    """Returns the absolute names that a module imports, wherever in the file the import stands.

    `from a import b` counts as a.b where that is a module of ours, and as a otherwise. What only a
    type checker sees is left out.
    """
    path = MODULES[name]
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                visit(other)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide where a module stands"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


# Each package: the project's modules that it may import beside its own. LEAVES everyone may import.
LEAVES = tuple(
    f"o3jax.{name}"
    for name in (
        "arrays",
        "child",
        "choices",
        "errors",
        "fields",
        "files",
        "grounding",
        "notes",
        "printing",
        "searched",
        "started",
        "tasks",
    )
)
ALLOWED = {
    "o3jax.arrays": (),
    "o3jax.child": (),
    "o3jax.choices": (),
    "o3jax.errors": (),
    "o3jax.fields": (),
    "o3jax.files": (),
    "o3jax.grounding": (),
    "o3jax.notes": (),
    "o3jax.printing": (),
    "o3jax.searched": (),
    "o3jax.started": (),
    "o3jax.tasks": (),
    "o3jax.sharding": (),
    "o3jax.video": (),
    "o3jax.prompts": (),
    "o3jax.inputs": ("o3jax.models.config", "o3jax.models.batch", "o3jax.prompts", "o3jax.video"),
    "o3jax.models": ("o3jax.sharding",),
    "o3jax.hf": ("o3jax.models", "o3jax.sharding", "o3jax.prompts", "o3jax.inputs", "o3jax.video"),
    "o3jax.generate": ("o3jax.models", "o3jax.sharding"),
    "o3jax.train": ("o3jax.models", "o3jax.sharding"),
    "o3jax.sft": ("o3jax.models", "o3jax.sharding", "o3jax.train"),
    "o3jax.gspo": ("o3jax.models", "o3jax.sharding", "o3jax.train"),
    "o3jax.metrics": (),
    "o3jax.rewards": ("o3jax.prompts", "o3jax.metrics"),
    "o3jax.verify": ("o3jax.prompts", "o3jax.metrics"),
    "o3jax.inference": (
        *("o3jax.generate", "o3jax.inputs", "o3jax.metrics", "o3jax.models", "o3jax.prompts", "o3jax.verify"),
        "o3jax.video",
    ),
    "o3jax.report": ("o3jax.video", "o3jax.prompts", "o3jax.metrics", "o3jax.verify"),
    "o3jax": ("o3jax",),
    "data_pipelines": (
        *("o3jax.video", "o3jax.inputs", "o3jax.prompts", "o3jax.models.config", "o3jax.models.batch"),
    ),
    "configs": ("data_pipelines.rows.frames", "o3jax.models.config", "o3jax.prompts.feedback"),
    "experiments": ("o3jax", "data_pipelines", "configs"),
}
LIGHT = (
    "o3jax.video",
    "o3jax.inputs",
    "o3jax.prompts",
    "o3jax.metrics",
    "o3jax.rewards",
    "o3jax.verify",
    "o3jax.report",
    "o3jax.arrays",
    "o3jax.child",
    "o3jax.choices",
    "o3jax.errors",
    "o3jax.fields",
    "o3jax.files",
    "o3jax.grounding",
    "o3jax.notes",
    "o3jax.printing",
    "o3jax.searched",
    "o3jax.started",
    "o3jax.tasks",
    "o3jax.models.batch",
    "o3jax.models.config",
    "data_pipelines",
    "configs",
)


def package_of(name: str) -> str:
    """Returns the longest entry of the table that holds a module."""
    best = max((package for package in ALLOWED if inside(name, package)), key=len)
    if best == "o3jax":
        assert name in ("o3jax", "o3jax.api", "o3jax.inference.respond"), (
            f"{name} belongs to no part that this test knows"
        )
    return best


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    package = package_of(name)
    ours = {other for other in imports_of(name) if inside(other, *PACKAGES)}
    allowed = (package, *LEAVES, *ALLOWED[package])
    wrong = sorted(other for other in ours if not inside(other, *allowed))
    assert not wrong, f"{name} may not import {', '.join(wrong)}"


def test_there_are_no_circles():
    """No module imports itself through others, wherever in a file the imports stand."""
    waiting = {name: {other for other in imports_of(name) if other in MODULES} - {name} for name in MODULES}
    while free := [name for name, others in waiting.items() if not others]:
        for name in free:
            del waiting[name]
        for others in waiting.values():
            others.difference_update(free)
    assert not waiting, f"these import each other in circles: {sorted(waiting)}"


def test_nothing_of_the_product_imports_tests():
    wrong = [name for name in MODULES if any(inside(other, "tests") for other in imports_of(name))]
    assert not wrong


def test_the_root_of_experiments_holds_commands_alone():
    for path in (ROOT / "experiments").iterdir():
        if path.suffix == ".py" and path.name != "__init__.py":
            text = path.read_text(encoding="utf-8")
            assert "\ndef main(argv" in text and '\nif __name__ == "__main__":' in text, path.name


@pytest.mark.parametrize("name", MODULES)
def test_a_file_is_read_in_one_sitting(name):
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= 400


def test_torch_and_tensorflow_are_not_needed():
    """Only the benchmark may use torch, because torch is what it measures against."""
    for name in MODULES:
        roots = {other.split(".")[0] for other in imports_of(name)}
        allowed = {"torch"} if name.startswith("experiments.bench") else set()
        assert not roots & {"torch", "torchvision", "tensorflow"} - allowed, name


@pytest.mark.parametrize("name", [name for name in MODULES if inside(name, *LIGHT)])
def test_light_modules_do_not_import_jax(name):
    roots = {other.split(".")[0] for other in imports_of(name)}
    assert not roots & HEAVY, name


def loads_grain(name: str) -> bool:
    """Whether a module imports Grain, itself or through ours; Grain brings JAX along."""
    names, seen = {name}, set()
    while names:
        one = names.pop()
        if one == "grain" or one.startswith("grain."):
            return True
        seen.add(one)
        names |= (imports_of(one) if one in MODULES else set()) - seen
    return False


def test_light_modules_do_not_load_jax_through_others():
    """All of them in one fresh interpreter, as a worker that only decodes would."""
    names = [name for name in MODULES if inside(name, *LIGHT) and not loads_grain(name)]
    assert {"data_pipelines.synthetic.scenes", "o3jax.video", "o3jax.inputs.collate"} <= set(names)
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = {HEAVY!r} & set(sys.modules)\n"
        "    assert not heavy, f'{name} loads {sorted(heavy)}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_checker_sees_what_it_should(tmp_path, monkeypatch):
    """Imports inside functions count, those for the type checker do not."""
    path = tmp_path / "sample.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "def f():\n    from o3jax.models import vision\n    import jax.numpy\n"
    )
    monkeypatch.setitem(MODULES, "sample", path)
    assert imports_of("sample") == {"typing", "o3jax.models.vision", "jax.numpy"}
