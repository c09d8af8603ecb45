"""The manifest: which files are found unreadable, and that each is decoded once."""

import json
import os
import signal
import threading
import time

import numpy as np
import pytest
from PIL import Image

from refocus_jax.data import manifest, remembered


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home directory of its own, where files may be remembered as soon as they are written."""
    monkeypatch.setattr(remembered, "_UNSETTLED_NS", 0)
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
    names, sixteen_bits, lock = [], manifest.sixteen_bits, threading.Lock()

    def recording(file, name):
        with lock:
            names.append(os.path.basename(name))
        return sixteen_bits(file, name)

    monkeypatch.setattr(manifest, "sixteen_bits", recording)
    return names


def names_in(root):
    return sorted(f"cat/{path.name}" for path in (root / "cat").iterdir())


def test_sound_files_are_decoded_once(root, decoded, caplog):
    names = names_in(root)
    assert list(manifest.check(root, names)) == names
    assert sorted(decoded) == [os.path.basename(name) for name in names]
    decoded.clear()
    assert list(manifest.check(root, names[::-1])) == names[::-1]
    assert not decoded and not caplog.text
    assert [path.name for path in root.iterdir() if path.name != "cat"] == [".refocus_manifest.json"]


def test_changed_and_new_files_are_decoded_again(root, decoded):
    manifest.check(root, names_in(root))
    decoded.clear()
    touched, grown = root / "cat" / "003.png", root / "cat" / "004.png"
    os.utime(touched, ns=(0, touched.stat().st_mtime_ns + 1))
    before = grown.stat()
    Image.new("RGB", (50, 50)).save(grown)
    os.utime(grown, ns=(0, before.st_mtime_ns))
    assert grown.stat().st_size != before.st_size
    (root / "cat" / "new.png").write_bytes((root / "cat" / "005.png").read_bytes())
    for expected in (["003.png", "004.png", "new.png"], []):
        manifest.check(root, names_in(root))
        assert sorted(decoded) == expected
        decoded.clear()


def test_files_that_are_not_asked_for_are_not_forgotten(root, decoded):
    names = names_in(root)
    manifest.check(root, names[:150])
    manifest.check(root, names[100:])
    assert len(decoded) == 200
    manifest.check(root, names)
    assert len(decoded) == 200


def test_unreadable_files_are_listed_and_skipped_until_they_are_repaired(root, decoded, caplog):
    names, content = names_in(root), (root / "cat" / "007.png").read_bytes()
    (root / "cat" / "007.png").write_bytes(content[:-30])
    (root / "cat" / "009.png").unlink()
    for _ in range(2):
        assert list(manifest.check(root, names)) == [n for n in names if n not in ("cat/007.png", "cat/009.png")]
        assert f"of 200 image files in {root}, 2 cannot be read and will be skipped" in caplog.text
        assert "007.png cannot be read as an image" in caplog.text and "009.png" in caplog.text
    (root / "cat" / "007.png").write_bytes(content)
    (root / "cat" / "009.png").write_bytes(content)
    decoded.clear()
    assert list(manifest.check(root, names)) == names
    assert sorted(decoded) == ["007.png", "009.png"]


def test_more_than_a_hundredth_is_an_error_that_lists_ten(root, decoded):
    names = names_in(root)
    for i in range(2):
        (root / names[i]).write_bytes(b"")
    manifest.check(root, names)
    for i in range(14):
        (root / names[i]).write_bytes(b"")
    expected = ("data.source .* of 200 image files in .*root, 14 cannot be read.*more than the share "
                "data.max_unreadable=0.01; repair or remove them")
    with pytest.raises(ValueError, match=expected) as refusal:
        manifest.check(root, names)
    assert str(refusal.value).count(".png") == 10 and str(refusal.value).endswith("\n  ...")
    # What has been found sound is not decoded again once the others are gone.
    decoded.clear()
    assert list(manifest.check(root, names[14:])) == names[14:]
    assert not decoded


def test_a_changed_file_is_noticed_by_whatever_means_it_looks_the_same(root, decoded):
    """The time of modification can be set back, the time of the status change cannot."""
    path, before = root / "cat" / "003.png", (root / "cat" / "003.png").stat()
    digest = manifest.check(root, names_in(root))["cat/003.png"].digest
    decoded.clear()
    time.sleep(0.02)  # the clock of a file system ticks slowly
    path.write_bytes(next(other.read_bytes() for other in sorted(path.parent.iterdir())
                          if other != path and other.stat().st_size == before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert manifest.check(root, names_in(root))["cat/003.png"].digest != digest and decoded == ["003.png"]


def test_a_file_that_may_change_within_a_tick_is_not_remembered(root, decoded, monkeypatch):
    monkeypatch.setattr(remembered, "_UNSETTLED_NS", 10**12)
    for _ in range(2):
        manifest.check(root, names_in(root))
        assert len(decoded) == 200
        decoded.clear()


def test_digests_are_of_bytes_and_16_bits_are_remembered(root, decoded):
    Image.fromarray(np.full((2, 3), 900, np.uint16)).save(root / "cat" / "000.png")
    (root / "cat" / "copy.png").write_bytes((root / "cat" / "001.png").read_bytes())
    for count in (201, 0):
        found = manifest.check(root, names_in(root))
        assert len(decoded) == count
        assert found["cat/000.png"].sixteen_bits == (900, False) and found["cat/001.png"].sixteen_bits is None
        assert found["cat/copy.png"].digest == found["cat/001.png"].digest != found["cat/002.png"].digest
        decoded.clear()


def test_one_unreadable_file_is_always_tolerated(root):
    names = names_in(root)[:27]
    (root / names[3]).write_bytes(b"")
    assert len(manifest.check(root, names, max_unreadable=0.0)) == 26
    (root / names[4]).write_bytes(b"")
    with pytest.raises(ValueError, match="2 cannot be read, more than the share data.max_unreadable=0;"):
        manifest.check(root, names, max_unreadable=0.0)
    assert len(manifest.check(root, names, max_unreadable=0.1)) == 25


def test_the_manifest_lists_what_is_not_taken(root):
    (root / "cat" / "000.png").write_bytes(b"")
    manifest.check(root, names_in(root), {"hidden": ["caf\udce9/.x.png"]})
    content = json.loads((root / ".refocus_manifest.json").read_text())
    assert content["left_out"] == {"hidden": ["caf\udce9/.x.png"]}
    assert list(content["unreadable"]) == ["cat/000.png"] and "cannot be read" in content["unreadable"]["cat/000.png"]
    manifest.check(root, names_in(root))
    assert json.loads((root / ".refocus_manifest.json").read_text())["left_out"] == {}


def test_a_pipe_is_not_waited_for(root, caplog):
    os.mkfifo(root / "cat" / "pipe.png")
    assert "cat/pipe.png" not in manifest.check(root, names_in(root))
    assert "pipe.png is not a regular file" in caplog.text


@pytest.mark.parametrize("content", [
    "", "{", "null", "[]", "[" * 100_000, '{"version": 2}', '{"version": 2, "files": []}',
    '{"version": 2, "files": {"cat/000.png": null, "cat/001.png": [1], "cat/002.png": {}}}',
    '{"version": 2, "files": {"cat/003.png": [1, "a", null], "cat/004.png": [[1], "a", [1]]}}', "\udcff\udcfe",
])
def test_damaged_manifests_are_ignored_and_rebuilt(root, decoded, content):
    names = names_in(root)
    (root / ".refocus_manifest.json").write_text(content, errors="surrogateescape")
    assert list(manifest.check(root, names)) == names and len(decoded) == 200
    assert list(manifest.check(root, names)) == names and len(decoded) == 200


def test_a_manifest_of_other_rules_is_not_trusted(root, decoded, monkeypatch):
    manifest.check(root, names_in(root))
    decoded.clear()
    monkeypatch.setattr(manifest, "_VERSION", manifest._VERSION + 1)
    manifest.check(root, names_in(root))
    assert len(decoded) == 200


def test_a_folder_that_cannot_be_written_to_is_remembered_at_home(root, decoded, home, caplog):
    (root / ".refocus_manifest.json").mkdir()  # in the way, also of a test that runs as root
    for count in (200, 0):
        assert len(manifest.check(root, names_in(root))) == 200
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
        assert len(manifest.check(root, names_in(root))) == 200
    assert len(decoded) == 400
    assert "cannot be saved, so the check will be repeated" in caplog.text


def test_an_interrupted_check_goes_on_where_it_was(root, decoded, monkeypatch):
    names, sixteen_bits = names_in(root), manifest.sixteen_bits

    def interrupting(file, name):
        if name.endswith("150.png"):
            time.sleep(0.3)  # for the files before
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return sixteen_bits(file, name)

    monkeypatch.setattr(manifest, "sixteen_bits", interrupting)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's workers ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            manifest.check(root, names)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.setattr(manifest, "sixteen_bits", sixteen_bits)
    decoded.clear()
    assert list(manifest.check(root, names)) == names
    assert 50 <= len(decoded) < 100
