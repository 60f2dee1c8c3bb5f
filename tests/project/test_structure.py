# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Where things live: imports go one way, no level is crowded, and private attributes are private. docs/architecture.md has the map."""

import ast
import functools
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from trl import GRPOTrainer

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "trl_cppo"
# Each may import what stands before it, and nothing else of the package: the floors of docs/architecture.md.
FLOORS = [{"versions"}, {"method", "rewards"}, {"config"}, {"scoring"}, {"run"}, {"trainer"}, {"digits"}, {"commands"}, {"__init__", "__main__"}]  # fmt: skip
MODULES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def module_of(parts: list[str]) -> str:
    """The module that a dotted name in the package leads to, without what it takes from it."""
    for length in range(len(parts), -1, -1):
        name = "/".join(parts[:length])
        found = next((module for module in (name, f"{name}/__init__".lstrip("/")) if module in MODULES), None)
        if found is not None:
            return found
    raise AssertionError(parts)


def imports_of(name: str) -> set[str]:
    """The modules of the package that a module imports, in functions and for types alone too."""
    found, here = set(), name.split("/")
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            if node.level:
                base = here[: len(here) - node.level]
            elif module[:1] == ["trl_cppo"]:
                base, module = [], module[1:]
            else:
                continue
            found |= {module_of([*base, *module, alias.name]) for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {module_of(parts[1:]) for parts in names if parts[0] == "trl_cppo"}
    return found - {name}


def floor_of(name: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if name.split("/")[0] in floor)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name):
    room = name.split("/")[0]
    for imported in imports_of(name):
        assert imported.split("/")[0] == room or floor_of(imported) < floor_of(name), f"{name} imports {imported}"


def test_no_circle_of_imports():
    graph = {name: imports_of(name) - {"__init__"} for name in MODULES}
    assert graph["trainer"] and len(list(TopologicalSorter(graph).static_order())) >= len(MODULES) - 1


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("method/")])
def test_the_method_knows_no_trl(name):
    for node in ast.walk(TREES[name]):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not {"trl", "accelerate", "deepspeed"} & {found.split(".")[0] for found in names}, name


@pytest.mark.parametrize("folder", ["trl_cppo", "benchmarks", "tests", "examples"])
def test_at_most_ten_entries_at_each_level(folder):
    for level in [ROOT / folder, *(path for path in (ROOT / folder).rglob("*") if path.is_dir())]:
        entries = [path.name for path in level.iterdir() if path.name not in ("__init__.py", "__pycache__")]
        assert len(entries) <= 10, f"{level}: {sorted(entries)}"


@functools.cache
def private_names() -> set[str]:
    """Attributes and methods of the package's classes that begin with an underscore, but those of GRPOTrainer."""
    found = set()
    for tree in TREES.values():
        for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            for node in ast.walk(cls):
                if isinstance(node, ast.FunctionDef):
                    found.add(node.name)
                elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    found.add(node.attr)
    return {
        name for name in found if name.startswith("_") and not name.startswith("__") and not hasattr(GRPOTrainer, name)
    }


@pytest.mark.parametrize("name", MODULES)
def test_nobody_touches_the_private_attributes_of_another_object(name):
    private = private_names()
    assert "_given_completions" in private
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Attribute) and node.attr in private:
            assert ast.unparse(node.value) in ("self", "cls", "super()"), f"{name}:{node.lineno}: {ast.unparse(node)}"


def test_the_trainer_reads_no_private_attribute_of_its_base():
    trainer, base = TREES["trainer"], TREES["run/upstream"]

    def own(tree: ast.Module) -> set[str]:
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        stored = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
        return {name for name in functions | stored if name.startswith("_") and not name.startswith("__")}

    read = {node.attr for node in ast.walk(trainer) if isinstance(node, ast.Attribute)}
    of_base = {name for name in own(base) if not hasattr(GRPOTrainer, name)}
    assert of_base and not read & (of_base - own(trainer))


@pytest.mark.parametrize("folder", ["trl_cppo", "tests", "benchmarks", "examples"])
def test_files_that_code_names_exist(folder):
    named = re.compile(r"\b((?:trl_cppo|tests|benchmarks|examples|docs)/[\w/]+\.(?:py|md|yaml|json|svg))\b")
    inside = re.compile(r"`((?:method|scoring|run|rewards|commands|digits)/[\w/]+\.py)`")
    for path in (ROOT / folder).rglob("*.py"):
        if path.name in ("test_docs.py", "test_coverage.py"):  # they name missing files, to see that these are missed
            continue
        text = path.read_text().replace("examples/data_preprocess/virl39k.py", "")  # of the authors' repository
        missing = [name for name in named.findall(text) if not (ROOT / name).is_file()]
        missing += [name for name in inside.findall(text) if not (PACKAGE / name).is_file()]
        assert not missing, f"{path}: {missing}"


def test_files_that_the_map_names_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    names = re.findall(r"`((?:method|scoring|run|rewards|commands|digits)/[\w/]+\.py)`", text)
    assert len(names) > 30 and not [name for name in names if not (PACKAGE / name).is_file()]
    questions = re.findall(r"^\*\*(.+?)\*\*", text, re.MULTILINE)
    assert len(questions) >= 10
    functions = {
        node.name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    called = {name.split(".")[-1] for name in re.findall(r"`(?:[A-Z]\w+\.)?(_?[a-z]+_\w+)`", text)}
    known = functions | {
        "cpl_views",
        "cpl_rollouts_per_prompt",
        "num_gated_rows",
        "prompt_keys",
        "table_row",
        "max_pixels",
        "cpl_max_gradient_ratio",
    }
    assert not {name for name in called if name not in known and not hasattr(GRPOTrainer, name)}


def test_no_two_test_files_share_a_name():
    """pytest imports them by it, and leaves the second out."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) > 80 and sorted(names) == sorted(set(names))
