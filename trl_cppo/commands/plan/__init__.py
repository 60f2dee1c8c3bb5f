# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Whether a run fits and what it costs, before it runs: `trl-cppo plan`."""
