# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`import trl_cppo` costs nothing: its names are imported when they are asked for, and are what type checkers read."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import trl_cppo

HEAVY = ("torch", "transformers", "trl", "datasets", "accelerate", "PIL", "numpy")


def test_the_import_waits_for_all_that_is_heavy():
    code = f"import sys, trl_cppo; print(dir(trl_cppo)); print(sorted({{*{HEAVY}}} & {{*sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1500)
    listed, heavy = run.stdout.splitlines()
    assert run.returncode == 0 and heavy == "[]"
    assert {*trl_cppo.__all__, "__version__"} <= {*ast.literal_eval(listed)}  # also what is not imported yet


def test_each_name_is_what_type_checkers_read():
    """Those under `TYPE_CHECKING` are the names of `__all__`, each from the module that it comes from when asked for."""
    tree = ast.parse(Path(trl_cppo.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    read = {alias.name: f"trl_cppo.{node.module}" for node in block.body for alias in node.names}
    assert sorted(read) == trl_cppo.__all__
    for name, module in read.items():
        value = getattr(trl_cppo, name)
        assert value is getattr(importlib.import_module(module), name) and value.__module__ == module
        assert name in vars(trl_cppo)  # kept, so that it is looked up once
    star = {}
    exec("from trl_cppo import *", star)
    assert {*trl_cppo.__all__} == star.keys() - {"__builtins__"} and inspect.isclass(star["CPPOTrainer"])


def test_a_name_that_is_not_there_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'trl_cppo' has no attribute 'CPOTrainer'"):
        trl_cppo.CPOTrainer  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'CPOTrainer'"):
        exec("from trl_cppo import CPOTrainer")
