# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`trl-cppo` and `python -m trl_cppo`: which command runs, how it ends, and the recipes of the package."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from trl_cppo.__main__ import COMMANDS, main
from trl_cppo.commands.line import running
from trl_cppo.commands.recipes import ACCELERATE_CONFIGS, CONFIGS
from trl_cppo.commands.train import arguments
from trl_cppo.versions import FITTING_TRL

ROOT = Path(__file__).parents[3]


# Commands


def test_the_list_of_commands_is_printed_without_one(capsys, monkeypatch):
    for words in ([], ["-h"], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["/somewhere/trl-cppo", *words])
        main()
        shown = capsys.readouterr().out
        assert shown.startswith("usage: trl-cppo COMMAND") and all(f"\n  {name} " in shown for name in COMMANDS)


def stand_in(monkeypatch, run):
    """A command `train` that takes the place of ours."""
    monkeypatch.setattr(running, "import_module", lambda name: SimpleNamespace(main=run))
    monkeypatch.setattr(running, "answer_early", lambda *given: None)


def test_a_command_gets_its_arguments_and_its_name(monkeypatch):
    given = []
    stand_in(monkeypatch, lambda *arguments: given.append(arguments))
    main(["train", "--config=x.yaml", "--seed", "1"])
    assert given == [(["--config", "x.yaml", "--seed", "1"], "trl-cppo train")]


def test_under_torchrun_an_error_goes_into_its_page(monkeypatch, tmp_path):
    def fail(arguments, program):
        raise RuntimeError("the device is gone")

    stand_in(monkeypatch, fail)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(RuntimeError, match="the device is gone"):
        main(["train"])
    assert (
        json.loads((tmp_path / "error.json").read_text())["message"]["message"] == "RuntimeError: the device is gone"
    )
    with pytest.raises(SystemExit, match="trl-cppo train: error: argument --config"):
        main(["train", "--config"])
    assert json.loads((tmp_path / "error.json").read_text())["message"].startswith("trl-cppo train: error: argument")


@pytest.mark.parametrize("name", ["train", "report"])
def test_a_trl_that_does_not_fit_is_told_on_the_last_line(name):
    code = "import trl.trainer.utils as u; del u.get_callable_name; from trl_cppo.__main__ import main; "
    done = subprocess.run(
        [sys.executable, "-c", f"{code} main([{name!r}])"], capture_output=True, text=True, timeout=1500
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert last.startswith(f"trl-cppo {name}: error: cannot import name 'get_callable_name'") and FITTING_TRL in last


# Recipes


def test_a_checkout_has_the_files_of_the_package_as_links():
    for folder, ours in (("configs", CONFIGS), ("accelerate_configs", ACCELERATE_CONFIGS)):
        links = sorted((ROOT / "examples" / folder).iterdir())
        assert [link.name for link in links] == sorted(path.name for path in ours.iterdir()) and links
        for link in links:
            assert link.is_symlink() and not os.readlink(link).startswith("/"), link
            assert link.resolve() == ROOT / "trl_cppo" / "commands" / "recipes" / folder / link.name


def test_each_recipe_is_listed_with_a_line(capsys):
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    for path in (*CONFIGS.iterdir(), *ACCELERATE_CONFIGS.iterdir()):
        [line] = [line for line in lines if line.split()[0] == path.stem]
        assert len(line.split()) > 5 and line.split(maxsplit=1)[1] in path.read_text().splitlines()[0]


def test_a_recipe_is_copied_and_nothing_is_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["recipes", "copy", "cpu_zero3"])
    main(["recipes", "copy", "digits.yaml", "new/folder"])
    assert capsys.readouterr().out == f"Copied to cpu_zero3.yaml.\nCopied to {Path('new/folder/digits.yaml')}.\n"
    assert Path("cpu_zero3.yaml").read_bytes() == (ACCELERATE_CONFIGS / "cpu_zero3.yaml").read_bytes()
    Path("new/folder/digits.yaml").write_text("max_steps: 5\n")
    with pytest.raises(
        SystemExit, match="trl-cppo recipes: error: new/folder/digits.yaml exists. Move it away, or give"
    ):
        main(["recipes", "copy", "digits", "new/folder"])
    assert Path("new/folder/digits.yaml").read_text() == "max_steps: 5\n"
    with pytest.raises(SystemExit, match="error: there is no recipe '../digits'. Their names: trl-cppo recipes."):
        main(["recipes", "copy", "../digits"])


@pytest.mark.parametrize("name", ["qwen2_5_vl_3b_lora_24gb", "qwen2_5_vl_3b_lora_24gb.yaml"])
def test_a_recipe_is_taken_by_its_name_and_that_is_said(name, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()  # no file
    few = ["--use_cpu", "--bf16", "False", "--max_steps", "7"]
    with caplog.at_level(logging.INFO, "trl_cppo"):
        _, settings, model = arguments.parse(["--config", name, *few], "trl-cppo train")
    recipe = CONFIGS / "qwen2_5_vl_3b_lora_24gb.yaml"
    values = yaml.safe_load(recipe.read_text())
    assert model.lora_r == values["lora_r"] and settings.learning_rate == values["learning_rate"]
    assert settings.max_steps == 7
    assert [record.message for record in caplog.records if "--config" in record.message] == [
        f"--config {name}: the recipe that comes with the package, {recipe}."
    ]


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    Path("digits").write_text("max_steps: 3\n")
    with caplog.at_level(logging.INFO, "trl_cppo"):
        own, settings, _ = arguments.parse(["--config", "digits", "--use_cpu"], "trl-cppo train")
    assert (own.line_every, settings.logging_steps) == (5, 1)
    assert settings.max_steps == 3 and settings.output_dir == "cppo-digits"  # the embedded run's, below the file
    assert not [record for record in caplog.records if "--config" in record.message]


def test_a_name_that_is_neither_is_refused():
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", "deepspeed_zero2"])
    line = str(stop.value.code)
    assert line.startswith(
        "trl-cppo train: error: --config: there is no file deepspeed_zero2, and no recipe of that name;"
    )
    assert all(path.stem in line for path in CONFIGS.iterdir())


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_file_that_is_no_yaml_is_told_in_a_line(command, tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [1\nb: 2\n")
    with pytest.raises(SystemExit) as stop:
        main([command, "--config", str(tmp_path / "broken.yaml")])
    line = str(stop.value.code)
    assert line.startswith(f"trl-cppo {command}: error: ") and "broken.yaml" in line and "\n" not in line
