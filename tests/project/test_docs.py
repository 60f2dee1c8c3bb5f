# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
What README.md, docs/*.md and examples/README.md say is held against the code: commands, Python, settings, metrics, links.

Python blocks are run, with these stand-ins and no other: a model of the Hub is a tiny random one, the adapter in the
folder Qwen2.5-VL-3B-CPPO one of that model, a data set of the Hub is a folder of its true layout with eight rows a split,
and CPPOConfig defaults to one small step on the CPU (what a block sets itself wins). A block behind `<!-- not run: why -->` is compiled, and its
imports and keyword arguments are checked.
"""

import argparse
import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import re
import runpy
import shlex
import shutil
import sys
from configparser import ConfigParser

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from dataset_layouts import write_layout
from doc_pages import (
    FOLDERS,
    PAGES,
    ROOT,
    Block,
    anchors_of,
    blocks_of,
    commands_of,
    named_commands,
    prose_of,
    spans_of,
    tables_below,
)
from peft import LoraConfig, get_peft_model
from torch.distributed.run import get_args_parser
from trl import GRPOConfig, TrlParser

import trl_cppo
from trl_cppo import CPPOConfig, CPPOTrainer, digits
from trl_cppo.commands.line.flags import RecordedParser
from trl_cppo.commands.prepare import sources
from trl_cppo.method.metrics import SUMS, cpl_metrics
from trl_cppo.method.views import _VIEWS

HUB_MODEL = re.compile(r"\bQwen/Qwen[\w.-]+")
SMALL = dict(
    use_cpu=True, bf16=False, max_steps=1, max_completion_length=6, report_to="none", save_strategy="no",
    gradient_checkpointing=False, disable_tqdm=True,
)  # fmt: skip
INHERITED = {field.name for field in dataclasses.fields(GRPOConfig)}
OWN_FIELDS = {field.name: field for field in dataclasses.fields(CPPOConfig) if field.name not in INHERITED}
OWN_NAME = re.compile(r"(?:cpl_|perception_token_|perception_score|information_|gate_by_|suppress_)\w*")
[EXAMPLE] = re.findall(r"```python\n(.*?)```", inspect.getdoc(CPPOTrainer), re.DOTALL)
PYTHON = [block for page in PAGES for block in blocks_of(page) if block.language == "python"]
PYTHON += [Block(ROOT / "trl_cppo" / "trainer.py", 1, "python", EXAMPLE, True)]


# Python


@pytest.fixture(scope="module")
def tiny_adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(digits.build_model(), LoraConfig(r=2, target_modules="all-linear")).save_pretrained(folder)
    digits.build_processor().save_pretrained(folder)
    return folder


def check_names(source: str) -> None:
    """Everything imported exists, and what is imported and called takes the keyword arguments that it gets."""
    names = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            inspect.signature(names[node.func.id]).bind_partial(**keywords)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_names_exist(block):
    check_names(block.text)


@pytest.mark.parametrize("block", [block for block in PYTHON if block.run], ids=str)
def test_python_runs(block, random_model, tiny_adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "cppo-digits" in block.text:
        shutil.copytree(random_model, "cppo-digits")
    if "PeftModel" in block.text:
        shutil.copytree(tiny_adapter, "Qwen2.5-VL-3B-CPPO")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(
        sources, "snapshot_download", lambda name, **kwargs: write_layout(name, tmp_path / "hub" / name)
    )
    monkeypatch.setattr(trl_cppo, "CPPOConfig", functools.partial(CPPOConfig, **SMALL))
    namespace = {"__name__": "block"}
    exec(compile(HUB_MODEL.sub(str(random_model), block.text), str(block), "exec"), namespace)
    if "trainer.train()" in block.text:
        assert namespace["trainer"].state.global_step == 1


@pytest.mark.parametrize(
    "wrong", ["from trl_cppo import Nothing", "from trl_cppo import CPPOConfig\nCPPOConfig(cpl_coeff=1)", "import trl_cpo"]
)  # fmt: skip
def test_wrong_names_are_found(wrong):
    with pytest.raises((ImportError, AttributeError, TypeError)):
        check_names(wrong)


# Commands


@functools.cache
def parser_of(script: str) -> argparse.ArgumentParser:
    """The parser whose help a script or a module (its dotted name, and a command of the package) prints."""
    found = []
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(argparse.ArgumentParser, "print_help", lambda self, file=None: found.append(self))
        patch.setattr(sys, "argv", [*script.split(), "--help"])
        with contextlib.suppress(SystemExit):
            if script.endswith(".py"):
                patch.syspath_prepend((ROOT / script).parent)  # as python does
                runpy.run_path(str(ROOT / script), run_name="__main__")
            else:
                runpy.run_module(script.split()[0], run_name="__main__")
    assert found, f"{script} --help prints no help"
    found[0].allow_abbrev = False
    return found[0]


def script_and_flags(command: list[str]) -> tuple[str | None, list[str]]:
    """What a command starts, and with which flags; the launchers' own flags are checked by their parsers."""
    program, *words = command
    if program == "accelerate" and words[0] == "launch":
        launch = launch_command_parser().parse_args(words[1:])
        words = [launch.training_script, *launch.training_script_args]
    elif program == "torchrun":
        launch = get_args_parser().parse_args(words)
        words = [launch.training_script, *launch.training_script_args]
    elif program in ("python", "python3"):
        words = words[1:] if words[0] == "-m" else words
    elif program == "trl-cppo":
        words = ["trl_cppo", *words]
    else:
        return None, []
    if words[0] == "trl_cppo":
        return " ".join(words[:2]), words[2:]
    return words[0], words[1:]


def check_command(command: list[str]) -> None:
    for word in command:
        if word.startswith(FOLDERS) and word.endswith((".py", ".yaml", ".yml")):
            assert (ROOT / word).is_file(), f"{word} does not exist"
    script, flags = script_and_flags(command)
    if script and script.startswith((*FOLDERS, "trl_cppo", "benchmarks")):
        if script.endswith(".py") and not re.search(r"Parser\(|run_command\(", (ROOT / script).read_text()):
            assert not flags, f"{script} takes no flags"
            return
        parser = parser_of(script)
        if isinstance(parser, (TrlParser, RecordedParser)) and "--config" in flags:  # which is taken out before
            place = flags.index("--config")
            flags = flags[:place] + flags[place + 2 :]
        parser.parse_args(flags)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_name_files_and_flags_that_exist(page, capsys):
    missing = set()
    for command in named_commands(page):
        try:
            check_command(command)
        except SystemExit:
            pytest.fail(f"{shlex.join(command)}: {capsys.readouterr().err}")
        except ModuleNotFoundError as error:
            assert not error.name.startswith(("trl_cppo", "benchmarks")), error
            missing.add(error.name)
    if missing:
        pytest.skip(f"Some commands were not checked, for their scripts need {', '.join(sorted(missing))}.")


@pytest.mark.parametrize(
    "wrong",
    [
        "python examples/train_cpo.py",
        "accelerate launch --config_file examples/accelerate_configs/zero4.yaml examples/train_cppo.py",
        "accelerate launch --num_proces 2 examples/train_cppo.py",
        "A=1 torchrun --nproc_per_node 2 examples/train_cppo.py \\\n  --cpl_coeff 1",
        "ls && python examples/train_cppo.py --cpl_coef much",
        "accelerate launch -m trl_cppo train --cpl_coeff 1",
        "trl-cppo recipes coppy digits",
    ],
)  # fmt: skip
def test_wrong_commands_are_found(wrong):
    with pytest.raises((SystemExit, AssertionError)):
        for command in commands_of(wrong):
            check_command(command)


def test_extras_that_are_installed_exist():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    text = "\n".join(page.read_text() for page in PAGES)
    extras = {name for group in re.findall(r'"\.\[([\w,]+)\]"', text) for name in group.split(",")}
    assert extras and extras <= set(setup["options.extras_require"])


def test_the_way_from_data_to_a_pushed_model_makes_the_folders_that_it_reads():
    [block] = re.findall(
        r"## From data to a pushed model.*?```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    made = set()
    for command in commands_of(block):
        flags = dict(zip(command, command[1:], strict=False))
        folder = flags.get("--dataset", "")
        assert not folder.startswith("data/") or folder in made, f"{folder} is read before it is made"
        made |= {flags["--output"]} if any("prepare_dataset" in word for word in command) else set()
    assert made


def test_a_data_set_is_prepared_by_one_command_everywhere():
    """Else the second page's command finds the first one's folder, of other options."""
    texts = [block.text for page in PAGES for block in blocks_of(page) if block.language == "bash"]
    texts += [span for page in PAGES for span in spans_of(prose_of(page)) if "prepare_dataset.py --" in span]
    texts += [path.read_text().replace("#", " ") for path in (ROOT / "examples" / "configs").glob("*.yaml")]
    texts += [path.read_text() for path in (ROOT / "examples").glob("*.py")]
    made = {}
    for text in texts:
        for line in re.findall(r"python (examples/prepare_dataset\.py --.*)", re.sub(r"\s*\\\n\s*", " ", text)):
            made.setdefault(re.search(r"--output (\S+)", line)[1], set()).add(line.strip())
    assert {"data/geometry3k", "data/virl39k"} <= made.keys()
    assert [commands for commands in made.values() if len(commands) > 1] == []
    assert all("--model Qwen/Qwen2.5-VL-3B-Instruct " in command for [command] in made.values())


# Settings and metrics


def literal(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def test_the_settings_table_has_every_field_with_its_default():
    rows = {
        spans_of(name)[0]: spans_of(default) for name, default, _ in tables_below(ROOT / "README.md", "## Settings")
    }
    assert rows.keys() == OWN_FIELDS.keys()
    for name, default in rows.items():
        field = OWN_FIELDS[name]
        if field.default is dataclasses.MISSING:
            assert default == field.default_factory(), name
        else:
            assert [literal(text) for text in default] == [field.default], name


@functools.cache
def names_of_theirs() -> set[str]:
    """Keys of the authors' code, which migrating.md names on the left."""
    rows = tables_below(ROOT / "docs" / "migrating.md", "## From the authors' verl version")
    rows += tables_below(ROOT / "docs" / "migrating.md", "## From the authors' AReaL version")
    return {name for row in rows for span in spans_of(row[0]) for name in re.findall(r"\w+", span)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_that_are_named_exist(page):
    known = OWN_FIELDS.keys() | names_of_theirs() | set(dir(importlib.import_module("trl_cppo.method.losses")))
    known |= set(dir(importlib.import_module("trl_cppo.method.metrics")))
    for span in spans_of(prose_of(page)):
        name = re.match(r"[\w.]+", span)
        if name and OWN_NAME.fullmatch(name[0]):
            assert name[0] in known, f"{span} is no field of CPPOConfig"


def test_metrics_that_are_named_exist_and_all_are_named():
    metrics = set(cpl_metrics(torch.ones(len(SUMS)), "sequence"))
    for page in PAGES:
        named = {f"cpl/{name}" for name in re.findall(r"\bcpl/(\w+)", page.read_text())}
        assert named <= metrics, page.name
    for page in (ROOT / "README.md", ROOT / "docs" / "method.md", ROOT / "docs" / "tuning.md"):
        assert metrics <= set(spans_of(page.read_text())), page.name


@pytest.mark.parametrize("heading", ["## From the authors' verl version", "## From the authors' AReaL version"])
def test_what_the_authors_settings_become_is_accepted(heading, tmp_path):
    fields = {field.name for field in dataclasses.fields(CPPOConfig)}
    flags = parser_of("examples/train_cppo.py")._option_string_actions
    rows = tables_below(ROOT / "docs" / "migrating.md", heading)
    assert len(rows) > 20
    for theirs, ours in rows:
        names = [span for span in spans_of(ours) if "/" not in span and span not in _VIEWS]
        assert names or ours.startswith("none") or "/" in ours, f"{theirs} becomes nothing, and nothing says so"
        assert not [name for name in names if name.startswith("--") and name not in flags], theirs
        settings = dict(name.partition("=")[::2] for name in names if not name.startswith("--"))
        assert settings.keys() <= fields, theirs
        values = {name: literal(value) for name, value in settings.items() if value}
        rows_of_a_step = values.get("num_generations", 8)
        fixed = dict(output_dir=str(tmp_path), bf16=False, use_cpu=True, per_device_train_batch_size=rows_of_a_step)
        config = CPPOConfig(**fixed | values)
        assert all(getattr(config, name) == value for name, value in values.items()), theirs


# Links and lists


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose_of(page))):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors_of(file), f"{target}: no such heading"


def test_the_lists_of_pages_and_examples_are_whole():
    index = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index] == ["README.md"]
    examples = ROOT / "examples"
    files = [path.relative_to(examples) for path in examples.rglob("*") if path.suffix in (".py", ".yaml")]
    listed = (examples / "README.md").read_text()
    assert files and [str(path) for path in files if f"({path})" not in listed] == []
