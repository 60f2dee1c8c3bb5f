# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What users start: training, preparing data sets, evaluation, the report and the scoring that it stands on, recipes."""
