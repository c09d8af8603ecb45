"""The manifest: which files are found unreadable, and that each is decoded once."""

import json
import os
import signal
import threading
import time

import numpy as np
import pytest
from PIL import Image

from refocus_jax.data import manifest


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home directory of its own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def root(tmp_path):
    """A folder with 200 images."""
    folder = tmp_path / "root"
    (folder / "cat").mkdir(parents=True)
    for i in range(200):
        Image.fromarray(np.full((2, 3, 3), i, np.uint8)).save(folder / "cat" / f"{i:03d}.png")
    return folder


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded from now on; to be cleared between passes."""
    names, decode_rgb, lock = [], manifest.decode_rgb, threading.Lock()

    def recording(file, name):
        with lock:
            names.append(os.path.basename(name))
        return decode_rgb(file, name)

    monkeypatch.setattr(manifest, "decode_rgb", recording)
    return names


def names_in(root):
    return sorted(f"cat/{path.name}" for path in (root / "cat").iterdir())


def test_sound_files_are_decoded_once(root, decoded, caplog):
    names = names_in(root)
    assert manifest.readable(root, names) == names
    assert sorted(decoded) == [os.path.basename(name) for name in names]
    decoded.clear()
    assert manifest.readable(root, names[::-1]) == names[::-1]
    assert not decoded and not caplog.text
    assert [path.name for path in root.iterdir() if path.name != "cat"] == [".refocus_manifest.json"]


def test_changed_and_new_files_are_decoded_anew(root, decoded):
    manifest.readable(root, names_in(root))
    decoded.clear()
    touched, grown = root / "cat" / "003.png", root / "cat" / "004.png"
    os.utime(touched, ns=(0, touched.stat().st_mtime_ns + 1))
    before = grown.stat()
    Image.new("RGB", (50, 50)).save(grown)
    os.utime(grown, ns=(0, before.st_mtime_ns))
    assert grown.stat().st_size != before.st_size
    (root / "cat" / "new.png").write_bytes((root / "cat" / "005.png").read_bytes())
    for expected in (["003.png", "004.png", "new.png"], []):
        manifest.readable(root, names_in(root))
        assert sorted(decoded) == expected
        decoded.clear()


def test_files_that_are_not_asked_for_are_not_forgotten(root, decoded):
    names = names_in(root)
    manifest.readable(root, names[:150])
    manifest.readable(root, names[100:])
    assert len(decoded) == 200
    manifest.readable(root, names)
    assert len(decoded) == 200


def test_unreadable_files_are_listed_and_skipped_until_they_are_repaired(root, decoded, caplog):
    names, content = names_in(root), (root / "cat" / "007.png").read_bytes()
    (root / "cat" / "007.png").write_bytes(content[:-30])
    (root / "cat" / "009.png").unlink()
    for _ in range(2):
        caplog.clear()
        assert manifest.readable(root, names) == [n for n in names if n not in ("cat/007.png", "cat/009.png")]
        assert f"of 200 image files in {root}, 2 cannot be read and will be skipped" in caplog.text
        assert "007.png cannot be read as an image" in caplog.text and "009.png" in caplog.text
    (root / "cat" / "007.png").write_bytes(content)
    (root / "cat" / "009.png").write_bytes(content)
    decoded.clear()
    assert manifest.readable(root, names) == names
    assert sorted(decoded) == ["007.png", "009.png"]


def test_more_than_a_hundredth_is_an_error_that_lists_ten(root, decoded):
    names = names_in(root)
    for i in range(2):
        (root / names[i]).write_bytes(b"")
    manifest.readable(root, names)
    for i in range(14):
        (root / names[i]).write_bytes(b"")
    expected = "data.source .* of 200 image files in .*root, 14 cannot be read.*more than 1%; repair or remove them"
    with pytest.raises(ValueError, match=expected) as refusal:
        manifest.readable(root, names)
    assert str(refusal.value).count(".png") == 10 and str(refusal.value).endswith("\n  ...")
    # What has been found sound is not decoded again once the others are gone.
    decoded.clear()
    assert manifest.readable(root, names[14:]) == names[14:]
    assert not decoded


def test_a_pipe_is_not_waited_for(root, caplog):
    os.mkfifo(root / "cat" / "pipe.png")
    assert "cat/pipe.png" not in manifest.readable(root, names_in(root))
    assert "pipe.png is not a regular file" in caplog.text


@pytest.mark.parametrize("content", [
    "", "{", "null", "[]", "[" * 100_000, '{"version": 1}', '{"version": 1, "files": []}',
    '{"version": 1, "files": {"cat/000.png": null, "cat/001.png": [1], "cat/002.png": {}}}', "\udcff\udcfe",
])
def test_damaged_manifests_are_ignored_and_rebuilt(root, decoded, content):
    names = names_in(root)
    (root / ".refocus_manifest.json").write_text(content, errors="surrogateescape")
    assert manifest.readable(root, names) == names and len(decoded) == 200
    assert manifest.readable(root, names) == names and len(decoded) == 200


def test_a_manifest_of_other_rules_is_not_trusted(root, decoded, monkeypatch):
    manifest.readable(root, names_in(root))
    decoded.clear()
    monkeypatch.setattr(manifest, "_VERSION", manifest._VERSION + 1)
    manifest.readable(root, names_in(root))
    assert len(decoded) == 200


def test_a_folder_that_cannot_be_written_to_is_remembered_at_home(root, decoded, home, caplog):
    (root / ".refocus_manifest.json").mkdir()  # in the way, also of a test that runs as root
    for count in (200, 0):
        assert len(manifest.readable(root, names_in(root))) == 200
        assert len(decoded) == count
        decoded.clear()
    assert not caplog.text
    (cached,) = (home / ".cache" / "refocus_jax").iterdir()
    assert len(json.loads(cached.read_text())["files"]) == 200
    assert [path.name for path in root.iterdir() if path.is_file()] == []


def test_without_any_place_to_remember_the_check_is_repeated(root, decoded, home, caplog):
    (root / ".refocus_manifest.json").mkdir()
    home.write_text("no directory")
    for _ in range(2):
        assert len(manifest.readable(root, names_in(root))) == 200
    assert len(decoded) == 400
    assert "cannot be remembered and will be repeated" in caplog.text


def test_an_interrupted_check_goes_on_where_it_was(root, decoded, monkeypatch):
    names, decode_rgb = names_in(root), manifest.decode_rgb

    def interrupting(file, name):
        if name.endswith("150.png"):
            time.sleep(0.3)  # for the files before
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return decode_rgb(file, name)

    monkeypatch.setattr(manifest, "decode_rgb", interrupting)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's workers ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            manifest.readable(root, names)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.setattr(manifest, "decode_rgb", decode_rgb)
    decoded.clear()
    assert manifest.readable(root, names) == names
    assert 50 <= len(decoded) < 100
