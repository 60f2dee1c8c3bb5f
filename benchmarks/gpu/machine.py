# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What the benchmark runs on: the device, its clock and memory, and the versions beside those that trl-cppo asks for."""

import platform
import shutil
import subprocess
import time
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import torch
from packaging.requirements import Requirement

VERSIONS = ("torch", "transformers", "trl", "accelerate", "triton", "flash-attn", "trl-cppo")


class Machine:
    """
    One device, or a CPU in its place, which has no peaks of memory to tell.

    Args:
        device (`str`): `"cuda"`, AMD's devices too, or `"cpu"`.
    """

    def __init__(self, device: str):
        self.device, self.is_gpu = device, device == "cuda"
        if self.is_gpu:
            self._first = torch.cuda.Event(enable_timing=True)
            self._first.record()

    def clock(self) -> float:
        """Seconds, once the device has done all that it was given."""
        if not self.is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        return self._first.elapsed_time(event) / 1000

    def forget_peak(self) -> None:
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """The most bytes that tensors took at once since the last [`forget_peak`]; 0 on a CPU."""
        return torch.cuda.max_memory_allocated() if self.is_gpu else 0

    def release(self) -> None:
        """Give back what an update that failed or a model that is gone has left in the cache."""
        if self.is_gpu:
            torch.cuda.empty_cache()

    def free(self) -> int:
        """Bytes that can still be had, those in PyTorch's cache included."""
        if not self.is_gpu:
            return 0
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()

    def facts(self) -> dict[str, Any]:
        if not self.is_gpu:
            return {"name": f"CPU ({platform.machine()})", "gib": None, "cuda": None, "driver": None}
        properties = torch.cuda.get_device_properties(0)
        return {
            "name": properties.name,
            "gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda or torch.version.hip,
            "driver": _driver(),
        }


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.split()
    return lines[0] if lines else None


def installed_versions() -> dict[str, str]:
    """Of what decides the figures; what is not installed is left out."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def unmet_requirements() -> str:
    """In one line, which installed versions trl-cppo does not ask for; empty if it asks for all of them."""
    unmet = []
    for requirement in map(Requirement, requires("trl-cppo") or []):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            installed = None
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            unmet.append(f"{requirement.name} {installed or 'missing'} (asked for: {requirement.specifier})")
    return f"Not the versions that trl-cppo asks for: {', '.join(unmet)}." if unmet else ""
