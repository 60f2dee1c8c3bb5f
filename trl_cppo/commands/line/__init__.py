# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What all commands share on a command line. Light: neither torch nor TRL is imported before a command runs."""

from .changes import changes
from .ending import is_ours, leave, stop
from .flags import ShortErrors
from .missing import nothing_here
from .running import run_command

__all__ = ["ShortErrors", "changes", "is_ours", "leave", "nothing_here", "run_command", "stop"]
