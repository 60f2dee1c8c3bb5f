# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""No documented command is without a rehearsal, or a line that says why."""

import re

import pytest
from doc_pages import PAGES, ROOT, SHELLS, blocks_of, prose_of
from documented import RECIPES, documented_commands, not_rehearsed, to_rehearse
from stand_ins import rehearsed


@pytest.mark.parametrize("command", to_rehearse(), ids=str)
def test_a_command_has_a_rehearsal(command):
    assert len(rehearsed(command.words, port=1)) >= len(
        command.words
    )  # or it raises: this kind of command is not known


@pytest.mark.parametrize(
    "text", ["deepspeed examples/train_cppo.py", "python examples/new.py", "srun accelerate launch x.py"]
)
def test_another_kind_of_command_is_noticed(text):
    with pytest.raises(ValueError, match="has no rehearsal"):
        rehearsed(text.split(), port=1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_hides_in_another_kind_of_block(page):
    assert {block.language for block in blocks_of(page)} <= {
        *SHELLS,
        "python",
        "text",
        "yaml",
        "json",
        "bibtex",
        "diff",
    }
    listed = re.compile(r"^(?: *[-*\d|]| {2,3}\S)")  # continued lines of a list are no block
    assert [line for line in prose_of(page).splitlines() if line.startswith("    ") and not listed.match(line)] == []


def test_every_recipe_is_rehearsed_as_its_header_says():
    launched = "\n".join(command.text for command in to_rehearse())
    names = [recipe.name for recipe in RECIPES if recipe.stem != "digits"]  # which is what the script takes by itself
    assert names and all(f"--config examples/configs/{name}" in launched for name in names)


def test_what_has_not_run_is_still_documented():
    texts = [command.text for command in documented_commands()]
    for start in not_rehearsed():
        assert any(text.startswith(start) for text in texts), f"no page has a command that begins {start!r} any more"
