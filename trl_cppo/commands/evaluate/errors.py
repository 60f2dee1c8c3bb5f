# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The error of an evaluation that the data, and not the code, is to blame for."""


class EvaluationError(ValueError):
    """Says in one line what is wrong, in which row and column where there is one, and what to do."""
