# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`trl-cppo train` with PAPO's loss in the place of the CPL, as a baseline (docs/reproduce.md): the same flags, `--cpl_coef` is its γ."""

import sys

from benchmarks.learning.arms import PAPOTrainer
from trl_cppo.commands.train.command import main

if __name__ == "__main__":
    main(sys.argv[1:], "papo.py", PAPOTrainer)
