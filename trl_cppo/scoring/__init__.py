# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Rows to log-probabilities and entropies, of rollouts and their views, in one forward. Of a run it knows the settings only."""
