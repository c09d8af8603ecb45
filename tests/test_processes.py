"""Two processes of four devices train and evaluate by the command line; one process of two devices goes on."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refocus_jax.config import build, stages
from refocus_jax.data import sources
from refocus_jax.judges import features
from refocus_jax.modes import evaluate, train
from refocus_jax.pretrained.prepare import prepare
from refocus_jax.runtime import bucket
from tests.fixtures import bucket as emulator
from tests.fixtures import extractor, packed, untrained, xla

pytestmark = emulator.WARNINGS

# The command line, with a small feature network. A process that hangs says where, and ends.
MAIN = """
import faulthandler
faulthandler.dump_traceback_later(500, exit=True)
from absl import app
from refocus_jax import main
from refocus_jax.judges import features
from tests.fixtures import extractor
features.load = extractor.load
app.run(main.main)
"""

# Only what stage 2 does with `evaluate.during_training` before it trains.
MEASURE = MAIN.replace("app.run", """
from refocus_jax.config.run import open_run
from refocus_jax.modes import train
main.find = lambda mode: lambda config, workdir: print(
    train._sample_distance(open_run(config, workdir, "generator")).reference.pool.tolist())
app.run""")

TRAIN_ONLY = MAIN.replace("app.run", """
from refocus_jax.training.evaluators import GeneratorEvaluator
from tests.fixtures import unmeasured
GeneratorEvaluator.__call__ = unmeasured.evaluate
app.run""")


def run_both(workdir, mode, settings, program=MAIN):
    """The command line in two processes of four devices; both must succeed."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": xla.flags(devices=4)}
    command = [sys.executable, "-c", program, "--config=tests/fixtures/micro.py", f"--mode={mode}",
               f"--workdir={workdir}", "--config.mesh.fsdp=2", f"--coordinator=localhost:{port}",
               "--num_processes=2", *(f"--config.{name}={value}" for name, value in settings.items())]
    started = [subprocess.Popen([*command, f"--process_id={i}"], env=environment, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT) for i in range(2)]
    try:
        printed = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], printed
    return printed


def test_two_processes_convert_into_a_bucket_and_measure_there(url, tmp_path):
    rows = packed.examples(120)
    for number in range(3):
        packed.write_parquet(tmp_path / f"in/train-{number:05d}-of-00003.parquet", rows[40 * number:40 * number + 40])
    printed = run_both(f"{url}/workdir", "convert", {"convert.source": f"parquet:{tmp_path}/in",
                                                     "convert.output": f"{url}/images"})
    assert f"{url}/images: 120 train images of 3 classes" in printed[0] and "All files are in" not in printed[0]
    assert emulator.names(url) == {"images/images.json",
                                   *(f"images/train-0000{i}-of-00003.array_record" for i in range(3))}
    source = sources.load(f"array_record:{url}/images", "train")
    assert [(record["image"], record["label"]) for record in map(source.records.__getitem__, range(120))] == rows
    assert list(source.chosen) == [index for index in range(120) if index % 10 != 9]  # every tenth is held out

    settings = {"data.source": f"array_record:{url}/images", "evaluate.during_training": 10,
                "tokenizer.train.batch_size": 8, "generator.train.batch_size": 8}
    printed = run_both(f"{url}/workdir", "generator", settings, MEASURE)
    (kept,) = Path(bucket.stage(f"{url}/workdir", only_reads=True)).glob("evaluation/features_*/pool.npy")
    assert len(np.load(kept)) == 12  # the held-out images, measured once
    for lines in printed:
        assert str(np.load(kept).tolist()) in lines


@pytest.fixture
def settings(images, tmp_path):
    """Settings of a training that two processes of four devices can do."""
    np.savez(tmp_path / "images.npz", x=images, y=np.arange(64) % 2, val=np.arange(64) % 4 == 0)
    return {"tokenizer.train.batch_size": 8, "generator.train.batch_size": 8,
            "data.source": f"npz:{tmp_path}/images.npz"}


def logged(workdir, stage, name):
    """The steps whose metrics have a number of this name."""
    lines = map(json.loads, (workdir / stage / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if name in line]


@pytest.mark.usefixtures("unmeasured")
def test_one_process_goes_on_where_two_stopped(micro, settings, tmp_path):
    """Stage 2, on tokens made on the fly, without measuring what is held out."""
    c = micro()
    untrained.save(tmp_path / "run", "tokenizer", build.tokenizer_task(c))
    settings |= {"tokenizer.train.steps": 3, "data.token_examples": 0}
    run_both(tmp_path / "run", "generator", settings | {"generator.train.steps": 2}, TRAIN_ONLY)
    c.update_from_flattened_dict(settings | {"generator.train.steps": 3})
    train.train_generator(prepare(c, str(tmp_path / "run")))
    assert logged(tmp_path / "run", "generator", "loss/total") == [1, 2, 3]
    assert stages.trained(tmp_path / "run", "generator").step == 3


@pytest.mark.slow
def test_one_process_goes_on_and_measures_as_two_did(micro, settings, tmp_path, monkeypatch):
    settings |= {"tokenizer.train.steps": 2, "profile.steps": (2, 2)}
    run_both(tmp_path / "run", "tokenizer", settings)

    traces = (tmp_path / "run/tokenizer/profile/plugins/profile").glob("*/*.trace.json.gz")
    assert sorted(path.parent.name for path in traces) == ["from_step_2_process_0", "from_step_2_process_1"]

    c = micro()
    c.update_from_flattened_dict(settings | {"tokenizer.train.steps": 3})
    train.train_tokenizer(prepare(c, str(tmp_path / "run")))
    assert logged(tmp_path / "run", "tokenizer", "loss/total") == [1, 2, 3]
    assert logged(tmp_path / "run", "tokenizer", "validation/psnr") == [2, 3]
    assert stages.trained(tmp_path / "run", "tokenizer").step == 3

    # Also an untrained generator: two processes draw and measure the same as one.
    untrained.save(tmp_path / "run", "generator", build.generator_task(c, 2))
    settings |= {"evaluate.count": 11, "evaluate.reference_count": 13}
    printed = run_both(tmp_path / "run", "evaluate", settings | {"evaluate.batch_size": 1})
    assert "fd_efflite0" in printed[0] and "fd_efflite0" not in printed[1]
    two = json.loads((tmp_path / "run/evaluation.json").read_text())
    shutil.move(two["samples"]["path"], tmp_path / "samples.npz")
    shutil.rmtree(tmp_path / "run/evaluation")
    monkeypatch.setattr(features, "load", extractor.load)
    c.update_from_flattened_dict(settings | {"evaluate.batch_size": 4})
    evaluate.run(c, str(tmp_path / "run"))
    one = json.loads((tmp_path / "run/evaluation.json").read_text())
    with np.load(tmp_path / "samples.npz") as drawn, np.load(one["samples"]["path"]) as expected:
        for name in ("arr_0", "arr_1"):
            np.testing.assert_array_equal(drawn[name], expected[name])
    for part in ("tokenizer", "generator"):
        assert one[part] == pytest.approx(two[part], abs=1e-4) and one[part]
    assert one["samples"] == two["samples"] and one["reference"] == two["reference"]
