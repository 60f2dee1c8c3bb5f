# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""No documented command is without a rehearsal, or a line that says why."""

import pytest
from documented import RECIPES, documented_commands, not_rehearsed, to_rehearse
from stand_ins import rehearsed


@pytest.mark.parametrize("command", to_rehearse(), ids=str)
def test_a_command_has_a_rehearsal(command):
    assert len(rehearsed(command.words, port=1)) >= len(
        command.words
    )  # or it raises: this kind of command is not known


def test_every_recipe_is_rehearsed_as_its_header_says():
    launched = "\n".join(command.text for command in to_rehearse())
    names = [recipe.name for recipe in RECIPES if recipe.stem != "digits"]  # which is what the script takes by itself
    assert names and all(f"--config examples/configs/{name}" in launched for name in names)


def test_what_has_not_run_is_still_documented():
    texts = [command.text for command in documented_commands()]
    for start in not_rehearsed():
        assert any(text.startswith(start) for text in texts), f"no page has a command that begins {start!r} any more"
