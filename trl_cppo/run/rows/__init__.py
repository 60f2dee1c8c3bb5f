# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The rows of data sets: what is wrong with them, how long they are, their images and the views of their rollouts."""
