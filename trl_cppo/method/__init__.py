# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What CPPO is: views, gate, perception tokens, divergences, loss and metrics. Imports no TRL and nothing else of the package."""
