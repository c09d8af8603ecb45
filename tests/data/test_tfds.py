"""Datasets of TensorFlow Datasets: what they yield, how splits are held out, and what is refused."""

import io
import pickle
import types

import numpy as np
import pytest
from PIL import Image

from refocus_jax.data import sources
from refocus_jax.data.records import EncodedSource, SourceSettings
from tests.fixtures.plain_images import coloured, values


def test_without_tensorflow_datasets_the_setting_and_the_remedy_are_named(hide):
    hide("tensorflow_datasets")
    expected = (r"data.source is 'tfds:imagenet2012', which needs tensorflow-datasets; run pip install "
                r"'refocus_jax\[tfds\]'")
    with pytest.raises(ImportError, match=expected):
        sources.load("tfds:imagenet2012", "train")
    assert len(sources.load("photos", "train"))


def prepare_tfds(data_dir, numbers):
    """Prepares a real array_record dataset `tiny`."""
    tfds = pytest.importorskip("tensorflow_datasets")

    def encoded(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        file.seek(0)
        return file

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "tiny"
        code_path = None  # tfds finds it with importlib_resources, which it does not install
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["even", "odd"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {split: self._generate_examples(chosen) for split, chosen in numbers.items()}

        def _generate_examples(self, numbers):
            for i in numbers:
                # Greyscale files in an RGB dataset occur in ImageNet.
                image = coloured(i) if i % 2 else np.full((5, 6), i, np.uint8)
                yield i, {"image": encoded(image), "label": i % 2}

    Tiny(data_dir=data_dir, file_format="array_record").download_and_prepare()


@pytest.fixture
def tfds_data_dir(request, tmp_path, monkeypatch):
    """A dataset `tiny`, by default with splits train and test, in the default data dir of tfds."""
    prepare_tfds(tmp_path, getattr(request, "param", {"train": range(8), "test": range(100, 103)}))
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))


def test_tfds_reads_train_and_test(tfds_data_dir):
    train, validation = sources.load("tfds:tiny", "train"), sources.load("tfds:tiny", "validation")
    assert train.class_names == ("even", "odd")
    assert sorted(values(train)) == list(range(8))
    assert sorted(values(validation)) == [100, 101, 102]
    for source in (train, validation):
        for i in range(len(source)):
            record = source[i]
            assert record["image"].shape == (5, 6, 3) and record["image"].dtype == np.uint8
            assert record["label"] == record["image"].max() % 2


@pytest.mark.parametrize("tfds_data_dir", [{"train": range(30)}], indirect=True)
def test_tfds_without_a_held_out_split_holds_out_every_tenth(tfds_data_dir):
    """As tf_flowers is."""
    train, validation = sources.load_splits("tfds:tiny")
    assert (len(train), len(validation)) == (27, 3) and train.fingerprint != validation.fingerprint
    assert sorted(values(train) + values(validation)) == list(range(30))
    assert pickle.loads(pickle.dumps(validation))[2]["label"] == validation[2]["label"]


@pytest.mark.parametrize("data_dir", ["s3://bucket/tfds", "gs://bucket"])
def test_tfds_in_other_places_is_refused(tfds_data_dir, monkeypatch, data_dir):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", data_dir)
    with pytest.raises(ValueError, match=f"tfds:tiny, and TFDS_DATA_DIR is {data_dir}; give gs://BUCKET/FOLDER, or a "):
        sources.load("tfds:tiny", "train")


def test_tfds_names_a_file_that_is_missing(tfds_data_dir, tmp_path):
    (shard,) = tmp_path.rglob("tiny-test.*")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"data.source is tfds:tiny, of which {shard} is missing; copy all "):
        sources.load("tfds:tiny", "validation")


def test_tfds_explains_how_to_prepare_missing_data(tfds_data_dir):
    expected = ("data.source is tfds:imagenet2012, .*not prepared.*ILSVRC2012_img_train.tar.*array_record.*tensorflow.*"
                "or give array_record:PATH")
    with pytest.raises(FileNotFoundError, match=expected):
        sources.load("tfds:imagenet2012", "train")
    with pytest.raises(FileNotFoundError, match=r'run tfds.builder\("mnist"'):
        sources.load("tfds:mnist", "train")
    with pytest.raises(ValueError, match="no dataset of this name"):
        sources.load("tfds:no_such_dataset", "train")


@pytest.mark.parametrize("name", ["imagenet2012:99.0.0", "imagenet2012/no_such_config", "../imagenet2012", "a b"])
def test_tfds_refuses_malformed_names_and_unknown_versions(tfds_data_dir, name):
    with pytest.raises(ValueError, match="(?s)data.source is tfds:.* cannot be opened: .*Give tfds:NAME"):
        sources.load(f"tfds:{name}", "train")


def test_tfds_names_a_record_that_cannot_be_used():
    file = io.BytesIO()
    Image.fromarray(coloured(7)).save(file, "PNG")
    records = [{"image": file.getvalue(), "label": 0}, {"image": b"damaged", "label": 0}]
    records += [{"image": file.getvalue(), "label": label} for label in (-1, 2)]
    source = EncodedSource("tfds:tiny", records, ("a", "b"), "")
    assert source[0]["image"].tolist() == coloured(7).tolist()
    with pytest.raises(ValueError, match="record 1 of tfds:tiny cannot be read as an image"):
        source[1]
    for index, label in ((2, -1), (3, 2)):
        with pytest.raises(ValueError, match=rf"record {index} of tfds:tiny has label {label}; .*\[0, 2\)"):
            source[index]


def test_tfds_refuses_datasets_without_class_labels(monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    info = types.SimpleNamespace(features={"image": tfds.features.Image(), "text": tfds.features.Text()})
    opened = {"train": types.SimpleNamespace(dataset_info=info)}
    monkeypatch.setattr(tfds, "data_source", lambda *_, **__: opened)
    with pytest.raises(ValueError, match="has .*'text'.*; use a dataset with an image and a class label"):
        sources.load("tfds:captions", "train")
    opened["test"] = opened.pop("train")
    with pytest.raises(ValueError, match="has no train split but .'test'.; "):
        sources.load("tfds:captions", "train")


def test_tfds_tells_one_preparation_from_another(tfds_data_dir):
    train, again, validation = (sources.load("tfds:tiny", split) for split in ("train", "train", "validation"))
    assert train.fingerprint == again.fingerprint != validation.fingerprint
    asked = sources.load("tfds:tiny", "train", SourceSettings(sixteen_bit_max=4095))
    assert asked.fingerprint != train.fingerprint
    (shard,) = train.records.dataset_info.splits["train"].filepaths
    with open(shard, "ab") as file:
        file.write(b"more")
    assert sources.load("tfds:tiny", "train").fingerprint != train.fingerprint


def test_tfds_asks_what_is_white_in_16_bits():
    """It does not read all images in advance, and one image cannot determine the white level."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(file, "PNG")
    records = [{"image": file.getvalue(), "label": 0}]
    assert EncodedSource("tfds:tiny", records, ("a",), "", 4095)[0]["image"].min() == 255
    with pytest.raises(ValueError, match="record 0 of tfds:tiny has 16 bits .*set data.sixteen_bit_max"):
        EncodedSource("tfds:tiny", records, ("a",), "")[0]
