"""Tar files: WebDataset's pairs, ImageNet's tar of tars, and what is refused by name."""

import pytest

from refocus_jax.data import tars
from tests.fixtures import packed


def read(part):
    return [(file.content, file.label) for file in part.read()]


def pairs(rows, label=lambda number: {"cls": str(number).encode()}):
    return {f"./dir/{i:04d}.{suffix}": content for i, (image, number) in enumerate(rows)
            for suffix, content in ({"jpg": image} | label(number)).items()}


@pytest.mark.parametrize("label", [
    lambda number: {"cls": f"{number}\n".encode()}, lambda number: {"json": b'{"label": %d, "name": "x"}' % number},
    lambda number: {"json": b"{}", "cls": str(number).encode(), "txt": b"text"}], ids=["cls", "json", "both"])
def test_pairs_of_an_image_and_a_label(tmp_path, label):
    rows = packed.examples(5)
    (tmp_path / "a.tar").write_bytes(packed.tar_bytes(pairs(rows, label)))
    collection = tars.open_collection(f"tar:{tmp_path}/a.tar")
    (part,) = collection.splits["train"]
    assert read(part) == rows and collection.class_names is None
    assert next(part.read()).name == "a.tar/./dir/0000"


def test_a_tar_of_one_tar_for_each_class(tmp_path):
    classes = {"n02": packed.examples(2), "n01": packed.examples(3, 10)}
    inner = {f"{name}.tar": packed.tar_bytes({f"{name}_{i}.JPEG": image for i, (image, _) in enumerate(rows)})
             for name, rows in classes.items()}
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(packed.tar_bytes(inner))
    collection = tars.open_collection(f"tar:{tmp_path}")
    assert collection.class_names == ("n01", "n02")
    first, second = collection.splits["train"]
    assert (first.name, second.name) == tuple(f"ILSVRC2012_img_train.tar/{name}.tar" for name in ("n01", "n02"))
    assert read(first) == [(image, 0) for image, _ in classes["n01"]]
    assert read(second) == [(image, 1) for image, _ in classes["n02"]]
    assert next(second.read()).name == "ILSVRC2012_img_train.tar/n02.tar/n02_0.JPEG"


def test_a_key_without_an_image_is_an_image_that_cannot_be_read(tmp_path):
    (tmp_path / "a.tar").write_bytes(packed.tar_bytes({"0.cls": b"1", "1.cls": b"2", "1.png": b"x", "._1.png": b""}))
    (part,) = tars.open_collection(f"tar:{tmp_path}").splits["train"]
    assert read(part) == [(b"", 1), (b"x", 2)]


@pytest.mark.parametrize("files, message", [
    ({"ILSVRC2012_val_00000001.JPEG": b"x"}, "a.tar: ILSVRC2012_val_00000001 has no label, .*every tenth training"),
    ({"0.jpg": b"x", "0.cls": b"cat"}, "a.tar: 0 has a label that is not a number .*; give the number of the class"),
    ({"0.jpg": b"x", "0.json": b'{"class": 3}'}, "a.tar: 0 has a label that is not a number .KeyError"),
])
def test_images_without_a_number_are_refused_before_anything_is_converted(tmp_path, files, message):
    (tmp_path / "a.tar").write_bytes(packed.tar_bytes(files))
    with pytest.raises(ValueError, match=message):
        tars.open_collection(f"tar:{tmp_path}")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.5, 0.7, 0.9])
def test_files_that_are_cut_off_are_named(tmp_path, kept, nested):
    """Wherever they are cut: tarfile itself takes the end of a file between two members for the end of the tar file."""
    content = packed.tar_bytes(pairs(packed.examples(6)))
    if nested:
        content = packed.tar_bytes({"a.tar": content, "b.tar": content})
    whole = len(content.rstrip(b"\0")) // 512 * 512
    path = tmp_path / "a.tar"
    for cut in (int(kept * whole), int(kept * whole) // 512 * 512):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=f"convert.source: {path} cannot be read (.*); download it again"):
            for part in tars.open_collection(f"tar:{path}").splits["train"]:
                read(part)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(ValueError, match="a.tar cannot be read (.*); download it again"):
        tars.open_collection(f"tar:{tmp_path}")
