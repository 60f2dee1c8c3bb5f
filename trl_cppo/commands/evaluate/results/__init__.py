# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves behind: records of questions, the summary with its intervals, the comparison of two."""
