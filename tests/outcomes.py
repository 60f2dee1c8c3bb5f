# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What became of each test of this session, by `file.py::test[case]`; filled by conftest.py."""

OUTCOMES: dict[str, str] = {}
