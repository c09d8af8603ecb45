"""`--mode=convert` by its settings, and a run that reads what it wrote."""

import pytest

from refocus_jax.modes import convert
from refocus_jax.pretrained.prepare import prepare
from tests.fixtures import packed


@pytest.fixture
def config(micro):
    def make(**changes):
        c = micro()
        c.update_from_flattened_dict(changes)
        return c

    return make


def test_a_run_reads_what_was_converted(config, tmp_path, capsys):
    packed.write_parquet(tmp_path / "in/data/train-00000-of-00001.parquet", packed.examples(20))
    packed.write_parquet(tmp_path / "in/data/validation-00000-of-00001.parquet", packed.examples(9, 20))
    convert.run(config(**{"convert.source": f"parquet:{tmp_path}/in"}), str(tmp_path / "run"))
    source = f"array_record:{tmp_path}/run/images"
    assert capsys.readouterr().out == (f"{tmp_path}/run/images: 20 train, 9 validation images of 3 classes\n"
                                       f"To train on them: --config.data.source={source}\n")
    run = prepare(config(**{"data.source": source}), str(tmp_path / "trained")).run
    assert (len(run.train), len(run.validation)) == (20, 9) and run.train.class_names == packed.CLASS_NAMES
    assert next(iter(run.batches("tokenizer")))["image"].shape == (4, 8, 8, 3)


def test_output_and_the_settings_of_the_data_apply(config, tmp_path):
    splits = {"train/deep": packed.examples(12), "val/deep": packed.examples(12, 50)}
    spec = packed.write_folder(tmp_path / "in", splits)
    for number in (0, 3):
        (tmp_path / f"in/train/deep/crane, bird/{number:04d}.jpg").write_bytes(b"damaged")
    settings = {"convert.source": spec, "convert.output": str(tmp_path / "out"), "data.class_depth": 2}
    with pytest.raises(ValueError, match="2 cannot be read, more than the share data.max_unreadable=0.01"):
        convert.run(config(**settings), str(tmp_path / "run"))
    convert.run(config(**settings, **{"data.max_unreadable": 0.5}), str(tmp_path / "run"))
    assert (tmp_path / "out/images.json").exists() and not (tmp_path / "run").exists()


def test_without_a_source_the_setting_and_the_remedy_are_named(config, tmp_path):
    with pytest.raises(ValueError, match="convert.source is ''; give parquet:PATH, tar:PATH or folder:PATH"):
        convert.run(config(), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
