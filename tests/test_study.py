"""The study: its rows are what they say, its statistics are right, and one row runs from its training to the report."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from benchmarks.study import information, measure, plan, recipes, report, rows, runs, shift, tables
from benchmarks.study.__main__ import main
from refocus_jax import main as program
from refocus_jax.config import build, catalog, check
from refocus_jax.judges import features
from tests.fixtures import extractor as small_extractor
from tests.fixtures import untrained


@pytest.fixture
def study(tmp_path):
    return recipes.Study(directory=tmp_path / "study", base="tiny", data="photos", settings={},
                         features=("efficientnet_lite0", "efficientnet_lite1"), guidance=(0.0, 1.5))


def flat(recipe):
    return flatten_dict(recipe.load().to_dict(), sep=".")


def differing(a, b):
    return {name for name in a if a[name] != b[name]}


@pytest.mark.parametrize("name", rows.ROWS)
def test_a_row_can_be_trained_behind_its_tokenizer(study, name):
    row = rows.ROWS[name]
    assert row.block in rows.MEASURES and set(row.against) <= rows.ROWS.keys() - {name}
    first, second = study.tokenizer(row.tokenizer, 1).load(), study.generator(row, 1).load()
    for c in (first, second):
        check.check(c, 1)
        assert (c.seed, c.data.source) == (1, "photos")
    assert build.generator_task(second, 3).teacher.enabled == ("noteacher" not in name and row.block != "B"
                                                               and not name.startswith("var") and name != "mvar_var")
    trained, read = build.tokenizer(first), build.tokenizer(second)
    assert read.structure == trained.structure
    assert read.alias in (None, trained.alias)
    assert second.tokenizer.pretrained == str(study.directory / "tokenizers" / row.tokenizer / "1")


def test_blocks_vary_what_they_are_about_and_nothing_else(study):
    found = {name: flat(study.generator(row, 0)) for name, row in rows.ROWS.items()}
    for tokenizer in ("full", "norefocus"):
        swaps = {name: values for name, values in found.items() if name.endswith(f"_behind_{tokenizer}")}
        assert len(swaps) == 6 and len({tuple(v[f"focus.{n}"] for n in ("psf", "schedule", "downsample"))
                                        for v in swaps.values()}) == 6
        for values in swaps.values():
            assert differing(values, swaps[f"disk_behind_{tokenizer}"]) <= {"focus.psf", "focus.schedule",
                                                                           "focus.downsample"}
    for name in ("placebo", "compute"):
        assert differing(found[name], found["full"]) == {"generator.teacher.alias"}
    assert differing(found["full"], found["disk_behind_full"]) == {"generator.teacher.enabled"}
    for name, other in (("mvar", "full"), ("mvar_var", "var")):
        assert differing(found[name], found[other]) == {"generator.architecture"}


def test_a_longer_tokenizer_keeps_its_proportions(study):
    for settings in ({}, {"tokenizer.train.steps": 1200, "tokenizer.adversarial.start": 1050}):
        changed = dataclasses.replace(study, settings=settings)
        plain, longer = (changed.tokenizer(name, 0).load().tokenizer for name in ("var", "var_equal"))
        assert longer.train.steps == round(1.35 * plain.train.steps)
        assert longer.adversarial.start == round(1.35 * plain.adversarial.start)


def test_names_choose_rows_and_what_they_are_compared_with():
    assert list(rows.chosen("C")) == ["disk_behind_full", "full", "placebo", "compute"]
    assert list(rows.chosen("shared,residual")) == ["full", "residual", "residual_noteacher", "shared"]
    assert list(rows.chosen("B,C,A,A',M")) == list(rows.ROWS)
    assert list(rows.chosen("M")) == ["var", "mvar", "mvar_var"]
    with pytest.raises(ValueError, match="--rows has D; give blocks"):
        rows.chosen("A,D")


def test_settings_of_all_rows_are_parsed_and_kept(study):
    assert recipes.parse_setting("--config.tokenizer.train.steps=12") == ("tokenizer.train.steps", 12)
    assert recipes.parse_setting("--config.evaluate.features=inception") == ("evaluate.features", "inception")
    for wrong in ("--config.seed=1", "--config.generator.teacher.alias=none", "--config.stpes=1", "--steps=1",
                  "--config.tokenizer.train.steps=many"):
        with pytest.raises(ValueError, match="give"):
            recipes.parse_setting(wrong)
    changed = dataclasses.replace(study, settings={"grid_sizes": (1, 2, 4, 8), "evaluate.count": 64})
    changed.write()
    changed.write()
    there = recipes.read(study.directory)
    assert there.generator(rows.ROWS["full"], 0) == changed.generator(rows.ROWS["full"], 0)
    with pytest.raises(ValueError, match="another study: settings was"):
        study.write()
    assert "--config=tiny:norefocus" in there.tokenizer("norefocus", 0).flags()
    smoke = dataclasses.replace(study, base="tiny:smoke")
    assert smoke.tokenizer("norefocus", 0).config == "tiny:smoke,norefocus"


def test_a_mean_has_the_interval_of_student():
    found = tables.mean([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # the quantile for 2 degrees of freedom, times the standard error
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half), abs=1e-6)
    assert str(found) == "2 ± 2.5" and str(tables.mean([5.0])) == "5"


def test_rows_are_paired_by_seed():
    a, b = {0: 11.0, 1: 22.0, 2: 34.0, 5: 0.0}, {2: 31.0, 0: 10.0, 1: 20.0, 7: 1.0}
    found = tables.paired(a, b)  # 1, 2 and 3
    t = 2 * math.sqrt(3)
    assert found.seeds.mean == 2 and found.effect == pytest.approx(2)
    assert found.p == pytest.approx(1 - t / math.sqrt(t * t + 2))  # both tails, 2 degrees of freedom
    assert tables.paired(a, {7: 1.0}) is None
    for same in ({0: 1.0}, {0: 1.0, 1: 2.0}):
        assert math.isnan(tables.paired(same, same).p)


def test_holm_corrects_for_all_comparisons():
    found = tables.holm([0.01, 0.035, 0.03, math.nan, 0.9])
    np.testing.assert_allclose(found, [5 * 0.01, 4 * 0.03, 4 * 0.03, math.nan, 1])
    assert tables.holm([]) == []


def test_the_bootstrap_draws_images_or_classes():
    """With values that only the class determines, images of a class tell nothing new."""
    values, classes = [0.0] * 50 + [1.0] * 50, [3] * 50 + [8] * 50
    assert tables.over_clusters(values, classes, "class") == (0.5, 0, 1)
    centre, low, high = tables.over_clusters(values, classes, "image")
    assert centre == 0.5 and 0.35 < low < 0.45 and 0.55 < high < 0.65


def test_only_registered_comparisons_are_tested():
    def runs_of(*distances):
        return {seed: {"guidance": [0.0], "judge": "fid", "numbers": {"guidance_0/validation/fid": distance}}
                for seed, distance in enumerate(distances)}

    results = {"var": runs_of(10.0, 11.0), "full": runs_of(8.0, 9.01), "mvar": runs_of(7.0, 7.5),
               "mvar_var": runs_of(9.0, 9.75)}
    registered = tables._comparisons(results, "image", registered=True)
    later = tables._comparisons(results, "image", registered=False)
    assert len(registered.rows) == 24 and "all 24 comparisons" in registered.note
    (row,) = [row for row in registered.rows if row[1] == "var − full"]
    assert row[3:5] == ["2", "+1.995"] and row[-1] == pytest.approx(24 * row[-2]) and row[-1] < 0.1
    assert [(row[1], row[4]) for row in later.rows] == [("mvar − mvar_var", "-2.125"), ("mvar_var − var", "-1.125")]
    assert "p" not in later.columns and all(len(row) == len(later.columns) for row in later.rows)


def test_finished_rows_are_skipped_and_tokenizers_are_shared(study, monkeypatch):
    done, lock = [], threading.Lock()

    def note(*what):
        with lock:
            done.append(what)

    monkeypatch.setattr(runs, "train", lambda recipe, mode, workdir: note(mode, str(workdir)))
    monkeypatch.setattr(runs, "measure", lambda study, row, seed: note("measure", row, seed))
    study.results.mkdir(parents=True)
    study.result("placebo", 0).write_text("{}")
    runs.run(study, rows.chosen("C"), [0, 1], 1)
    measured = [what[1:] for what in done if what[0] == "measure"]
    assert sorted(measured) == sorted((row, seed) for row in rows.chosen("C") for seed in (0, 1)
                                      if (row, seed) != ("placebo", 0))
    assert [what[1] for what in done if what[0] == "tokenizer"] == [
        str(study.tokenizer_workdir("full", seed)) for seed in (0, 1)]
    done.clear()
    for row in rows.chosen("C"):
        for seed in (0, 1):
            study.result(row, seed).write_text("{}")
    runs.run(study, rows.chosen("C"), [0, 1], 1)
    assert done == []


def test_a_failure_is_told_after_the_other_rows(study, monkeypatch):
    measured = []

    def train(recipe, mode, workdir):
        if "placebo" in str(workdir):
            raise RuntimeError("generator ended with code 1")

    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(runs, "measure", lambda study, row, seed: measured.append(row))
    with pytest.raises(RuntimeError, match="^placebo-0: generator ended with code 1. Correct the cause"):
        runs.run(study, rows.chosen("C"), [0], 1)
    assert measured == ["disk_behind_full", "full", "compute"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind processes to cores")
def test_processes_have_cores_of_their_own(monkeypatch):
    """Each of two threads passes on a core of its own; the third thread would have none."""
    bound = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 7})
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: bound.append(cores))
    meet = threading.Barrier(2)
    with runs._pool(2) as pool:
        list(pool.map(lambda _: meet.wait(), range(2)))
    assert sorted(bound, key=min) == [{4}, {7}]
    with pytest.raises(ValueError, match="--processes is 3, and this process may use 2 cores"):
        runs._pool(3)


def test_commands_are_logged_and_their_seconds_add_up(tmp_path):
    workdir = tmp_path / "run"
    work = "sum(i * i for i in range(2_000_000)); print('done')"
    seconds = []
    for _ in range(2):
        runs.call([sys.executable, "-c", work], "measure", workdir)
        seconds.append(json.loads((workdir / runs.SECONDS).read_text())["measure"])
    with pytest.raises(RuntimeError, match="generator ended with code 3; see .*generator.log"):
        runs.call([sys.executable, "-c", work + "; raise SystemExit(3)"], "generator", workdir)
    assert (workdir / "measure.log").read_text() == "done\ndone\n"
    assert 0 < seconds[0] < seconds[1]
    assert set(json.loads((workdir / runs.SECONDS).read_text())) == {"measure", "generator"}


def test_a_plan_counts_steps_and_flops(study):
    changed = dataclasses.replace(study, base="tests/fixtures/micro.py")
    steps, flops = plan.cost("generator", changed.generator(rows.ROWS["full"], 0), "cpu")
    assert steps == 6 and flops > plan.cost("generator", changed.generator(rows.ROWS["noteacher"], 0), "cpu")[1] > 0


def train(recipe, mode, workdir):
    """Trains stage 2; the parameters of stage 1 are random."""
    if mode == "generator":
        program.find(mode)(recipe.load(), str(workdir))
    else:
        untrained.save(workdir, mode, build.tokenizer_task(recipe.load()))


def test_one_row_from_its_training_to_the_report(tmp_path, images, monkeypatch, capsys):
    """In this process, with a small judge and a random tokenizer, because most of the time is compilation."""
    np.savez(tmp_path / "images.npz", x=images, y=np.arange(64) // 4 % 2, val=np.arange(64) % 4 == 0,
             classes=np.array(["dark", "bright"]))
    monkeypatch.setattr(features, "load", small_extractor.load)
    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(runs, "measure", measure.measure)
    directory = tmp_path / "study"
    settings = {"evaluate.count": 12, "evaluate.reference_count": 16, "evaluate.batch_size": 4,
                "data.validation_examples": 24, "data.crops_per_image": 2}
    study = recipes.Study(directory=directory, base="tests/fixtures/micro.py", data=f"npz:{tmp_path}/images.npz",
                          settings=settings, features=("efficientnet_lite0",), guidance=(0.0,))
    study.write()
    runs.run(study, {"full": rows.ROWS["full"]}, [0], 1)
    content = study.result("full", 0).read_text()
    assert str(tmp_path) not in content
    found = json.loads(content)
    numbers, held_out = found["numbers"], found["images"]
    assert sorted(held_out["class"]) == [0] * 8 + [1] * 8
    assert held_out["crops"] == [2] * 8 + [1] * 8  # 24 crops of 16 images
    for scale in ("scale_1", "scale_3", "last", "all"):
        of_training = "scale_3" if scale == "last" else scale
        assert numbers[f"cross_entropy/{scale}"] == pytest.approx(
            np.average(held_out["cross_entropy"][scale], weights=held_out["crops"]), rel=1e-5) == pytest.approx(
            found["curves"][f"validation/cross_entropy/{of_training}"]["values"][-1], rel=1e-5)
    own, other = (held_out["teacher_minus_student"][evidence] for evidence in ("own", "class"))
    assert np.average(own, weights=held_out["crops"]) == pytest.approx(numbers["teacher_minus_student/mean"], abs=1e-6)
    assert own != other
    assert {"guidance_0/validation/fd_efflite0", "guidance_0/train/fd_efflite0", "tokenizer/psnr",
            "guidance_0/validation/fd_efflite0_to_reconstructions", "guidance_0/train/kid_efflite0",
            "unigram_cross_entropy/all"} <= numbers.keys()
    assert found["steps"] == {"tokenizer": 6, "generator": 6} and found["judge"] == "fd_efflite0"
    shared = [path for path in (directory / "full" / "0" / "evaluation").iterdir() if path.is_symlink()]
    assert len(shared) == 2  # the references of both splits

    capsys.readouterr()
    main(["table", f"--directory={directory}"])
    printed = capsys.readouterr().out
    assert "| full | own | 1 |" in printed and "| full | 1 |" in printed
    main(["information", f"--directory={directory}"])
    assert len(re.findall(r"\| full \| 1 \| [+-]\d\.\d{4} \[", capsys.readouterr().out)) == 2
    page = report.write(directory, "image").read_text()
    assert "Registered comparisons" in page and "samples of full" in page and "Held-out cross-entropy" in page
    main(["table", f"--directory={study.results}"])  # the results alone, as they are kept elsewhere
    assert capsys.readouterr().out == printed


def test_the_command_explains_what_is_missing(tmp_path):
    found = subprocess.run([sys.executable, "-m", "benchmarks.study", "table", f"--directory={tmp_path}"],
                           capture_output=True, text=True)
    assert found.returncode == 1 and "holds no results; give the directory of `run`" in found.stderr


def test_kappa_is_one_for_equal_tokens_and_near_zero_by_chance():
    rng = np.random.default_rng(0)
    tokens, groups = rng.integers(0, 8, (40, 64)), np.arange(40) % 10
    assert shift.kappa(tokens, tokens, groups, 8) == (1, 1, 1)
    value, low, high = shift.kappa(tokens, rng.integers(0, 8, (40, 64)), groups, 8)
    assert low < 0 < high and abs(value) < 0.05
    # Half of the tokens are equal: the other half agrees by chance, with probability 1/8.
    half = np.where(rng.random((40, 64)) < 0.5, tokens, rng.integers(0, 8, (40, 64)))
    value, low, high = shift.kappa(tokens, half, groups, 8)
    assert low < 0.5 < high and high - low < 0.15


def test_information_is_found_where_it_is_and_nowhere_else():
    """Alias tokens that are random tell nothing; ones that choose between two tokens tell log 2."""
    rng = np.random.default_rng(0)
    parent, alias = (rng.integers(0, 8, (400, 64)) for _ in range(2))
    half, sizes = np.arange(400) % 2 == 0, {"structure": 16, "alias": 8}
    child = 2 * parent + rng.integers(0, 2, parent.shape)
    nothing = information.information(child, parent, alias, half, sizes)
    assert nothing.shape == (400,) and -0.02 < nothing.mean() < 0.001
    told = information.information(2 * parent + alias % 2, parent, alias, half, sizes)
    assert told.mean() == pytest.approx(math.log(2), abs=0.02)
    # What only the counted half of the images has is not found in the other.
    of_one_half = np.where(half[:, None], 2 * parent + alias % 2, child)
    assert information.information(of_one_half, parent, alias, half, sizes)[~half].mean() < 0.001


def test_tokens_are_paired_by_place_and_by_class():
    np.testing.assert_array_equal(information.covering(2, 4).reshape(4, 4),
                                  [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])
    np.testing.assert_array_equal(information.covering(2, 3), [0, 0, 1, 0, 0, 1, 2, 2, 3])
    label, image = np.arange(60) % 12 % 3, np.arange(60) % 12  # three classes of four images, five crops of each
    partner = information.another(label, image)
    assert sorted(partner) == list(range(60))
    assert (label[partner] == label).all() and (image[partner] != image).all()


def test_crops_differ_by_one_pixel_and_need_larger_images(tmp_path, images):
    c = catalog.load("tests/fixtures/micro.py")
    large = np.random.default_rng(0).integers(0, 255, (8, 10, 11, 3), np.uint8)
    for name, x in (("large", large), ("equal", images[:8])):
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.arange(8) % 2, val=np.arange(8) % 2 == 0)
    c.data.source = f"npz:{tmp_path}/large.npz"
    here, right, labels = shift.crops(c)
    assert here.shape == (4, 8, 8, 3) and (here[:, :, 1:] == right[:, :, :-1]).all() and len(labels) == 4
    np.testing.assert_allclose(here[1], large[2, 1:9, 1:9] / 127.5 - 1, atol=1e-6)
    c.data.source = f"npz:{tmp_path}/equal.npz"
    with pytest.raises(ValueError, match="held-out image 0 of npz:.* has 8 x 8 pixels; a shift needs more than"):
        shift.crops(c)
