"""Conversion: nothing changes on the way, an interrupted one goes on, and what is damaged is named."""

import contextlib
import io
import itertools
import logging

import jax
import numpy as np
import pytest
from PIL import Image

from refocus_jax.data import conversion, images, pipeline, sources
from refocus_jax.data.array_records import COMPLETE
from refocus_jax.data.crops import CropRule
from refocus_jax.data.records import SourceSettings
from refocus_jax.runtime import processes
from tests.fixtures import packed


def convert(spec, output, **settings):
    chosen = SourceSettings(**settings)
    return conversion.write(output, conversion.open_collection(spec, chosen), chosen.max_unreadable)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def stored(source):
    return [(record["image"], record["label"]) for record in map(source.records.__getitem__, range(len(source)))]


@pytest.fixture(scope="module")
def splits():
    return {"train": packed.examples(30), "validation": packed.examples(9, 100)}


@pytest.fixture
def in_parquet(tmp_path, splits):
    """Four files of training images and one of validation images."""
    for number in range(4):
        packed.write_parquet(tmp_path / f"in/train-{number:05d}-of-00004.parquet",
                             splits["train"][8 * number:8 * number + 8])
    packed.write_parquet(tmp_path / "in/validation-00000-of-00001.parquet", splits["validation"])
    return f"parquet:{tmp_path}/in"


def test_bytes_labels_and_order_are_unchanged(in_parquet, splits, tmp_path):
    index = convert(in_parquet, tmp_path / "out")
    for split, source in zip(sources.SPLITS, sources.load_splits(f"array_record:{tmp_path}/out"), strict=True):
        assert stored(source) == splits[split] and source.class_names == packed.CLASS_NAMES
    assert [shard.images for shard in index.splits["train"]] == [8, 8, 8, 6]
    assert sorted(contents(tmp_path / "out")) == [
        "images.json", *(f"train-0000{i}-of-00004.array_record" for i in range(4)),
        "validation-00000-of-00001.array_record"]
    assert index.splits["train"][2].origin == "train-00002-of-00004.parquet"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_are_those_of_the_folder(tmp_path, splits, monkeypatch, num_workers):
    """Also if the folder becomes several files, lacks an image that is damaged, and is read by worker processes."""
    monkeypatch.setattr(conversion, "_FILES_PER_PART", 8)
    spec = packed.write_folder(tmp_path / "in", splits)
    (tmp_path / "in/train/daisy/0002.jpg").write_bytes(b"damaged")
    convert(spec, tmp_path / "out")
    rule = CropRule(image_size=12, resize_ratio=1.125, flip=True)
    found = {}
    for kind, workers in ((spec, 0), (f"array_record:{tmp_path}/out", num_workers)):
        train, validation = sources.load_splits(kind)
        batches = pipeline.training_batches(train, rule, batch_size=8, seed=3, num_workers=workers)
        with contextlib.closing(iter(batches)) as endless:
            found[kind] = [*itertools.islice(endless, 6), *pipeline.validation_batches(validation, rule, batch_size=4)]
        assert train.class_names == tuple(sorted(packed.CLASS_NAMES))
    for here, there in zip(*found.values(), strict=True):
        for name in ("image", "label"):
            np.testing.assert_array_equal(here[name], there[name])


def test_classes_without_names_have_numbers(tmp_path):
    files = {f"{i}.{suffix}": content for i, (image, label) in enumerate(packed.examples(20))
             for suffix, content in (("jpg", image), ("cls", str(label).encode()))}
    (tmp_path / "a.tar").write_bytes(packed.tar_bytes(files))
    assert convert(f"tar:{tmp_path}/a.tar", tmp_path / "out").class_names == ("0", "1", "2")


class Killed(Exception):
    pass


@pytest.fixture
def kill(monkeypatch):
    """A function after which writing a file of a name leaves half a file and raises `Killed`."""
    write = conversion.array_records.write

    def kill_at(name):
        def write_one(path, records):
            if name in path.name:
                path.with_name(f".{path.name}.tmp").write_bytes(b"half a file")
                raise Killed
            return write(path, records)

        monkeypatch.setattr(conversion.array_records, "write", write_one)

    return kill_at


def test_an_interrupted_conversion_goes_on_with_the_missing_files(in_parquet, tmp_path, kill, monkeypatch):
    convert(in_parquet, tmp_path / "whole")
    kill("train-00002")
    with pytest.raises(Killed):
        convert(in_parquet, tmp_path / "out")
    assert not (tmp_path / "out" / COMPLETE).exists()
    monkeypatch.undo()
    kept = (tmp_path / "out/train-00001-of-00004.array_record").stat()
    convert(in_parquet, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert (tmp_path / "out/train-00001-of-00004.array_record").stat().st_mtime_ns == kept.st_mtime_ns
    # And again, when there is nothing to do; nor is anything read.
    kill("")
    convert(in_parquet, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_file_is_made_again(in_parquet, tmp_path, damage):
    convert(in_parquet, tmp_path / "out")
    before, path = contents(tmp_path / "out"), tmp_path / "out/train-00001-of-00004.array_record"
    path.unlink()
    if damage == "cut":
        path.write_bytes(before[path.name][:1000])
    convert(in_parquet, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_a_folder_of_other_images_is_refused(in_parquet, tmp_path, kill):
    for begun in (True, False):
        output = tmp_path / f"out{begun}"
        if begun:
            kill("train-00001")
            with pytest.raises(Killed):
                convert(in_parquet, output)
        else:
            convert(in_parquet, output)
        kill("")
        packed.write_parquet(tmp_path / "other/a.parquet", packed.examples(3))
        with pytest.raises(ValueError, match=f"convert.output is {output}, which was made from other files.*remove"):
            convert(f"parquet:{tmp_path}/other", output)
        kill("nothing")


def test_processes_share_the_files(in_parquet, tmp_path, monkeypatch):
    class Waits(Exception):
        pass

    def barrier(name):
        raise Waits

    convert(in_parquet, tmp_path / "whole")
    monkeypatch.setattr(processes, "check_same", lambda name, value: None)
    monkeypatch.setattr(processes, "barrier", barrier)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index, count in ((1, 2), (0, 5)):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        with pytest.raises(Waits):
            convert(in_parquet, tmp_path / "out")
        assert len(list((tmp_path / "out").glob("*.array_record"))) == count
    monkeypatch.setattr(processes, "barrier", lambda name: None)
    monkeypatch.setattr(processes, "from_first", lambda function: function())
    convert(in_parquet, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_damaged_images_are_named_and_skipped_up_to_a_share(tmp_path, splits, caplog):
    rows = list(splits["train"])
    rows[3], rows[7] = (b"not an image", 0), (rows[7][0][:-10], 1)
    packed.write_parquet(tmp_path / "in.parquet", rows)
    spec, output = f"parquet:{tmp_path}/in.parquet", tmp_path / "out"
    with pytest.raises(ValueError, match=r"convert.source: of 30 images, 2 cannot be read, more than the share data."
                                         r"max_unreadable=0.01; (.|\n)*in.parquet, row 3 cannot .*\n.*, row 7 cannot "):
        convert(spec, output)
    assert not (output / COMPLETE).exists()
    caplog.set_level(logging.WARNING)
    index = convert(spec, output, max_unreadable=0.1)
    assert "2 cannot be read and will be skipped:" in caplog.text
    (shard,) = index.splits["train"]
    assert shard.images == 28 and [name.partition(" cannot")[0] for name in shard.skipped] == [
        "in.parquet, row 3", "in.parquet, row 7"]
    train, validation = sources.load_splits(f"array_record:{output}")
    assert len(train) + len(validation) == 28


@pytest.mark.parametrize("row, message", [
    ((packed.jpeg(0), -1), "in.parquet, row 1 has label -1, and labels must lie in .0, 3.; remove what has no label"),
    ((packed.jpeg(0), 3), "row 1 has label 3"), ((packed.jpeg(0), None), "row 1 has label -1")])
def test_labels_that_are_no_classes_are_refused(tmp_path, row, message):
    packed.write_parquet(tmp_path / "in.parquet", [*packed.examples(1), row])
    with pytest.raises(ValueError, match=f"convert.source: .*{message}"):
        convert(f"parquet:{tmp_path}/in.parquet", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.array_record*"))


def test_a_file_without_any_image_is_refused_at_once(tmp_path):
    packed.write_parquet(tmp_path / "in.parquet", [(b"text", 0), (b"text", 1)])
    with pytest.raises(ValueError, match="no image of in.parquet can be read .*row 0 cannot be read as an image"):
        convert(f"parquet:{tmp_path}/in.parquet", tmp_path / "out")


def test_images_of_16_bits_are_read_as_in_the_folder(tmp_path):
    for name, value in (("train/a/x", 900), ("train/a/y", 2000), ("val/a/x", 4095)):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), value, np.uint16)).save(tmp_path / "in" / f"{name}.png")
    convert(f"folder:{tmp_path}/in", tmp_path / "out")
    for split in sources.SPLITS:
        folder, packed_up = (sources.load(spec, split) for spec in (f"folder:{tmp_path}/in",
                                                                    f"array_record:{tmp_path}/out"))
        for i in range(len(folder)):
            np.testing.assert_array_equal(folder[i]["image"], packed_up[i]["image"])


@pytest.mark.parametrize("spec", ["", "a", "parquet:", "npz:a.npz", "photos"])
def test_unknown_sources_are_refused(spec):
    with pytest.raises(ValueError, match="convert.source is '.*'; give parquet:PATH, tar:PATH or folder:PATH"):
        conversion.open_collection(spec, SourceSettings())


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.999, 1.0])
def test_a_check_finds_what_decoding_finds(kept):
    """A JPEG that is cut off anywhere, also after a thumbnail that is whole."""
    thumbnail, image = packed.jpeg(1, (8, 8)), packed.jpeg(0, (200, 100))
    block = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    content = image[:2] + block + image[2:]
    cut = content[:int(kept * len(content))]
    try:
        decoded = images.sixteen_bits(io.BytesIO(cut), "x")
    except ValueError:
        with pytest.raises(ValueError, match="x cannot be read as an image"):
            images.check(cut, "x")
        assert kept < 1
    else:
        assert decoded is images.check(cut, "x") is None and kept == 1
