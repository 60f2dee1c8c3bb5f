# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Python reads this at the start of each process of the environment with vLLM, whose PYTHONPATH holds it: an engine on a CPU."""

import importlib.util
import os
import runpy
import sys
from pathlib import Path

# Its torchvision is built for CUDA, as PyPI's is at the lowest versions.
TORCHVISION = runpy.run_path(str(Path(__file__).parents[3] / "support" / "lowest" / "sitecustomize.py"))

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def keep_linear_weights(module):
    """vLLM packs linear weights for the CPU and drops the originals, so that a trainer could push none."""
    linear = module.torch.nn.functional.linear
    module.dispatch_cpu_unquantized_gemm = lambda layer, remove_weight: setattr(layer, "cpu_linear", linear)


def talk_over_gloo(module):
    """Tensor parallel processes that a trainer started fail in making shared memory ("errno: 17")."""
    module.CpuCommunicator._all_group_ranks_share_shm_group_name = lambda self: False


class ChangedOnImport:
    changes = {
        "vllm.model_executor.layers.utils": keep_linear_weights,
        "vllm.distributed.device_communicators.cpu_communicator": talk_over_gloo,
    }

    def find_spec(self, name, path=None, target=None):
        if name not in self.changes:
            return None
        change = self.changes.pop(name)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_change(module):
            load(module)
            change(module)

        spec.loader.exec_module = load_and_change
        return spec


sys.meta_path.insert(0, ChangedOnImport())
