# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
For `.ci/run` at the lowest versions, on its PYTHONPATH: PyPI's torchvision 0.28 is built for CUDA and, beside a torch for CPUs,
fails at import ("operator torchvision::nms does not exist"). Declared before, the two operators are enough: the
transforms that models and views use are Python. (Images given as paths cannot be decoded there: its reader is compiled.)
"""

import sys

OPERATORS = [
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
]


class BeforeTorchvision:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            sys.modules["_torchvision_operators"] = self  # kept as long as the process
            for operator in OPERATORS:
                self.library.define(operator)
        return None


sys.meta_path.insert(0, BeforeTorchvision())
