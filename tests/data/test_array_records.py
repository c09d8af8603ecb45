"""Image files as ArrayRecord: the layout of a record, the source that reads them, and damage by name."""

import json
import pickle

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from refocus_jax.data import array_records, sources
from refocus_jax.data.array_records import Index, Shard
from refocus_jax.data.images import SixteenBits
from refocus_jax.data.records import SourceSettings
from tests.fixtures import packed
from tests.fixtures.disk import full_disk

SIZES = {"train": (5, 0, 12), "validation": (4,)}


def write(directory, sizes=SIZES, sixteen_bits=None):
    """Files of the given numbers of records; returns the images and labels of every split."""
    splits, written, first = {}, {}, 0
    for split, counts in sizes.items():
        written[split], splits[split] = [], []
        for number, count in enumerate(counts):
            rows, first = packed.examples(count, first), first + count
            name = f"{split}-{number:05d}-of-{len(counts):05d}.array_record"
            found = array_records.write(directory / name, (array_records.pack(*row) for row in rows))
            splits[split].append(Shard(name=name, origin="", largest_label=2, sixteen_bits=sixteen_bits or {},
                                       skipped=(), **found._asdict()))
            written[split] += rows
    index = Index(source="ab", class_names=packed.CLASS_NAMES,
                  splits={split: tuple(shards) for split, shards in splits.items()})
    (directory / array_records.COMPLETE).write_text(json.dumps(index.to_json()))
    assert Index.read(directory) == index
    return written


def stored(source):
    chosen = range(len(source)) if source.chosen is None else source.chosen
    return [(record["image"], record["label"]) for record in map(source.records.__getitem__, chosen)]


def test_a_record_is_laid_out_as_documented(tmp_path):
    rows = write(tmp_path)["validation"]
    reader = ArrayRecordReader(str(tmp_path / "validation-00000-of-00001.array_record"))
    assert [record[4:] for record in reader.read_all()] == [content for content, _ in rows]
    assert [np.frombuffer(record[:4], "<u4").item() for record in reader.read_all()] == [label for _, label in rows]
    reader.close()


def test_a_source_has_every_image_in_its_place(tmp_path):
    written = write(tmp_path)
    for split, source in zip(sources.SPLITS, sources.load_splits(f"array_record:{tmp_path}"), strict=True):
        assert stored(source) == written[split] and source.class_names == packed.CLASS_NAMES
        assert stored(pickle.loads(pickle.dumps(source))) == written[split]  # as for worker processes
        record = source[3]
        assert record["image"].shape == (16, 24, 3) and record["label"] == written[split][3][1]


def test_without_validation_every_tenth_image_is_held_out(tmp_path):
    rows = write(tmp_path, {"train": (5, 12, 8)})["train"]
    train, validation = sources.load_splits(f"array_record:{tmp_path}")
    assert stored(validation) == [rows[9], rows[19]]
    assert stored(train) == [row for i, row in enumerate(rows) if i not in (9, 19)]
    assert train.fingerprint != validation.fingerprint


def test_a_fingerprint_is_of_content_and_not_of_the_place(tmp_path):
    found = []
    for name, sizes in (("a", SIZES), ("b", SIZES), ("c", {"train": (5, 0, 11), "validation": (4,)})):
        (tmp_path / name).mkdir()
        write(tmp_path / name, sizes)
        found.append(sources.load(f"array_record:{tmp_path}/{name}", "train").fingerprint)
    assert found[0] == found[1] != found[2]


def test_the_brightest_16_bit_image_says_what_is_white(tmp_path, caplog):
    write(tmp_path, sixteen_bits={"a.png": SixteenBits(900, False), "b.png": SixteenBits(2000, False)})
    spec = f"array_record:{tmp_path}"
    found = sources.load(spec, "train")
    assert found.sixteen_bit_max == 4095 and "with values up to 2000 (in b.png); 4095 is taken as white" in caplog.text
    asked = sources.load(spec, "train", SourceSettings(sixteen_bit_max=65535))
    assert asked.sixteen_bit_max == 65535 and asked.fingerprint != found.fingerprint
    with pytest.raises(ValueError, match="b.png has the value 2000, and data.sixteen_bit_max is 1023; set it to 4095"):
        sources.load(spec, "train", SourceSettings(sixteen_bit_max=1023))


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_damaged_files_are_named(tmp_path, damage):
    rows = write(tmp_path)["train"]
    path = tmp_path / "train-00002-of-00003.array_record"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        path.write_bytes(content.replace(rows[7][0][-8:], bytes(8), 1))
    with pytest.raises(ValueError, match=f"{path} is missing or damaged (.*); remove it and make it again: give the "
                                         "command of --mode=convert"):
        assert stored(sources.load(f"array_record:{tmp_path}", "train")) == rows


def test_what_is_not_complete_is_no_source(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"data.source is array_record:{tmp_path}/a, where there is no images."
                                                "json; make it by --mode=convert with convert.output=.*/a, or correct"):
        sources.load(f"array_record:{tmp_path}/a", "train")
    (tmp_path / array_records.PARTIAL).touch()
    with pytest.raises(FileNotFoundError, match="where there is only the beginning of a conversion; make it by"):
        sources.load(f"array_record:{tmp_path}", "train")
    with pytest.raises(ValueError, match="data.source is 'array_record:', which names no data; write array_record:P"):
        sources.load("array_record:", "train")


def test_damaged_and_foreign_indices_are_named(tmp_path):
    write(tmp_path)
    path = tmp_path / array_records.COMPLETE
    content = path.read_text()
    for changed, message in ((content[:100], "is damaged .*; remove it"),
                             ("{}", "is damaged .*it lacks format_version"),
                             (content.replace('"digest"', '"digset"'), "is damaged .*digset.*; remove it"),
                             (content.replace('"format_version": 1', '"format_version": 7'),
                              "has format 7, and this program reads 1; convert the images again")):
        path.write_text(changed)
        with pytest.raises(ValueError, match=f"{path} {message}"):
            sources.load(f"array_record:{tmp_path}", "train")


def test_on_a_full_disk_nothing_half_written_stays(tmp_path):
    path = tmp_path / "a.array_record"
    with full_disk(100_000), pytest.raises(OSError, match=f"{path} cannot be written .*too large.*make room"):
        array_records.write(path, [bytes(50_000)] * 100)
    assert not list(tmp_path.iterdir())
