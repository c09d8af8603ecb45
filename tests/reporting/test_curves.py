"""The charts of one run and of several, and the table of time and memory."""

import numpy as np
import pytest

from refocus_jax.reporting import curves, health, runs
from refocus_jax.reporting.runs import Curve, RecordedRun, Stage
from tests.fixtures import workdirs


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {f"seed {seed}": runs.read(workdirs.write(folder / str(seed), seed)) for seed in range(3)}


def by_name(found):
    return {drawing.name: drawing for drawing in found}


def test_one_run(recorded):
    run = recorded["seed 0"]
    found = by_name(curves.drawings({"mine": run}))
    for stage, names in {"tokenizer": ("loss-total", "parts", "psnr", "view-psnr", "structure-usage",
                                       "structure-perplexity", "alias-perplexity", "dead-codes-structure"),
                         "generator": ("loss-cross-entropy", "cross-entropy", "accuracy",
                                       "teacher-minus-student-mean", "gradient-norm-student")}.items():
        assert {f"{stage}-{name}" for name in names} <= found.keys()
    assert not {"generator-fid", "generator-parts", "generator-images-per-second"} & found.keys()  # nothing to draw
    scales = found["generator-cross-entropy"].chart.lines
    assert [(line.name, line.dashed, line.color) for line in scales] == [
        ("scale 1", False, 0), ("", True, 0), ("scale 2", False, 1), ("scale 3", False, 2), ("scale 4", False, 3),
        ("", True, 3)]
    np.testing.assert_array_equal(scales[0].y, run.stages["generator"].curves["cross_entropy/scale_1"].values)
    assert [line.name for line in found["tokenizer-structure-usage"].chart.lines] == ["scale 1", "scale 4", "all"]
    assert [line.name for line in found["tokenizer-loss-total"].chart.lines] == [""]
    assert by_name(curves.speeds({"mine": run})).keys() == {"tokenizer-images-per-second",
                                                            "generator-images-per-second"}


def test_several_runs_share_charts_and_scales_stand_beside_each_other(recorded):
    found = by_name(curves.drawings(recorded))
    assert [line.name for line in found["generator-loss-cross-entropy"].chart.lines] == [
        "seed 0", "", "seed 1", "", "seed 2", ""]
    assert [found[f"generator-accuracy-{i}"].caption for i in range(3)] == list(recorded)
    last = found["generator-cross-entropy-last"].chart
    assert last.x_label.startswith("scale") and [list(line.x) for line in last.lines] == [[1, 4]] * 3
    assert last.lines[2].y[1] == recorded["seed 2"].stages["generator"].evaluation["validation/cross_entropy/scale_4"]


@pytest.mark.parametrize("metric", ["fid", "fd_efflite0", "fd_efflite1"])
def test_convergence_of_several_runs_is_one_chart(tmp_path, monkeypatch, metric):
    """The paper's Figure 5."""
    monkeypatch.setitem(workdirs.VALIDATION["generator"], f"validation/{metric}", lambda t: 200 - 100 * t)
    both = {str(seed): runs.read(workdirs.write(tmp_path / str(seed), seed)) for seed in range(2)}
    chart = by_name(curves.drawings(both))[f"generator-{metric.replace('_', '-')}"].chart
    assert [line.name for line in chart.lines] == ["0", "1"] and list(chart.lines[0].x) == [450, 900]
    assert {"validation/fid", "validation/fd_efflite0", "validation/fd_efflite1"} == curves.FRECHET


def test_a_reference_is_a_band(recorded):
    reference = health.make(list(recorded.values()), {})
    lines = by_name(curves.drawings({"mine": recorded["seed 0"]}, reference))["tokenizer-loss-total"].chart.lines
    assert [line.name for line in lines] == ["mine", "reference"]
    assert list(lines[1].high) == list(reference.curves["tokenizer"]["loss/total"].high)


def test_an_interval_is_drawn_around_its_mean(recorded):
    stage = recorded["seed 0"].stages["generator"]
    name = "validation/teacher_minus_student"
    bounds = {f"{name}/{end}": stage.curves[f"{name}/mean"]._replace(values=np.array(values))
              for end, values in (("low", [-3.0, -4.0]), ("high", [1.0, 2.0]))}
    run = RecordedRun(recorded["seed 0"].path, recorded["seed 0"].config,
                      {"generator": Stage("generator", {**stage.curves, **bounds}, {})})
    line, = by_name(curves.drawings({"mine": run}))["generator-teacher-minus-student-mean"].chart.lines
    assert list(line.low) == [-3, -4] and list(line.high) == [1, 2]


def timed(lines):
    """A run of batches of 8 from lines of metrics.jsonl."""
    names = {name for line in lines for name in line} - {"step"}
    found = {name: Curve(*map(np.array, zip(*((line["step"], line[name]) for line in lines if name in line),
                                            strict=True))) for name in names}
    return RecordedRun(None, workdirs.config(), {"tokenizer": Stage("tokenizer", found, {})})


def test_time_is_that_of_training_and_not_of_pauses():
    """Ten steps in 20 s after 3 s of start; evaluation 5 s; ten steps in 20 s; a night; ten steps in 16 s after 2 s."""
    speed = {"images_per_second": 4.0}
    run = timed([{"step": 10, "time": 1000.0, "seconds/restore": 3.0, **speed}, {"step": 10, "time": 1005.0},
                 {"step": 20, "time": 1025.0, **speed},
                 {"step": 30, "time": 50_000.0, "seconds/restore": 2.0, "images_per_second": 5.0}])
    assert curves.wall_seconds(run) == pytest.approx(23 + 5 + 20 + 18)
    assert curves.wall_seconds(RecordedRun(None, {"tokenizer": {"train": {"batch_size": 8}}}, {
        "tokenizer": Stage("tokenizer", {}, {})})) == 0


def test_costs_of_a_stage():
    run = timed([{"step": 10, "time": 1000.0, "seconds/restore": 3.0, "seconds/start_up": 9.0, "images_per_second": 4.0,
                  "peak_bytes/process": 2.0**30, "seconds/save": 0.25},
                 {"step": 20, "time": 1020.0, "images_per_second": 6.0, "peak_bytes/process": 1.5 * 2**30,
                  "seconds/save": 0.75}])
    table = curves.costs({"mine": run})
    assert dict(zip(table.columns, table.rows[0], strict=True)) == {
        "run": "mine", "stage": "tokenizer", "steps": "20 of 2400", "time": "43 s", "images/s": 5.0, "starts": 1.0,
        "s to first step": 9.0, "s to restore": 3.0, "s per save": 0.5, "s, longest save": 0.75,
        "peak memory, process": "1.50 GiB", "peak memory, device": None}


@pytest.mark.parametrize(("seconds", "says"), [(0, "0 s"), (119.4, "119 s"), (3600, "60 min"), (7199, "2 h 00 min"),
                                               (100_000, "27 h 47 min")])
def test_durations(seconds, says):
    assert curves.duration(seconds) == says
