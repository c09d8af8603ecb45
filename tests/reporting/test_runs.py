"""What is read from a workdir."""

import json

import numpy as np
import pytest

from refocus_jax.config import base
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


def test_a_directory_without_a_run_is_named_with_what_it_lacks(tmp_path):
    (tmp_path / "file").touch()
    for path, lacks in ((tmp_path, "it has no config.json"), (tmp_path / "file", "it is a file"),
                        (tmp_path / "nothing", "it does not exist")):
        with pytest.raises(FileNotFoundError, match=f"{path} is not the workdir of a run: {lacks}; give the --workdir"):
            runs.read(path)


@pytest.mark.parametrize("content", [b'{"seed": 0, "image', b"", b"[1, 2]", b"null", b'{"seed": "\xff"}', b"\0" * 8,
                                     b"[" * 100_000, b"3"], ids=lambda content: repr(content[:20]))
@pytest.mark.parametrize("name", ["config.json", "evaluation.json", "tokenizer/evaluation.json"])
def test_damaged_files_are_named_with_a_remedy(tmp_path, name, content):
    workdirs.write(tmp_path, stages=("tokenizer",), until=0.01)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path / name} is damaged .*; remove it, and the command that wrote it"):
        runs.read(tmp_path)


BAD_LINES = [b"{]", b"[1]", b'{"loss": 1}', b'{"step": 2, "loss": "high"}', b'{"step": 2, "loss\xff": 1}', b"\0\0\0",
             b'{"step": 2, "lo', b'{"step": null}', b""]


@pytest.mark.parametrize("line", BAD_LINES, ids=repr)
def test_a_damaged_line_is_named_unless_it_is_the_last(tmp_path, line):
    workdirs.write(tmp_path, stages=("tokenizer",), until=0.01)
    metrics = tmp_path / "tokenizer" / "metrics.jsonl"
    metrics.write_bytes(b'{"step": 1, "time": 0}\n' + line + b'\n{"step": 3, "time": 0}\n')
    with pytest.raises(ValueError, match=f"{metrics}, line 2 is damaged .*; correct or remove that line"):
        runs.read(tmp_path)
    for end in (b"", b"\n"):
        metrics.write_bytes(b'{"step": 1, "time": 0}\n' + line + end)
        assert runs.read(tmp_path).stages["tokenizer"].last_step == 1
    metrics.write_bytes(b"")
    assert runs.read(tmp_path).stages["tokenizer"].last_step == 0


@pytest.mark.parametrize("name", ["seed", "tokenizer.train", "generator.train.evaluate_every"])
def test_a_run_that_is_older_than_a_setting_has_its_default(tmp_path, name):
    workdirs.write(tmp_path, stages=())
    content = json.loads((tmp_path / "config.json").read_text())
    *sections, last = name.split(".")
    del (content[sections[0]] if len(sections) == 1 else content["generator"]["train"] if sections else content)[last]
    (tmp_path / "config.json").write_text(json.dumps(content))
    config, defaults = runs.read(tmp_path).config, json.loads(base.get_config().to_json())
    for section in sections:
        config, defaults = config[section], defaults[section]
    assert config[last] == defaults[last]
    assert runs.read(tmp_path).config["image_size"] == 64


def test_a_config_without_classes_is_named(tmp_path):
    workdirs.write(tmp_path, stages=())
    content = json.loads((tmp_path / "config.json").read_text())
    del content["class_names"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config.json is damaged \(it lacks class_names.*\); remove it"):
        runs.read(tmp_path)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seed": "one"}, {"grid_sizes": []}, {"data": {"flip": 3}},
                                   {"data": 3}], ids=str)
def test_a_config_that_says_what_cannot_be_is_named(tmp_path, wrong):
    workdirs.write(tmp_path, stages=())
    content = json.loads((tmp_path / "config.json").read_text()) | wrong
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="config.json is damaged .*; correct it, or remove it and run the training's"):
        runs.read(tmp_path)


def test_settings_of_another_version_are_said_and_left_out(tmp_path, caplog):
    workdirs.write(tmp_path, stages=())
    content = json.loads((tmp_path / "config.json").read_text()) | {"tokenizer_batch_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert runs.read(tmp_path).config["tokenizer"]["train"]["batch_size"] == 8
    assert "has settings that this version does not have; they are left out: tokenizer_batch_size" in caplog.text
