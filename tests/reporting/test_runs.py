"""What is read of a workdir."""

import json

import numpy as np
import pytest

from refocus_jax.reporting import runs
from refocus_jax.runtime.writer import Writer
from tests.fixtures import workdirs


def test_what_has_been_written_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(workdirs.config()))
    with Writer(tmp_path / "tokenizer") as writer:
        writer.scalars(10, {"loss": 2.0})
        writer.scalars(20, {"loss": float("nan"), "validation/psnr": 20.0})
        writer.json("evaluation", {"step": 20, "validation/psnr": 20.0, "validation/gap": float("inf")})
    with open(tmp_path / "tokenizer" / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "lo')  # cut off by a crash
    run = runs.read(tmp_path)
    stage = run.stages["tokenizer"]
    assert run.stages.keys() == {"tokenizer"} and run.name == tmp_path.name and run.steps("generator") == 900
    np.testing.assert_array_equal(stage.curves["loss"].steps, [10, 20])
    np.testing.assert_array_equal(stage.curves["loss"].values, [2.0, np.nan])
    np.testing.assert_array_equal(stage.curves["validation/psnr"].steps, [20])
    assert stage.last_step == 20
    assert stage.evaluation == {"step": 20, "validation/psnr": 20, "validation/gap": np.inf}
    assert run.evaluation is None and run.last_numbers("tokenizer") == {"validation/psnr": 20, "validation/gap": np.inf}


def test_what_was_measured_of_a_run_is_among_its_last_numbers(tmp_path):
    workdirs.write(tmp_path, stages=("tokenizer",))
    (tmp_path / "evaluation.json").write_text(json.dumps({"tokenizer": {"ssim": 0.5}, "generator": {}, "notes": ["x"]}))
    run = runs.read(tmp_path)
    found = run.last_numbers("tokenizer")
    assert found["ssim"] == 0.5 and run.evaluation["notes"] == ["x"]
    assert found.keys() == {"ssim", *run.stages["tokenizer"].evaluation} - {"step"}


def test_a_directory_without_a_run_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json; give the --workdir"):
        runs.read(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer").mkdir()
    metrics = tmp_path / "tokenizer" / "metrics.jsonl"
    for line in ("{]\n", "[1]\n", '{"loss": 1}\n', '{"step": 2, "loss": "high"}\n'):
        metrics.write_text('{"step": 1, "time": 0}\n' + line)
        with pytest.raises(ValueError, match="line 2 is damaged"):
            runs.read(tmp_path)
    metrics.write_text("")
    assert runs.read(tmp_path).stages["tokenizer"].last_step == 0
    (tmp_path / "tokenizer" / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match="evaluation.json is damaged"):
        runs.read(tmp_path)
