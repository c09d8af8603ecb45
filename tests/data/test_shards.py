"""Splits by the names of packed files, and files that are missing."""

import pytest

from refocus_jax.data import shards


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return f"tar:{root}"


@pytest.mark.parametrize("names, expected", [
    (["photos.tar"], {"train": ["photos.tar"]}),
    (["data/train-0.tar", "data/validation-0.tar"], {"train": ["data/train-0.tar"],
                                                     "validation": ["data/validation-0.tar"]}),
    (["imagenet1k-train-0001.tar", "imagenet1k-train-0000.tar"],
     {"train": ["imagenet1k-train-0000.tar", "imagenet1k-train-0001.tar"]}),
    (["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"], {"train": ["ILSVRC2012_img_train.tar"],
                                                             "validation": ["ILSVRC2012_img_val.tar"]}),
    (["Train/0.tar", "valid/0.tar"], {"train": ["Train/0.tar"], "validation": ["valid/0.tar"]}),
    (["train/0.tar", "test/0.tar"], {"train": ["train/0.tar"], "validation": ["test/0.tar"]}),
    (["constraint.tar", ".cache/val.tar", "notes.txt"], {"train": ["constraint.tar"]}),  # no words of their own
])
def test_names_say_the_split(tmp_path, names, expected):
    found = shards.find(touch(tmp_path, *names), ".tar")
    assert {split: list(files) for split, files in found.items()} == expected
    assert all(path == tmp_path / name for files in found.values() for name, path in files.items())


def test_test_files_next_to_validation_are_ignored_and_that_is_said(tmp_path, caplog):
    found = shards.find(touch(tmp_path, "train-0.tar", "test-0.tar", "test-1.tar", "val-0.tar"), ".tar")
    assert list(found) == ["train", "validation"] and list(found["validation"]) == ["val-0.tar"]
    assert f"convert.source is tar:{tmp_path}: test-0.tar, test-1.tar, named test, are ignored" in caplog.text


@pytest.mark.parametrize("names, message", [
    (["train-0.tar", "more.tar"], "more.tar belong to no split; give the files names with train and validation in"),
    (["val-0.tar"], "no file is for training; give"),
    ([], "where there is no .tar file; correct the path"),
    (["train-00000-of-00003.tar", "train-00002-of-00003.tar", "val-00000-of-00001.tar"],
     r"where 1 of 3 files are missing \(train-00001-of-00003\); download them too"),
    (["train-00000-of-00900.tar"], r"899 of 900 files are missing \(train-00001-of-00900, .*3-of-00900, ...\); down"),
])
def test_what_is_missing_or_has_no_split_is_named(tmp_path, names, message):
    with pytest.raises((ValueError, FileNotFoundError), match=f"convert.source is tar:{tmp_path}.*{message}"):
        shards.find(touch(tmp_path, *names), ".tar")


def test_one_file_is_all_there_is(tmp_path):
    touch(tmp_path, "a.tar", "b.tar")
    assert shards.find(f"tar:{tmp_path}/a.tar", ".tar") == {"train": {"a.tar": tmp_path / "a.tar"}}
    for absent in ("c.tar", "a.tar/x"):
        with pytest.raises(FileNotFoundError, match=f"convert.source is tar:.*{absent}, where there is no .tar file"):
            shards.find(f"tar:{tmp_path}/{absent}", ".tar")


def test_a_digest_is_of_names_stamps_and_classes_and_not_of_the_place():
    def digest(name="a", stamp=1, class_names=("x",), split="train"):
        part = shards.Part(name=name, stamp=stamp, read=lambda: iter(()))
        return shards.Collection(class_names=class_names, splits={split: [part]}).digest

    assert digest() == digest()
    assert len({digest(), digest("b"), digest(stamp=2), digest(class_names=None), digest(split="validation")}) == 5
