# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Python reads this at the start of each rehearsed process: under FSDP, CPUs stand in for GPUs."""

import os

if (
    os.environ.get("ACCELERATE_USE_FSDP") == "true"
):  # by `accelerate launch --use_fsdp`, in the processes that it starts
    from accelerate.state import DistributedType, PartialState

    start = PartialState.__init__

    def start_as_gpus(self, *args, **kwargs):
        start(self, *args, **kwargs)
        # Accelerate trains with DDP, without a word, where CPUs are asked for FSDP, which itself does not mind them.
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = start_as_gpus
