# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What `python -m build` puts into the wheel and the sdist."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_wheel_and_sdist_hold_what_they_should(tmp_path):
    tracked = [
        *ROOT.glob("*.*"),
        ROOT / "LICENSE",
        *(ROOT / name for name in ("trl_cppo", "examples", "tests", "docs")),
    ]
    for path in tracked:
        if path.is_dir() and path.name in ("trl_cppo", "examples", "tests", "docs"):
            shutil.copytree(path, tmp_path / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file():
            shutil.copy(path, tmp_path)
    build = [sys.executable, "-m", "build", "--no-isolation", str(tmp_path)]
    result = subprocess.run(build, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stderr
    [wheel], [sdist] = (tmp_path / "dist").glob("*.whl"), (tmp_path / "dist").glob("*.tar.gz")
    package = [path for path in (ROOT / "trl_cppo").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    modules = {str(path.relative_to(ROOT)) for path in package}
    assert "trl_cppo/run/card/templates/model_card.md" in modules
    in_wheel = zipfile.ZipFile(wheel).namelist()
    assert {name for name in in_wheel if ".dist-info/" not in name} == modules
    assert any(name.endswith("/LICENSE") for name in in_wheel)
    in_sdist = {name.split("/", 1)[1] for name in tarfile.open(sdist).getnames() if "/" in name}
    assert modules <= in_sdist
    assert {"examples/train_cppo.py", "examples/configs/digits.yaml", "tests/conftest.py", "LICENSE"} <= in_sdist
    assert not [name for name in in_sdist if name.endswith(".pyc")]
