# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What an update takes on a GPU, and whether it is right there. See __main__.py."""
