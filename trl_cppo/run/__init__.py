# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What surrounds a run: repairs of TRL, rows of data sets, weights, the completions table, the card."""
