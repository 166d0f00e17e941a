"""The pages name what is there: links, anchors, files, commands, config fields; and README's commands run."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

from configs import common
from data_pipelines.synthetic.datasets import write_video
from data_pipelines.synthetic.scenes import make_scene, scene_seed
from experiments.cli.verbs import VERBS
from tests.support.commands import run_command
from tests.support.paths import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(
    [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *DOCS.rglob("*.md")]
)
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which tells old names, too
FOLDERS = ("o3jax", "data_pipelines", "configs", "experiments", "tests")


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """Returns a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def code(page: Path) -> list[str]:
    """Returns what a page has in backticks, and the lines of its blocks of code, continued ones as one."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, which GitHub and the site name alike."""
    slugs = []
    for heading in re.findall(r"^#+ (.+)$", prose(page), flags=re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        assert "--" not in slug, f"{ids(page)}: '{heading}' gets different anchors on GitHub and on the site"
        slugs.append(slug)
    assert len(slugs) == len(set(slugs)), f"{ids(page)}: two headings are the same"
    return set(slugs)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_and_anchors_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.is_file(), f"{ids(page)} links to {target}, which is not there"
        if page.is_relative_to(DOCS):  # what the site does not hold cannot be linked there
            assert file.is_relative_to(DOCS), f"{ids(page)} links to {target}, outside of docs"
        if anchor:
            assert anchor in anchors(file), f"{ids(page)} links to {target}: no such heading"


def test_every_page_is_in_the_site():
    listed = set(re.findall(r"[\w/\-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


@pytest.mark.parametrize("page", CURRENT, ids=ids)
def test_files_that_are_named_exist(page):
    for text in code(page):
        for path in re.findall(rf"(?<![\w/.])(?:{'|'.join(FOLDERS)})/[\w./\-]*", text):
            assert (ROOT / path).exists(), f"{ids(page)} names {path}, which is not there"


@pytest.mark.parametrize("page", CURRENT, ids=ids)
def test_modules_and_commands_that_are_named_exist(page):
    targets = set(re.findall(r"^([\w\-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    for text in code(page):
        for module in re.findall(r"(?:python -m |^)(experiments(?:\.\w+)+)", text):
            file = ROOT / Path(*module.split("."))
            file = file / "__main__.py" if file.is_dir() else file.with_suffix(".py")
            assert file.is_file(), f"{ids(page)} runs {module}, which is not there"
            assert "__main__" in file.read_text(encoding="utf-8"), f"{ids(page)} runs {module}: no command"
        for name in re.findall(r"^(o3jax(?:\.\w+)+)$", text):
            assert resolves(name), f"{ids(page)} names {name}, which is not there"
        for module, names in re.findall(rf"from ((?:{'|'.join(FOLDERS)})[\w.]*) import ([\w, ]+)", text):
            for name in names.replace(" ", "").split(","):
                assert resolves(f"{module}.{name}"), f"{ids(page)} imports {name} from {module}"
        for verb in re.findall(r"^o3jax ([a-z]+)\b", text):
            assert verb in VERBS, f"{ids(page)} says o3jax {verb}, which is no verb"
        for config in re.findall(r"--config=([\w./]+)", text):
            name = config if "/" in config else f"configs/{config}.py"
            assert (ROOT / name).is_file(), f"{ids(page)} names the config {config}, which is not there"
        for target in re.findall(r"^make ([a-z][\w\-]*)", text):
            assert target in targets, f"{ids(page)} says make {target}, which is no target"


def resolves(dotted: str) -> bool:
    """Returns whether a dotted name is a module, or something that a module defines."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("page", CURRENT, ids=ids)
def test_config_fields_that_are_named_exist(page):
    stages = common.sft(), common.gspo()
    for text in code(page):
        for field in re.findall(r"(?:^|--)config\.([a-z_][\w.]*)", text):
            assert any(has(config, field.split(".")) for config in stages), (
                f"{ids(page)} names config.{field}, which no config has"
            )


def has(config: object, path: list[str]) -> bool:
    if not path:
        return True
    if config is None:  # `evidence`, which a config fills with an EvidenceConfig's fields
        config = common.evidence(hidden_size=1, num_heads=1)
    return path[0] in config and has(config[path[0]], path[1:])


def stranger() -> list[tuple[str, str]]:
    text = (DOCS / "notes" / "stranger.md").read_text(encoding="utf-8")
    return re.findall(r"^\|[^|]+\| `([^`]+)` \| `([^`]+)` \|$", text, flags=re.M)


def test_the_strangers_test_has_ten_questions():
    assert len(stranger()) == 10


@pytest.mark.parametrize(("file", "name"), stranger())
def test_a_stranger_finds_the_name_in_the_file(file, name):
    text = (ROOT / file).read_text(encoding="utf-8")
    if file.endswith(".html"):
        assert f'id="{name}"' in text
        return
    defined = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
    for node in ast.parse(text).body:  # a constant
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {target.id for target in targets if isinstance(target, ast.Name)}
    assert name in defined


# What executes the commands of README: a test, `make demo`, or nothing, because it needs the network.
EXECUTED = {
    "make demo": "make demo",
    "source .venv/bin/activate": "make demo",
    "o3jax ask demo/ask/clip.mp4": "tests/test_wheel.py::test_asks_a_video",
    "o3jax serve": "tests/experiments/serving/test_api.py::test_a_question_is_answered_as_by_the_library",
    "o3jax watch": "tests/experiments/library/test_watch.py::test_o3_tiny_watches",
    "o3jax label": "tests/experiments/library/test_label.py::test_tags_become_chapters_in_all_formats",
    "o3jax find": "tests/experiments/library/test_find.py::"
    "test_the_right_moment_is_first_and_the_index_is_made_once",
    "pip install -U huggingface_hub": "network",
    "hf download": "network",
    "o3jax ask clip.mp4": "tests/experiments/test_answer_command.py::"
    "test_the_command_answers_in_a_process_of_its_own",
    "o3jax data check": "tests/test_docs.py::test_readme_makes_and_checks_data",
    "o3jax data make": "tests/test_docs.py::test_readme_makes_and_checks_data",
    "o3jax sft --config=sft_article": "tests/configs/test_configs.py::test_the_article_s_recipe_runs",
    "o3jax sft --config=sft_tiny": "make demo",
    "o3jax gspo --config=gspo_tiny": "tests/test_wheel.py::test_runs_an_iteration_of_gspo",
    "o3jax evaluate": "tests/experiments/evaluation/test_generation.py::"
    "test_the_command_prints_tables_and_writes_json",
    "o3jax convert": "tests/test_docs.py::test_readme_converts",
}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Returns README's commands, continued lines as one."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(re.sub(r"\s+#.*", "", line).split()) for line in lines if line.strip()]


@pytest.mark.parametrize("line", commands())
def test_every_command_of_readme_is_executed(line):
    by = [how for start, how in EXECUTED.items() if line.startswith(start)]
    assert len(by) == 1, f"README runs '{line}': say in EXECUTED what executes it"
    file, _, name = by[0].partition("::")
    assert not name or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")


def test_nothing_is_executed_that_readme_does_not_say():
    assert all(any(line.startswith(start) for line in commands()) for start in EXECUTED)


def arguments(start: str, **changed: str) -> list[str]:
    """Returns what README writes behind a command, with other values of some flags."""
    words = next(line for line in commands() if line.startswith(start))[len("o3jax ") :].split()
    for flag, value in changed.items():
        words[words.index(f"--{flag}") + 1] = value
    return words


def test_readme_makes_and_checks_data(tmp_path, capfd):
    folder = str(tmp_path / "level1")
    made = run_command(capfd, *arguments("o3jax data make", out=folder, count="3"))
    assert made.code == 0 and "3 clips, 6 questions" in " ".join(made.out.split()), made.err
    words = arguments("o3jax data check")
    words[words.index("DIR")] = folder
    checked = run_command(capfd, *words)
    assert checked.code == 0 and "6 samples, 0 rejected" in " ".join(checked.out.split()), checked.err


def test_readme_converts(tmp_path, capfd):
    target = tmp_path / "out"
    words = arguments("o3jax convert", source="o3-tiny", target=str(target))
    assert run_command(capfd, *words).code == 0
    shipped = ROOT / "o3jax" / "assets" / "o3-tiny"
    for name in ("model.safetensors", "o3_evidence.safetensors"):
        assert (target / name).read_bytes() == (shipped / name).read_bytes()


def test_readme_asks_from_python(tmp_path, monkeypatch):
    write_video(make_scene(scene_seed("test", 44)), tmp_path / "clip.mp4")  # the clip of `make demo`
    monkeypatch.chdir(tmp_path)
    block = re.search(r"^```python\n(.*?)^```", README, flags=re.M | re.S).group(1)
    names = {}
    exec(block, names)
    assert names["answer"].confidence > 0 and json.loads(names["answer"].to_json())
