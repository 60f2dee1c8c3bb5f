# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Which TRL fits. Imports nothing: it is asked where an import has failed."""

TESTED_TRL = ">=1.15,<1.17"  # as setup.cfg has it
FITTING_TRL = f'trl-cppo was tested with TRL {TESTED_TRL}; to install one of these: pip install "trl{TESTED_TRL}"'


def is_of_trl(error: ImportError) -> bool:
    """Whether it is TRL that has not, or no longer, what we import."""
    return error.name is not None and error.name.partition(".")[0] == "trl"
