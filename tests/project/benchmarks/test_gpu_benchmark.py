# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu: that its code is ready for a GPU, on a CPU and small."""

import argparse
import contextlib
import json
import math
import sys

import pytest
import torch
from trl.kernels import chunked_logprob

from benchmarks.cost.scale import small_config
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import correctness, machine, report, run, updates, vision
from benchmarks.gpu.arms import ARMS, AT_ONCE, GROUP, ROWS, SMOKE, head_of, prompt_tokens
from benchmarks.lib.shapes import Row, depth_of, load_config
from trl_cppo.scoring import attention, shared_prefix


def options(path):
    return argparse.Namespace(smoke=True, output=path, minutes=8.0, repeats=1)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The report of a short run that was killed before its second point and called again, and what it printed of itself."""
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    with pytest.MonkeyPatch.context() as patch:
        real = run.measure_point
        patch.setattr(
            run, "measure_point", lambda *args: real(*args) if args[3] is ARMS["main"] else sys.exit("killed")
        )
        with pytest.raises(SystemExit, match="killed"):
            run.run(options(path))
        half = json.loads(path.read_text())
        assert [point["arms_of"] for point in half["points"]] == ["main"] and half["correctness"]
        patch.setattr(
            run, "measure_point", lambda *args: sys.exit("again") if args[3] is ARMS["main"] else real(*args)
        )
        patch.setattr(run, "check_families", lambda *args: sys.exit("again"))
        patch.setattr(run, "find_depth", lambda *args: sys.exit("again"))
        whole = run.run(options(path))
    assert json.loads(path.read_text()) == whole and whole["points"][:1] == half["points"]
    return whole


def test_a_short_run_is_right_and_has_all_arms(smoke):
    checked = {
        tuple(row[name] for name in ("family", "dtype", "layout", "divergence")): row for row in smoke["correctness"]
    }
    assert len(checked) == len(smoke["correctness"]) == len(run.FEW) * (2 + 3) * 2
    for (family, dtype, layout, divergence), row in checked.items():
        if layout == correctness.PADDED:  # as it is on a CPU anyway
            assert row["scores"] == checked[family, dtype, "packed", divergence]["scores"]
        same = (dtype, layout) == ("float32", "plain")  # on a CPU, with itself
        assert (row["scores"] == row["gradients"] == 0) if same else row["scores"] > 0
        assert all(row[kind] <= smoke["allowed"][row["dtype"]][kind] for kind in ("scores", "gradients"))
    assert smoke["smoke"] and smoke["device"]["gib"] is None and not any(p["skipped"] for p in smoke["points"])
    assert {point["arms_of"]: list(point["arms"]) for point in smoke["points"]} == {
        k: list(v) for k, v in ARMS.items()
    }
    assert smoke["layers"]["measured"] == smoke["layers"]["whole"]


def test_the_arms_are_what_they_are_called(smoke):
    """By the tokens that the model has read."""
    prompt, completion = prompt_tokens(SMOKE[0]), SMOKE[0].completion
    prefix, segment = prompt - 1, completion + 1
    for part, arms in ARMS.items():
        [point] = (point for point in smoke["points"] if point["arms_of"] == part)
        for name, arm in arms.items():
            gated = round(arm.share * GROUP)
            viewed = gated if arm.budget is None else min(arm.budget, gated)
            plain = (GROUP + 2 * viewed) * (prompt + completion)
            packed = prefix + GROUP * segment + 2 * (prefix + viewed * segment) * bool(viewed)
            figures = point["arms"][name]
            assert figures["tokens"] == (packed if arm.packed else plain), name
            assert figures["seconds"] > 0 and figures["repeats"] == 1 and figures["attention"]
    names = {name: arm for arms in ARMS.values() for name, arm in arms.items()}
    assert names["every_row"].trainer == "every_row" and names["cppo_packed_0.5_kl"].divergence == "kl"


def test_a_short_run_can_not_be_taken_for_a_gpus(smoke, tmp_path, monkeypatch, capsys):
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(smoke))
    monkeypatch.setattr(command, "unmet_requirements", lambda: "")
    monkeypatch.setattr("sys.argv", ["gpu", "--tables", "--output", str(path)])
    command.main()
    printed = capsys.readouterr().out
    assert printed.startswith(report.SMOKE) and "GRPOTrainer" in printed
    monkeypatch.setattr("sys.argv", ["gpu", "--picture", "--output", str(path)])
    with pytest.raises(SystemExit, match="smoke run"):
        command.main()
    measured = {**smoke, "smoke": False, "unmet": "torch is old."}
    assert report.tables(measured).startswith("torch is old.\n")
    report.draw(measured, tmp_path / "gpu.svg")
    drawn = (tmp_path / "gpu.svg").read_text()
    labels = {
        arm.label for arms in ARMS.values() for name, arm in arms.items() if name.removeprefix(AT_ONCE) in report.DRAWN
    }
    assert len(labels) == 2 * len(report.DRAWN) - 1 and all(label in drawn for label in labels)


def test_without_a_gpu_the_way_out_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        command.main()
    assert "no GPU here. On a CPU, --smoke" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dtypes", "what"), [([torch.float32, torch.bfloat16], "float32"), ([torch.bfloat16], "bfloat16")]
)
def test_what_is_wrong_ends_the_run(monkeypatch, dtypes, what):
    """Packed tokens are told the positions of others."""
    real = shared_prefix.packed_positions
    monkeypatch.setattr(shared_prefix, "packed_positions", lambda *args: real(*args).flip(-1))
    monkeypatch.setattr(correctness, "ALLOWED", {dtype: correctness.ALLOWED[dtype] for dtype in dtypes})
    with pytest.raises(
        SystemExit, match=f"WRONG on cpu: qwen2_5_vl, {what}, packed rows, cpl_divergence=k3: .* nats off"
    ):
        correctness.check_families("cpu", ["qwen2_5_vl"])


def test_no_number_is_wrong_too():
    row = {
        "family": "x",
        "dtype": "float32",
        "layout": "plain",
        "divergence": "k3",
        "scores": 0.0,
        "gradients": math.nan,
    }
    with pytest.raises(SystemExit, match="WRONG on cuda"):
        correctness.judge(row, correctness.Errors(1.0, 1.0), "cuda")
    correctness.judge({**row, "gradients": 1.0}, correctness.Errors(1.0, 1.0), "cuda")


def test_a_family_that_does_not_run_is_named_and_the_measured_one_ends_the_run(monkeypatch):
    def fail(family, builders, device):
        raise RuntimeError("no kernel\nand a second line")

    monkeypatch.setattr(correctness, "check_family", fail)
    assert correctness.check_families("cpu", ["llava"]) == [{"family": "llava", "error": "RuntimeError: no kernel"}]
    with pytest.raises(SystemExit, match="qwen2_5_vl does not run on cpu: RuntimeError: no kernel"):
        correctness.check_families("cpu", ["llava", "qwen2_5_vl"])
    monkeypatch.setattr(correctness, "BUILDERS", correctness.BUILDERS / "gone.py")
    with pytest.raises(SystemExit, match="gone.py is missing"):
        correctness.check_families("cpu", ["llava"])


def test_the_kernel_for_any_lengths_is_kept_from_its_arm(monkeypatch):
    monkeypatch.setattr(attention, "takes_ragged", lambda query: True)
    with ARMS["more"]["cppo_packed_0.5_padded"].within():
        assert not attention.takes_ragged(torch.zeros(1))
    assert attention.takes_ragged(torch.zeros(1))


def test_the_head_of_cpus_is_asked_for_by_its_arm(monkeypatch):
    monkeypatch.setattr(chunked_logprob, "_TRITON_AVAILABLE", True)
    assert head_of("cuda") == "Triton" and head_of("cpu") == "PyTorch"
    with ARMS["more"]["cppo_packed_0.5_torch_head"].within():
        assert head_of("cuda") == "PyTorch" and not chunked_logprob._use_triton(torch.device("cuda"))
    assert head_of("cuda") == "Triton" and chunked_logprob._use_triton(torch.device("cuda"))


class Stub:
    """Updates of which the second runs out of memory and each takes a second of the time that is left."""

    def __init__(self, seconds):
        self.left, self.calls, self.machine = seconds, [], argparse.Namespace(is_gpu=False, release=lambda: None)

    def once(self, model, row, arm):
        self.left -= 1
        self.calls.append(arm)
        if len(self.calls) == 2:
            raise torch.OutOfMemoryError
        return {"tokens": 10, "attention": ["flash"]}

    def timed(self, model, row, arms, repeats, seconds_left):
        return {name: {"seconds": 2.0, "repeats": repeats, "peak_bytes": 1} for name in arms}


def test_memory_and_time_that_do_not_suffice_are_told():
    stub, arms = Stub(3), dict.fromkeys("abcde")
    point = updates.measure_point(stub, None, SMOKE[0], arms, 3, lambda: stub.left)
    assert list(point["arms"]) == ["a", "b", "c"] and point["skipped"] == ["d", "e"]
    assert point["arms"]["b"] == {"out_of_memory": True}
    assert point["arms"]["c"]["tokens_per_second"] == 5 and point["arms"]["c"]["repeats"] == 3


def test_rounds_end_with_the_time(monkeypatch):
    bench = object.__new__(updates.Updates)
    bench.machine, left, ran = machine.Machine("cpu"), iter([1, 0]), []
    monkeypatch.setattr(
        bench, "loss", lambda model, row, arm: lambda: torch.zeros(1, requires_grad=True).sum(), raising=False
    )
    monkeypatch.setattr(bench, "around", lambda model, arm: contextlib.nullcontext(ran.append(arm)), raising=False)
    figures = bench.timed(None, SMOKE[0], {"a": 1, "b": 2}, 5, lambda: next(left))
    assert ran == [1, 2, 2, 1] and [figures[name]["repeats"] for name in "ab"] == [2, 2]


def test_the_layers_are_as_many_quarters_as_fit():
    assert [updates.most_quarters(10, 14, free) for free in (9, 13, 14, 17, 18, 21, 22, 99)] == [
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
    ]
    assert updates.most_quarters(math.inf, math.inf, 99) == updates.most_quarters(10, math.inf, 99) == 1
    config = load_config(run.MODEL)
    depths = [depth_of(updates.quarters_of(config, quarters)) for quarters in (1, 2, 4)]
    assert [(depth.text, depth.windowed, depth.full) for depth in depths] == [(9, 7, 1), (18, 14, 2), (36, 28, 4)]


def test_the_points_are_those_that_were_asked_for():
    assert [(prompt_tokens(row), row.completion) for row in ROWS] == [(600, 200), (600, 800), (1200, 100), (600, 1600)]
    assert GROUP == 8 and Row(88, 2048, 200) in ROWS


class Event:
    """A CUDA event: the clock goes on by 2.5 seconds with each."""

    made = 0

    def __init__(self, enable_timing):
        assert enable_timing
        Event.made += 1
        self.place, self.waited = Event.made, False

    def record(self):
        self.recorded = True

    def synchronize(self):
        self.waited = self.recorded

    def elapsed_time(self, end):
        assert self.recorded and end.waited
        return 2500.0 * (end.place - self.place)


def test_a_gpu_is_asked_for_time_and_memory(monkeypatch):
    properties = argparse.Namespace(name="Card", total_memory=80 * 2**30)
    for name, value in (("get_device_properties", properties), ("mem_get_info", (70, 80))):
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    for name, value in (("memory_reserved", 9), ("memory_allocated", 4), ("max_memory_allocated", 7)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    forgotten = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: forgotten.append("peak"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: forgotten.append("cache"))
    monkeypatch.setattr(machine.shutil, "which", lambda name: name)
    answer = argparse.Namespace(stdout="580.1\n580.1\n")
    monkeypatch.setattr(machine.subprocess, "run", lambda *args, **kwargs: answer)
    gpu = machine.Machine("cuda")
    assert (gpu.clock(), gpu.clock(), gpu.free(), gpu.peak()) == (2.5, 5.0, 75, 7)
    gpu.forget_peak()
    gpu.release()
    assert forgotten == ["peak", "cache"]
    facts = gpu.facts()
    assert (facts["name"], facts["gib"], facts["driver"]) == ("Card", 80.0, "580.1")


def test_versions_that_are_not_asked_for_are_named_in_one_line(monkeypatch):
    assert machine.unmet_requirements() == ""
    real = machine.version
    monkeypatch.setattr(machine, "version", lambda name: "2.11.0" if name == "torch" else real(name))
    assert machine.unmet_requirements().startswith(
        "Not the versions that trl-cppo asks for: torch 2.11.0 (asked for: "
    )


@pytest.mark.parametrize("name", ["grpo", "cppo_packed_0.5"])
def test_windows_at_once_are_the_same_model(monkeypatch, name):
    """With four windows an image."""
    row, calls, real = Row(8, 256, 8), [], vision.one_by_one
    monkeypatch.setattr(
        vision, "one_by_one", lambda *given, **kinds: calls.append(given[3].tolist()) or real(*given, **kinds)
    )
    model, bench, found = (
        updates.build(small_config(), "cpu", torch.float32),
        updates.Updates(machine.Machine("cpu")),
        [],
    )
    for arm in (ARMS["main"][name], ARMS["at_once"][AT_ONCE + name]):
        model.zero_grad()
        with bench.around(model, arm):
            loss = bench.loss(model, row, arm)()
            loss.backward()
        found.append([loss.detach(), *(parameter.grad.clone() for parameter in model.model.visual.parameters())])
        assert bool(calls) == arm.windows_at_once
    torch.testing.assert_close(*found)
    assert all(gradient.norm() > 0 for gradient in found[0][1:] if gradient.dim() > 1)
    assert [64, 128, 192, 256] in (ends[1:5] for ends in calls)
    assert model.model.visual.config._attn_implementation == "sdpa"


def test_sequences_one_by_one_see_themselves_alone():
    query, key, value = torch.randn(3, 9, 2, 4, dtype=torch.float64)
    apart = torch.block_diag(torch.ones(4, 4), torch.ones(5, 5)) == 0
    weights = (0.3 * torch.einsum("qhd,khd->hqk", query, key)).masked_fill(apart, -torch.inf).softmax(dim=-1)
    output = vision.one_by_one(query, key, value, torch.tensor([0, 4, 9]), None, 5, 5, scale=0.3)
    torch.testing.assert_close(output, torch.einsum("hqk,khd->qhd", weights, value))


def test_a_point_without_any_arm_has_no_table(smoke, tmp_path):
    nothing = {"arms_of": "main", "prompt": 9_999, "completion": 7, "group": GROUP, "arms": {}, "skipped": ["grpo"]}
    report_ = {**smoke, "smoke": False, "points": [*smoke["points"], nothing]}
    assert "Prompt 9,999" not in report.tables(report_) and "GRPOTrainer at (9999, 7)" in report.tables(report_)
    report.draw(report_, tmp_path / "gpu.svg")
    assert "9999" not in (tmp_path / "gpu.svg").read_text()
