# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What `python -m build` puts into the wheel and the sdist."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def built(tmp_path):
    """The wheel and the sdist of a copy of the checkout, with its links as links."""
    tracked = [
        *ROOT.glob("*.*"),
        ROOT / "LICENSE",
        *(ROOT / name for name in ("trl_cppo", "examples", "tests", "docs")),
    ]
    for path in tracked:
        if path.is_dir() and path.name in ("trl_cppo", "examples", "tests", "docs"):
            shutil.copytree(path, tmp_path / path.name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file():
            shutil.copy(path, tmp_path)
    build = [sys.executable, "-m", "build", "--no-isolation", str(tmp_path)]
    result = subprocess.run(build, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stderr
    [wheel], [sdist] = (tmp_path / "dist").glob("*.whl"), (tmp_path / "dist").glob("*.tar.gz")
    return wheel, sdist


def test_wheel_and_sdist_hold_what_they_should(tmp_path):
    wheel, sdist = built(tmp_path)
    package = [path for path in (ROOT / "trl_cppo").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    modules = {str(path.relative_to(ROOT)) for path in package}
    assert "trl_cppo/run/card/templates/model_card.md" in modules
    assert {"trl_cppo/commands/line/flags.json", "trl_cppo/commands/recipes/configs/digits.yaml"} <= modules
    in_wheel = zipfile.ZipFile(wheel).namelist()
    assert {name for name in in_wheel if ".dist-info/" not in name} == modules
    assert any(name.endswith("/LICENSE") for name in in_wheel)
    members = {member.name.partition("/")[2]: member for member in tarfile.open(sdist).getmembers()}
    in_sdist = {name for name in members if name}
    assert modules <= in_sdist
    assert {"examples/train_cppo.py", "examples/configs/digits.yaml", "tests/conftest.py", "LICENSE"} <= in_sdist
    assert not [name for name in in_sdist if name.endswith(".pyc")]
    assert all(members[name].isfile() for name in in_sdist if name.endswith(".yaml"))  # where links are not known, too
    check_installed(wheel, tmp_path / "site", tmp_path / "elsewhere")


def check_installed(wheel, site, folder):
    """Installed from the wheel, without a checkout, the command is there, and its recipes and flags."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, timeout=1500)
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*words):
        done = subprocess.run(
            [str(site / "bin" / "trl-cppo"), *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1500,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "  deepspeed_zero2 " in run("recipes") and "--cpl_coef" in run("train", "--help")
    run("recipes", "copy", "qwen2_5_vl_3b_virl39k")
    recipes = ROOT / "trl_cppo" / "commands" / "recipes" / "configs"
    [copied] = folder.iterdir()
    assert copied.read_bytes() == (recipes / copied.name).read_bytes()
    code = "import trl_cppo.commands.recipes as recipes; print(recipes.CONFIGS)"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert found.stdout.strip().startswith(str(site))  # not the checkout's
