# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Settings of whole runs (`configs`) and of `accelerate launch` (`accelerate_configs`), as files of the package."""

from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
ACCELERATE_CONFIGS = Path(__file__).parent / "accelerate_configs"


def recipe_named(name: str, *folders: Path) -> Path | None:
    """The file of that name, with or without its `.yaml`, in the folders."""
    stem = name.removesuffix(".yaml")
    found = [path for folder in folders for path in folder.glob("*.yaml") if path.stem == stem]
    return found[0] if found else None
