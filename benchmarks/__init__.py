# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
What docs/results.md rests on, a folder a question. From the checkout's root:

    python -m benchmarks.learning      # what does CPPO teach?
    python -m benchmarks.detection     # does its detector find the perception tokens?
    python -m benchmarks.gradients     # where does the gradient of its loss go?
    python -m benchmarks.cost          # what does an update take?
    python -m benchmarks.gpu           # and on a GPU, is it right there and how fast?

Each docstring names the flags, and the further commands of a folder are its modules with a `main`. Figures go to results/,
pictures to docs/results/. Not installed with trl_cppo.
"""
