"""Parquet files: what is read, in which order, and what is refused by name."""

import pytest

from refocus_jax.data import parquet
from tests.fixtures import packed


def read(part):
    return [(file.content, file.label) for file in part.read()]


def test_images_and_labels_come_as_they_are_in_their_order(tmp_path):
    rows = {"data/train-00000-of-00002.parquet": packed.examples(9), "data/train-00001-of-00002.parquet":
            packed.examples(3, 20), "data/validation-00000-of-00001.parquet": packed.examples(2, 30)}
    for name, content in rows.items():
        packed.write_parquet(tmp_path / name, content)
    collection = parquet.open_collection(f"parquet:{tmp_path}")
    assert collection.class_names == packed.CLASS_NAMES
    parts = [*collection.splits["train"], *collection.splits["validation"]]
    assert {part.name: read(part) for part in parts} == rows
    assert [file.name for file in parts[1].read()] == [f"data/train-00001-of-00002.parquet, row {i}" for i in range(3)]


def test_other_names_and_plain_bytes_are_found_too(tmp_path):
    rows = packed.examples(3)
    packed.write_parquet(tmp_path / "a.parquet", rows, names=("img", "fine_label"))
    (part,) = parquet.open_collection(f"parquet:{tmp_path}/a.parquet").splits["train"]
    assert read(part) == rows
    packed.write_parquet(tmp_path / "b.parquet", rows, class_names=None, struct=False)
    collection = parquet.open_collection(f"parquet:{tmp_path}/b.parquet")
    assert read(collection.splits["train"][0]) == rows and collection.class_names is None


def test_empty_cells_are_no_images_and_no_labels(tmp_path):
    packed.write_parquet(tmp_path / "a.parquet", [(packed.jpeg(0), 1), (None, 2), (packed.jpeg(1), None)])
    (part,) = parquet.open_collection(f"parquet:{tmp_path}").splits["train"]
    assert [(bool(content), label) for content, label in read(part)] == [(True, 1), (False, 2), (True, -1)]


@pytest.mark.parametrize("damage", ["cut", "changed", "a pointer"])
def test_damaged_files_are_named(tmp_path, damage):
    path = tmp_path / "a.parquet"
    packed.write_parquet(path, packed.examples(20))
    content = path.read_bytes()
    if damage == "changed":
        path.write_bytes(content[:4] + bytes(64) + content[68:])
    else:
        path.write_bytes(content[:-100] if damage == "cut" else b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=f"convert.source: {path} cannot be read (.*); download it again"):
        read(parquet.open_collection(f"parquet:{tmp_path}").splits["train"][0])


@pytest.mark.parametrize("changes, message", [
    ({"names": ("picture", "label"), "class_names": None}, "has the columns picture, label; give files with a column "
                                                           "image, or with one that is declared as Image"),
    ({"names": ("image", "number"), "class_names": None}, "has the columns image, number; give .* column label"),
    ({"names": ("label", "image")}, "has image of type int64 and label of type struct.*; give files with the bytes"),
])
def test_other_columns_are_refused(tmp_path, changes, message):
    packed.write_parquet(tmp_path / "a.parquet", packed.examples(2), **changes)
    with pytest.raises(ValueError, match=f"convert.source: {tmp_path}/a.parquet {message}"):
        parquet.open_collection(f"parquet:{tmp_path}")


def test_files_of_other_classes_are_refused(tmp_path):
    packed.write_parquet(tmp_path / "train-0.parquet", packed.examples(2))
    packed.write_parquet(tmp_path / "train-1.parquet", packed.examples(2), class_names=("a", "b", "c"))
    with pytest.raises(ValueError, match="train-1.parquet names other classes than .*train-0.parquet; give files of"):
        parquet.open_collection(f"parquet:{tmp_path}")


def test_without_pyarrow_the_setting_and_the_remedy_are_named(hide):
    hide("pyarrow")
    with pytest.raises(ImportError, match=r"convert.source is 'parquet:a', which needs pyarrow; run pip install "
                                          r"'refocus_jax\[convert\]'"):
        parquet.open_collection("parquet:a")
