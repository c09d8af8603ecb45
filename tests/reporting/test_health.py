"""Healthy runs are judged healthy, and others not, by the curves that show it."""

import json
import re

import numpy as np
import pytest

from benchmarks import reference as command
from refocus_jax.reporting import health, runs
from refocus_jax.reporting.runs import Curve
from tests.fixtures import workdirs


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Runs `seed_0` to `seed_2`, and `reference.json` made of them by the command."""
    folder = tmp_path_factory.mktemp("runs")
    seeds = [str(workdirs.write(folder / f"seed_{seed}", seed)) for seed in range(3)]
    assert command.main(["make", "--workdirs", *seeds, "--machine", "a desk", "--out",
                         str(folder / "reference.json")]) == 0
    return folder


@pytest.fixture(scope="module")
def reference(directory):
    return health.from_json(json.loads((directory / "reference.json").read_text()))


def judge(directory, workdir, capsys):
    """Runs the command; returns its exit code and what it printed."""
    code = command.main(["compare", "--workdir", str(workdir), "--reference", str(directory / "reference.json")])
    output = capsys.readouterr()
    return code, output.out + output.err


def test_its_own_runs_and_others_of_the_same_kind_are_healthy(directory, reference, tmp_path, capsys):
    code, words = judge(directory, directory / "seed_1", capsys)
    assert code == 0 and words.startswith("Healthy: tokenizer up to step 2400 of 2400, generator up to step 900 of 900")
    bits = runs.read(directory / "seed_1").stages["generator"].evaluation["validation/bits_per_image"]
    line, = [line.split() for line in words.splitlines() if "bits_per_image" in line]
    own, mean, low, high = map(float, line[2:])
    assert own == float(f"{bits:.4g}") and low <= own <= high and low < mean < high
    for seed in range(3, 23):
        verdict = health.compare(reference, runs.read(workdirs.write(tmp_path / str(seed), seed)))
        assert verdict.healthy, str(verdict)


@pytest.mark.parametrize(("changed", "named", "also"), [
    ({"loss/reconstruction": lambda t, v: v if t < 0.5 else 30 * v}, "loss/reconstruction", "above, from step 12.. on"),
    ({"loss/reconstruction": lambda t, v: v if t < 0.5 else float("nan")}, "loss/reconstruction", "not a number"),
    ({"validation/structure_perplexity/all": lambda t, v: 4.0}, "structure_perplexity/all", "revival of dead codes"),
    ({"accuracy": lambda t, v: 0.02, "cross_entropy/scale_2": lambda t, v: 6.5}, "cross_entropy/scale_2",
     "whether the tokenizer is healthy first"),
    ({"latent_rms": lambda t, v: 3 * v if 0.3 < t < 0.6 else v}, "latent_rms", r"above, from step \d+ to 1\d+:"),
    ({"latent_rms": lambda t, v: 0.3 * v}, "latent_rms", "below"),
])
def test_runs_that_go_wrong_are_not(directory, tmp_path, capsys, changed, named, also):
    code, words = judge(directory, workdirs.write(tmp_path, 3, changed=changed), capsys)
    lines = [line for line in words.splitlines() if line.startswith("- ")]
    assert code == 1 and words.startswith("Not healthy") and len(lines) == len(changed)
    assert any(named in line and re.search(also, line) for line in lines)


def test_better_than_the_reference_is_healthy_where_there_is_a_better(directory, tmp_path, capsys):
    changed = {"validation/psnr": lambda t, v: 2 * v, "loss/cross_entropy": lambda t, v: v / 2}
    assert judge(directory, workdirs.write(tmp_path, 3, changed=changed), capsys)[0] == 0


def test_a_perceptual_network_without_weight_is_no_setting():
    def named(weight):
        config = workdirs.config(**{"tokenizer.loss.perceptual": weight, "tokenizer.perceptual_network": "vgg16:PATH"})
        return "tokenizer.perceptual_network" in health.settings(config)

    assert named(0.1) and not named(0.0)


def test_a_run_that_goes_on_is_judged_so_far(directory, tmp_path, capsys):
    run = workdirs.write(tmp_path / "part", 3, stages=("tokenizer",), until=0.5,
                         changed={"loss/view": lambda t, v: v if t < 0.3 else 5 * v})
    code, words = judge(directory, run, capsys)
    assert code == 1 and "tokenizer up to step 1200 of 2400" in words and "generator: not begun yet" in words
    code, words = judge(directory, workdirs.write(tmp_path / "begun", 3, until=0.03, stages=("tokenizer",)), capsys)
    assert code == 2 and "nothing to compare yet: tokenizer is at step 60 of 2400" in words


def test_a_curve_that_is_not_logged_is_missed(directory, tmp_path, capsys):
    run = workdirs.write(tmp_path, 3)
    metrics = run / "tokenizer" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"latent_rms"', '"latent_size"'))
    code, words = judge(directory, run, capsys)
    assert code == 1 and "tokenizer, latent_rms is missing" in words


def test_other_settings_are_refused_by_name_and_those_of_the_machine_are_not(directory, tmp_path, capsys):
    run = workdirs.write(tmp_path / "other", 3, **{"tokenizer.train.steps": 4800, "generator.model.depth": 2})
    code, words = judge(directory, run, capsys)
    assert code == 2 and "generator.model.depth is 4 there and 2 here" in words
    assert "tokenizer.train.steps is 2400 there and 4800 here" in words
    run = workdirs.write(tmp_path / "machine", 3, **{
        "mesh.fsdp": 2, "generator.model.remat": "blocks", "tokenizer.train.log_every": 10, "data.num_workers": 3,
        "data.max_unreadable": 0.5, "sampling.cfg": 2.0})
    assert judge(directory, run, capsys)[0] == 0
    config = workdirs.config(3)
    del config["tokenizer"]["loss"]["l1"]  # as in an earlier version: it has the default
    (run / "config.json").write_text(json.dumps(config))
    assert judge(directory, run, capsys)[0] == 0


def test_the_shipped_reference_is_for_the_shipped_config():
    """A new setting that decides what is learned needs a new reference, and any other an entry in `_OTHERS`."""
    shipped = health.from_json(json.loads(health.locate("tiny").read_text()))
    config = workdirs.config() | {"class_names": shipped.settings["class_names"]}
    assert health.differing(shipped.settings, health.settings(config)) == []


@pytest.mark.parametrize(("problem", "seed", "settings"), [
    ("at least three, each with another seed", 1, {}),
    ("tokenizer has logged step 1200 of 2400", 3, {"until": 0.5}),
    ("generator has logged step 0 of 900", 3, {"stages": ("tokenizer",)}),
    ("generator.train.label_dropout is 0.1 there and 0.2 here", 3, {"generator.train.label_dropout": 0.2}),
    ("tokenizer: latent_rms is not finite", 3, {"changed": {"latent_rms": lambda t, v: float("inf")}}),
])
def test_a_reference_is_made_of_finished_runs_of_three_seeds(directory, tmp_path, problem, seed, settings):
    good = [runs.read(directory / f"seed_{seed}") for seed in range(2)]
    with pytest.raises(ValueError, match=problem):
        health.make([*good, runs.read(workdirs.write(tmp_path, seed, **settings))], {})


def test_bands_and_final_numbers_are_those_of_the_runs(reference, directory):
    stages = [runs.read(directory / f"seed_{seed}").stages["tokenizer"] for seed in range(3)]
    final = reference.final["tokenizer"]["validation/psnr"]
    values = [stage.evaluation["validation/psnr"] for stage in stages]
    np.testing.assert_allclose([final["mean"], final["low"], final["high"]],
                               [np.mean(values), min(values), max(values)], rtol=1e-4)
    band = reference.curves["tokenizer"]["latent_rms"]
    assert len(band.steps) == health.POINTS - 1 and band.steps[0] == 190  # 140, 160, ..., 240
    middle = [np.median(stage.curves["latent_rms"].values[6:12]) for stage in stages]
    np.testing.assert_allclose([band.low[0], band.mean[0], band.high[0]],
                               [min(middle), np.mean(middle), max(middle)], rtol=1e-4)
    assert not any(name.startswith(runs.OF_THE_MACHINE) for name in reference.curves["tokenizer"])
    assert reference.about["machine"] == "a desk" and reference.about["seeds"] == [0, 1, 2]


def test_what_is_allowed_is_the_range_widened_by_its_neighbours(reference):
    band = health.Band([1, 2, 3, 4, 5, 6], [0.0] * 6, [-1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0])
    low, high = band.allowed()
    np.testing.assert_array_equal(low, [-5, -4, -4, -2, -2, -2])
    np.testing.assert_array_equal(high, [5, 5, 5, 3, 3, 2])
    low, high = health.Band([1], [100.0], [100.0], [100.0]).allowed()  # one number, the same in all runs
    np.testing.assert_array_equal([low[0], high[0]], [95, 105])


def test_stretches_do_not_hang_on_how_often_a_run_logs():
    steps = np.arange(1, 2001)
    every, some = (health.medians(Curve(s, s * 1.0), 2000) for s in (steps, steps[9::10]))
    assert every.keys() == some.keys() == set(range(1, 20))
    assert all(abs(every[k][1] - some[k][1]) <= 5 for k in every)
