"""`--mode=aliasing` on the smallest config, from only a config to a complete run."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from refocus_jax.config import build
from refocus_jax.evaluation import tables
from refocus_jax.focus import Pyramid
from refocus_jax.modes import aliasing
from refocus_jax.pretrained.prepare import prepare
from refocus_jax.runtime.checkpoint import Checkpoints
from tests.fixtures import small


@pytest.fixture(autouse=True)
def small_presets(monkeypatch):
    """Presets of 16 and 32 pixels; the images have 16."""
    monkeypatch.setattr(aliasing, "PRESETS", {"pair": Pyramid(grid_sizes=(2, 4), stride=4, rho_max=1.0),
                                              "large": Pyramid(grid_sizes=(1, 2), stride=16, rho_max=1.0)})


@pytest.fixture
def config(micro, tmp_path):
    """16 images of 16 px to measure on, and 12 to hold out."""
    coarse = np.random.default_rng(0).uniform(0, 255, (28, 4, 4, 3))
    images = np.asarray(jax.image.resize(coarse, (28, 16, 16, 3), "linear")).astype(np.uint8)
    np.savez(tmp_path / "images.npz", x=images, y=np.arange(28) % 2, val=np.arange(28) >= 16)
    c = micro()
    c.data.source = f"npz:{tmp_path}/images.npz"
    c.data.validation_examples = 12
    c.aliasing.images = 4
    return c


def read(workdir):
    content = json.loads((workdir / "aliasing" / "aliasing.json").read_text())
    found = {table["title"]: tables.Table(**table) for table in content["tables"]}
    shown = {chart["title"]: tables.chart_from_json(chart) for chart in content["charts"]}
    return content, found, shown


def random_params(task):
    return small.random_params(lambda key: task.init(key).params)


def test_a_config_and_data_are_enough_for_the_views(config, tmp_path, capsys):
    workdir = tmp_path / "run"
    aliasing.run(config, str(workdir))
    content, tables, shown = read(workdir)
    own = tables["this run's grids at 8 px, photographs: alias energy, % of the view's signal"]
    assert own.columns == ["view operator", "p = 1", "p = 2"]
    assert [row[0] for row in own.rows if "this run" in row[0]] == ["disk cosine + bilinear (this run)"]
    assert "pair at 16 px, photographs: in-band energy kept, %" in tables
    assert "large at 32 px, zone plate: in-band energy kept, %" in tables
    assert "Wiener gains of this run's views" in tables
    said = content["settings"]["skipped"]
    assert [reason.partition(":")[0] for reason in said] == [
        "a tokenizer", "large on photographs", "generated images", "gates"]
    files = sorted(path.name for path in (workdir / "aliasing").iterdir())
    assert len(files) == 1 + len(shown) + len(content["pictures"])
    for picture in content["pictures"]:
        with Image.open(workdir / "aliasing" / picture["file"]) as image:
            assert np.asarray(image).std() > 1
    assert [path.name for path in workdir.iterdir()] == ["aliasing"]  # no run has begun
    printed = capsys.readouterr().out
    assert own.title in printed and "Not measured: a tokenizer: " in printed
    json.dumps(content, allow_nan=False)


def test_a_run_has_its_tokenizer_its_images_and_its_teacher_measured(config, tmp_path, monkeypatch):
    """Weights are random, and saved as by a training."""
    monkeypatch.setattr(aliasing, "PRESETS", {})
    workdir = tmp_path / "run"
    run = prepare(config, str(workdir)).run
    for stage, task in (("tokenizer", build.tokenizer_task(config)),
                        ("generator", build.generator_task(config, run.num_classes))):
        with Checkpoints(workdir / stage / "checkpoints") as checkpoints:
            zeros = jax.tree.map(lambda like: np.zeros(like.shape, like.dtype),
                                 jax.eval_shape(task.init, jax.random.key(0)))
            checkpoints.save(1, zeros.replace(params=random_params(task)))
    folder = workdir / "samples" / "png"
    folder.mkdir(parents=True)
    for i, image in enumerate(np.random.default_rng(1).integers(0, 255, (12, 8, 8, 3), np.uint8)):
        Image.fromarray(image).save(folder / f"{i:06d}_0000.png")
    aliasing.run(config, str(workdir))
    content, tables, shown = read(workdir)
    assert content["settings"]["skipped"] == [
        "slanted edges: images of 8 px are too small"]
    assert tables["tokenizer: gratings"].rows[-1][0] == "zone plate"
    assert tables["tokenizer: character error of text, %"].rows[0][:3] == [6, 186, 0.0]
    assert [line.name for line in shown["power spectrum"].lines] == ["data (n = 12)", "generated (n = 12)"]
    gates = tables["learned gates and Wiener gains"]
    assert [row[0] for row in gates.rows] == [f"block {block}, p = {p}" for block in (-2, -1) for p in (2, 4)]
    wiener = {row[0]: row[1:] for row in tables["Wiener gains of this run's views"].rows}
    for row in gates.rows:
        assert 0 <= row[2] < row[4] < row[6] <= 1 and row[-2:] == wiener["p = 1" if "p = 2" in row[0] else "p = 2"]
    assert any(picture["file"] == "tokenizer_zone_plate_and_slanted_edges.png" for picture in content["pictures"])
    with Image.open(Path(workdir) / "aliasing" / "learned_gates_over_channels.png") as image:
        assert np.asarray(image).std() > 1


def test_images_from_anywhere_and_images_that_are_not_there(config, tmp_path, monkeypatch):
    monkeypatch.setattr(aliasing, "PRESETS", {})
    config.aliasing.samples = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="aliasing.samples is .*nowhere, but there is no such"):
        aliasing.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    np.savez(tmp_path / "drawn.npz", arr_0=np.random.default_rng(1).integers(0, 255, (12, 16, 16, 3), np.uint8))
    config.aliasing.samples = str(tmp_path / "drawn.npz")
    aliasing.run(config, str(tmp_path / "run"))
    _, tables, _ = read(tmp_path / "run")
    (spectrum,) = [table for title, table in tables.items() if title.startswith("power of luminance")]
    assert spectrum.rows[0][0] == "generated" and spectrum.columns[1] == "0.312 to 0.5"  # of their own 16 pixels


def test_the_newest_images_are_measured_unless_the_settings_name_others(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(aliasing, "PRESETS", {})
    monkeypatch.setattr(aliasing, "_views", lambda found, data, optics: data.crops(8, enlarge=True))
    drawn = np.random.default_rng(1).integers(0, 255, (12, 8, 8, 3), np.uint8)
    run = tmp_path / "run"
    png, npz, evaluated = (run / name for name in ("samples/png", "samples/samples.npz", "evaluation/a/samples.npz"))
    for folder in (png, evaluated.parent):
        folder.mkdir(parents=True)
    for i, image in enumerate(drawn):
        Image.fromarray(image).save(png / f"{i:06d}_0000.png")
    for path in (npz, evaluated):
        np.savez(path, arr_0=drawn)
    for order in ((png, npz, evaluated), (npz, evaluated, png), (evaluated, png, npz)):
        for seconds, path in enumerate(order):
            os.utime(path, (1000 + seconds, 1000 + seconds))
        aliasing.run(config, str(run))
        assert read(run)[0]["settings"]["generated"] == str(order[-1])
        assert f"Generated images: {order[-1]}\n" in capsys.readouterr().out
    config.aliasing.samples = str(evaluated)
    aliasing.run(config, str(run))
    assert read(run)[0]["settings"]["generated"] == str(evaluated)
    np.savez(npz, arr_0=drawn[:4])
    config.aliasing.samples = ""
    with pytest.raises(ValueError, match="aliasing.samples, by default the newest images, is .*npz, which has 4"):
        aliasing.run(config, str(run))


def test_without_matplotlib_nothing_is_measured(config, tmp_path, hide):
    hide("matplotlib")
    config.data.source = "npz:not_there.npz"
    with pytest.raises(ImportError, match=r"--mode=aliasing needs matplotlib; run pip install 'refocus_jax\[report\]'"):
        aliasing.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
