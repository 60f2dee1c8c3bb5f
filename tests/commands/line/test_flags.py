# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The recorded flags are those of the parsers, and are used with the versions that they were recorded with alone."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from trl_cppo.__main__ import COMMANDS
from trl_cppo.commands.line import flags
from trl_cppo.commands.line.flags import RECORD, build_parser, installed_versions, recorded_commands
from trl_cppo.commands.line.record import PARSERS, make_record, real_parser

EXAMPLES = Path(__file__).parents[3] / "examples"
VERSIONS = json.loads(RECORD.read_text())["versions"]
recorded_here = pytest.mark.skipif(
    installed_versions() != VERSIONS, reason=f"flags.json is of {VERSIONS}; the parsers answer here"
)
SLOWEST = 2.0  # seconds of the processor that an answer may take


@recorded_here
def test_the_record_is_what_the_parsers_say():
    assert RECORD.read_text() == make_record(), "run python -m trl_cppo.commands.line.record, and commit flags.json"


def test_every_command_that_is_heavy_is_recorded():
    assert PARSERS.keys() == COMMANDS.keys() - {"recipes"} == json.loads(RECORD.read_text())["commands"].keys()


@recorded_here
@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("command", PARSERS)
def test_the_help_is_the_parsers_own(command, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    own = real_parser(command, "trl-cppo x").format_help()
    assert "usage: trl-cppo x [-h]" in own and "-h, --help" in own
    assert build_parser(recorded_commands()[command], "trl-cppo x").format_help() == own


@recorded_here
@pytest.mark.parametrize("command", PARSERS)
def test_what_the_parser_takes_the_record_takes(command):
    """Each flag, with a value that its own parser takes: the record refuses nothing that would run."""
    own = real_parser(command, "x")
    light = build_parser(recorded_commands()[command], "x")
    needed = [word for action in own._actions if action.required for word in (action.option_strings[0], "y")]
    tried = 0
    for action in own._actions[1:]:
        values = [
            [],
            ["true"],
            ["no"],
            ["3"],
            ["0.5"],
            ["-1"],
            ["1e-4"],
            ["x", "y"],
            ["{}"],
            *([c] for c in action.choices or ()),
        ]
        for value in values:
            for name in action.option_strings:
                words = [*needed, name, *map(str, value)]
                try:
                    own.parse_args(words)
                except (SystemExit, ValueError):  # JSON that is none
                    continue
                light.parse_args(words)
                tried += 1
    assert tried >= len(own._actions) - 1


@pytest.mark.parametrize("name", VERSIONS)
def test_with_other_versions_the_parsers_answer(name, monkeypatch):
    monkeypatch.setattr(flags, "installed_versions", lambda: VERSIONS | {name: "99.0"})
    assert recorded_commands() == {}
    flags.answer_early("train", ["--no_such_flag"], "trl-cppo train")
    for command in PARSERS:
        with pytest.raises(
            SystemExit, match="^trl-cppo x: error: argument --|^trl-cppo x: error: the following"
        ) as own:
            real_parser(command, "trl-cppo x").parse_args(["--batch_size", "few", "--max_steps", "few"])
        assert "\n" not in str(own.value)


def seconds_of(*words):
    """What a command printed, how it ended, and the processor's seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, timeout=1500,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done, spent


@recorded_here
@pytest.mark.parametrize(
    "words, told",
    [
        (["train", "--help"], "--cpl_coef CPL_COEF"),
        (["evaluate", "--help"], "--num_samples NUM_SAMPLES"),
        (["prepare", "-h"], "--max_prompt_length MAX_PROMPT_LENGTH"),
        (["report", "--help"], "--completions COMPLETIONS"),
        (["recipes", "copy", "--help"], "FOLDER"),
        (["recipes"], "  qwen2_5_vl_3b_virl39k     CPPO on ViRL39K"),
        ([], "  evaluate  greedy accuracy"),
    ],
)
def test_help_is_there_at_once(words, told):
    done, spent = seconds_of("-m", "trl_cppo", *words)
    assert done.returncode == 0 and told in done.stdout and done.stderr == ""
    assert spent < SLOWEST


@recorded_here
@pytest.mark.parametrize(
    "words, told",
    [
        (["train", "--cpl_coeff", "1"], "unrecognized arguments: --cpl_coeff 1. Did you mean --cpl_coef?"),
        (["train", "--cpl_coef", "much"], "argument --cpl_coef/--cpl-coef: invalid float value: 'much'."),
        (["train", "--config", "x.yaml", "--optim", "adm"], "argument --optim: invalid choice: 'adm' (choose from"),
        (["train", "--max_steps", "3", "--config"], "argument --config: expected one argument."),
        (["train", "--config=x.yaml", "--max_step", "3", "--qq"], "unrecognized arguments: --qq."),
        (["evaluate", "--num_samples", "few"], "argument --num_samples/--num-samples: invalid int value: 'few'."),
        (["prepare", "--dataset", "x"], "the following arguments are required: --output."),
        (["report", "--config", "x"], "unrecognized arguments: --config x."),
        (["recipes", "copy", "nothing"], "there is no recipe 'nothing'."),
        (["evalute"], "there is no command 'evalute'. Did you mean evaluate?"),
    ],
)
def test_what_is_wrong_is_said_at_once_and_last(words, told):
    done, spent = seconds_of("-m", "trl_cppo", *words)
    *before, last = done.stderr.splitlines()
    program = "trl-cppo" if len(words) == 1 else f"trl-cppo {words[0]}"
    assert done.returncode != 0 and last.startswith(f"{program}: error: {told}") and done.stdout == ""
    assert not before or len(words) == 1  # the list of commands
    assert spent < SLOWEST


@recorded_here
def test_the_scripts_of_a_checkout_answer_at_once_too():
    for script, flag in (("train_cppo", "--cpl_coef"), ("evaluate", "--num_samples"), ("prepare_dataset", "--split")):
        done, spent = seconds_of(EXAMPLES / f"{script}.py", "--help")
        assert done.stdout.startswith(f"usage: {script}.py [-h]") and flag in done.stdout and spent < SLOWEST
        done, spent = seconds_of(EXAMPLES / f"{script}.py", "--nothing")
        assert done.stderr.startswith(f"{script}.py: error: ") and spent < SLOWEST
