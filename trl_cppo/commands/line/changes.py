# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What differs between the settings of what is there already and those of a command."""

from typing import Any


def changes(stored: dict[str, Any], settings: dict[str, Any]) -> str:
    """Each setting that differs, `name: old -> new`; of digests, which nobody can read, only that they differ. Empty if none does."""
    names = [name for name in {**settings, **stored} if settings.get(name) != stored.get(name)]
    return "; ".join(
        "the data's files have changed"
        if name == "sha256" and name in stored and name in settings
        else f"{name}: {_shown(stored.get(name))} -> {_shown(settings.get(name))}"
        for name in names
    )


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
