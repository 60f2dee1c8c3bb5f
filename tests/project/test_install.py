# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What the documentation tells people to install resolves, each combination of extras by itself, with today's packages."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from doc_pages import PAGES, ROOT
from packaging.version import Version

RECIPES = sorted((ROOT / "examples" / "configs").glob("*.yaml"))
TEXT = "\n".join(path.read_text() for path in (*PAGES, *RECIPES))
EXTRAS = sorted({*re.findall(r'pip install "\.\[([\w,]+)\]"', TEXT), "deepspeed,digits,math,peft,test,vllm"})


def test_no_page_asks_for_packages_besides_our_extras():
    """Two requirements that are resolved one after the other, or beside ours, may not fit each other."""
    others = [line for line in re.findall(r"pip install ([^\n`)]*)", TEXT) if "trl" in line and '".[' in line]
    assert EXTRAS and [line for line in others if line.count('"') > 2] == []
    assert 'pip install "trl[' not in TEXT


@pytest.mark.slow
@pytest.mark.parametrize("extras", EXTRAS)
def test_it_resolves(extras, tmp_path):
    if shutil.disk_usage(tmp_path).free < 8 * 2**30:
        pytest.skip("less than 8 GiB of disk are free, and pip unpacks up to 3.3 GB to resolve the extras")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "trl_cppo", tmp_path / "trl_cppo")
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    done = subprocess.run(
        [*command, "--report", str(report), f"{tmp_path}[{extras}]"], capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {
        entry["metadata"]["name"]: entry["metadata"]["version"] for entry in json.loads(report.read_text())["install"]
    }
    assert Version(found["torch"]) >= Version("2.13") and Version(found["transformers"]) >= Version("5.23")
    assert ("vllm" in found) == ("vllm" in extras) and ("deepspeed" in found) == (
        {"deepspeed", "test"} & {*extras.split(",")} != set()
    )
