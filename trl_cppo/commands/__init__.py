# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What stands on the trainer: evaluation, the report, preparing data sets, and what a user names on a command line."""
