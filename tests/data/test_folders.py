"""The listing of a folder counts every file; arrangements of splits and classes are accepted or refused."""

import os

import pytest

from refocus_jax.data import folders


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def members(layout):
    return {(member.split, member.path): len(member.images) for member in layout.members}


def arrange(root, class_depth=0):
    return folders.arrange(root, folders.walk(root), class_depth)


# what is there


def test_every_file_is_an_image_or_counted_by_kind(tmp_path):
    make(tmp_path, "a/x.JPG", "a/deep/y.jfif", "a/notes.txt", "b.heic", "a/.z.png", ".ipynb_checkpoints/x.png",
         "__MACOSX/a/x.png", "a/@eaDir/x.jpg", ".refocus_manifest.json")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    os.mkfifo(tmp_path / "pipe.png")
    listing = folders.walk(tmp_path)
    assert listing.images == ("a/deep/y.jfif", "a/x.JPG") and listing.folders == ("a", "a/deep")
    assert listing.unreadable == ("gone.png", "pipe.png", "self.png")
    assert listing.left_out == {
        "broken links and devices": ["gone", "self"], "with another suffix": ["a/notes.txt", "b.heic"],
        "hidden": [".ipynb_checkpoints", "__MACOSX", "a/.z.png", "a/@eaDir"]}


def test_links_are_followed_but_not_in_circles(tmp_path):
    make(tmp_path, "elsewhere/x.png", "root/a/y.png", "root/b/z.png")
    root = tmp_path / "root"
    (root / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (root / "b" / "to_c").symlink_to(tmp_path / "c")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "to_b").symlink_to(root / "b")
    listing = folders.walk(root)
    assert listing.images == ("a/linked/x.png", "a/y.png", "b/z.png")
    assert listing.left_out == {"links to a folder that contains them": ["a/up", "b/to_c/to_b"]}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every folder")
def test_a_folder_that_cannot_be_opened_is_counted(tmp_path):
    make(tmp_path, "a/x.png", "b/y.png")
    (tmp_path / "b").chmod(0)
    assert folders.walk(tmp_path).left_out == {"folders that cannot be opened": ["b/"]}


def test_the_report_is_one_line_said_once(tmp_path, caplog):
    left_out = {"with another suffix": [f"{i}.txt" for i in range(30)] + ["x.heic"], "hidden": [".a", ".b"]}
    for _ in range(2):
        folders.report(f"folder {tmp_path}", 5, left_out)
    (record,) = caplog.records
    assert record.getMessage() == (f"folder {tmp_path}: 5 images are taken. Left out: 31 with another suffix "
                                   "(.txt 30, .heic 1); 2 hidden (.a, .b)")
    folders.report("another folder", 5, {})
    assert len(caplog.records) == 1


def test_names_that_are_not_utf8_are_escaped():
    assert folders.shown(os.fsdecode(b"caf\xe9")) == "caf\\xe9"
    assert folders.shown("café") == "café"


# how it is arranged


def test_classes_without_splits(tmp_path):
    make(tmp_path, "b/x.png", "a/y.png", "a/z.png", "stray.png", "notes.txt")
    layout = arrange(tmp_path)
    assert layout.class_names == ("a", "b") and members(layout) == {(None, "a"): 2, (None, "b"): 1}
    assert layout.left_out == {"with another suffix": ["notes.txt"], "outside of a class": ["stray.png"]}


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test", "Testing"])
def test_splits_by_any_of_their_names(tmp_path, train, held_out):
    make(tmp_path, f"{train}/a/x.png", f"{train}/b/x.png", f"{held_out}/b/y.png", "annotations/x.png")
    (tmp_path / held_out / "a").mkdir()
    layout = arrange(tmp_path)
    assert layout.class_names == ("a", "b")
    assert members(layout) == {("train", f"{train}/a"): 1, ("train", f"{train}/b"): 1,
                               ("validation", f"{held_out}/b"): 1}
    assert [m.label for m in layout.members] == [0, 1, 1]
    assert layout.left_out == {"validation folders of a class without images": [f"{held_out}/a"],
                               "in folders that belong to no split": ["annotations/x.png"]}


def test_validation_is_taken_before_test_and_train_alone_holds_out(tmp_path):
    make(tmp_path, "train/a/x.png")
    assert members(arrange(tmp_path)) == {(None, "train/a"): 1} and arrange(tmp_path).class_names == ("a",)
    make(tmp_path, "test/a/x.png", "valid/a/x.png")
    assert members(arrange(tmp_path)) == {("train", "train/a"): 1, ("validation", "valid/a"): 1}
    assert arrange(tmp_path).left_out == {"in folders that belong to no split": ["test/a/x.png"]}


def test_a_train_among_other_vehicles_is_a_class(tmp_path):
    make(tmp_path, "bus/x.png", "car/x.png", "train/x.png")
    assert arrange(tmp_path).class_names == ("bus", "car", "train")


@pytest.mark.parametrize(("names", "message"), [
    (["train/x.png", "test/y.png"], "train, which has no class folders; the layouts are .*/<class>/.*/train/<class>/"),
    (["x.png"], "no class folders; the layouts are"),
    (["test/a/x.png", "val/a/x.png"], "has test, val but no train; use one of the layouts"),
    (["train/a/x.png", "val/a/x.png", "valid/a/x.png"],
     r"has several folders for the validation split \(val, valid\); keep one"),
    (["train/a/x.png", "val/b/x.png"], "validation images of classes that train/ lacks \\(val/b\\); remove"),
    (["dog/poodle/x.png", "dog/husky/x.png", "cat/x.png"],
     r"dog holds images only in sub-folders \(husky, poodle\); set data.class_depth=1 if .*class dog, or 2 if"),
    (["a/x.png", "b/notes.txt"], r"no image files \(.*\) in b; add some, or remove"),
    ([os.fsdecode(b"caf\xe9/x.png"), "caf\\xe9/x.png"], r"have the same printed name, caf\\xe9; rename one"),
])
def test_other_arrangements_are_refused(tmp_path, names, message):
    make(tmp_path, *names)
    with pytest.raises(ValueError, match=f"data.source is folder:.*{message}"):
        arrange(tmp_path)


def test_the_depth_of_classes_is_a_setting(tmp_path):
    make(tmp_path, "dog/poodle/x.png", "dog/husky/1/x.png", "cat/tabby/x.png", "cat/stray.png")
    assert members(arrange(tmp_path, 1)) == {(None, "cat"): 2, (None, "dog"): 2}
    layout = arrange(tmp_path, 2)
    assert layout.class_names == ("cat/tabby", "dog/husky", "dog/poodle")
    assert layout.left_out == {"outside of a class": ["cat/stray.png"]}
    with pytest.raises(ValueError, match=r"no class folders 4 deep \(data.class_depth\)"):
        arrange(tmp_path, 4)


def test_images_in_sub_folders_of_a_class_are_of_the_class(tmp_path):
    """As in torchvision's ImageFolder."""
    make(tmp_path, "dog/x.png", "dog/more/y.png", "dog/more/again/z.png")
    assert arrange(tmp_path).members[0].images == ("dog/more/again/z.png", "dog/more/y.png", "dog/x.png")
