"""Which arrays are taken from which file. Real files of PyTorch: fixtures/state_dict*.pth, with values in the npz."""

import json
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from refocus_jax.runtime import weight_files
from tests.fixtures import torch_pickles
from tests.fixtures.torch_pickles import Storage, archive, tensor

FIXTURE = Path(__file__).parents[1] / "fixtures" / "state_dict.pth"
OLD_FIXTURE = FIXTURE.with_name("state_dict_before_1_6.pth")


@pytest.mark.parametrize("path", [FIXTURE, OLD_FIXTURE], ids=lambda path: path.stem)
def test_a_file_of_pytorch_is_read(path):
    """Shared and transposed storage, all types of numbers, parameters and metadata."""
    arrays = weight_files.read(path)
    with np.load(FIXTURE.with_suffix(".npz")) as expected:
        assert arrays.keys() == set(expected)
        for name, values in expected.items():
            assert arrays[name].shape == values.shape
            np.testing.assert_array_equal(np.asarray(arrays[name], np.float32), values, err_msg=name)
    assert [arrays[name].dtype.name for name in ("weight", "half", "bfloat16", "levels")] == [
        "float32", "float16", "bfloat16", "int64"]


def test_safetensors_come_back(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.asarray([[1, 2]], np.int64)}
    weight_files.write(tmp_path / "deep" / "w.safetensors", arrays, {"made_by": "test"})
    back = weight_files.read(tmp_path / "deep" / "w.safetensors")
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["w.safetensors"]
    with pytest.raises(ValueError, match="ends in .safetensors"):
        weight_files.write(tmp_path / "w.pth", arrays, {})


@pytest.mark.parametrize(("name", "dtype"), [
    ("F64", np.float64), ("F32", np.float32), ("F16", np.float16), ("BF16", ml_dtypes.bfloat16), ("I64", np.int64),
    ("I32", np.int32), ("I16", np.int16), ("I8", np.int8), ("U64", np.uint64), ("U32", np.uint32), ("U16", np.uint16),
    ("U8", np.uint8), ("BOOL", np.bool_), ("F8_E4M3", None)])
def test_safetensors_of_all_types_that_numpy_has(name, dtype, tmp_path):
    values = np.array([0, 1, 1], dtype or np.int8)
    header = json.dumps({"a": {"dtype": name, "shape": [3], "data_offsets": [0, values.nbytes]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
    if dtype is None:
        with pytest.raises(ValueError, match="cannot be read as a state dict: a has the type F8_E4M3"):
            weight_files.read(path)
    else:
        found = weight_files.read(path)["a"]
        assert found.dtype == dtype and (found == values).all()


def test_what_is_no_file_of_weights_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.pth does not exist"):
        weight_files.read(tmp_path / "missing.pth")
    with pytest.raises(FileNotFoundError, match="is a folder without an index of shards"):
        weight_files.read(tmp_path)
    assert weight_files.is_weight_file("a/b.pt") and not weight_files.is_weight_file("runs/tiny")
    assert not weight_files.is_weight_file(tmp_path) and not weight_files.is_weight_file("")


@pytest.mark.parametrize(("content", "message"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "is a Git LFS pointer.*download"),
    (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page .*download"), (b"", "is empty; download"),
    (bytes(257) + b"ustar" + bytes(300), "is an archive, not weights; unpack it"), (b"\x1f\x8b" + bytes(9), "archive"),
    (b"hello", "is not a file of weights; download"), (FIXTURE.read_bytes()[:900], "is cut short.*download"),
    ((10**6).to_bytes(8, "little") + b'{"a":', "is cut short.*download")], ids=range(8))
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin", ""])
def test_what_a_file_is_instead_of_weights_is_said(content, message, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert weight_files.is_weight_file(path)
    with pytest.raises(ValueError, match=message):
        weight_files.read(path)


@pytest.mark.parametrize("name", ["w.bin", "w.ckpt", "w", "w.safetensors"])
@pytest.mark.parametrize("fixture", [FIXTURE, OLD_FIXTURE], ids=lambda path: path.stem)
def test_files_are_known_by_their_first_bytes(name, fixture, tmp_path):
    (tmp_path / name).write_bytes(fixture.read_bytes())
    assert weight_files.read(tmp_path / name).keys() == weight_files.read(fixture).keys()


def test_shards_are_read_together(tmp_path):
    arrays = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float32)}
    for number, (name, array) in enumerate(arrays.items()):
        weight_files.write(tmp_path / f"w-{number}.safetensors", {name: array}, {})
    index = tmp_path / "w.safetensors.index.json"

    def write(places):
        index.write_text(json.dumps({"weight_map": places}))

    write({"a": "w-0.safetensors", "b": "w-1.safetensors"})
    for source in (index, tmp_path):
        assert weight_files.is_weight_file(source)
        found = weight_files.read(source)
        assert found.keys() == arrays.keys() and all((found[name] == arrays[name]).all() for name in arrays)
    with pytest.raises(ValueError, match="names an entry, but .* has no entries; leave out #a"):
        weight_files.read(f"{index}#a")
    write({"b": "w-1.safetensors"})
    assert weight_files.read(index).keys() == {"b"}  # what the index does not name does not count
    (tmp_path / "second.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="has several indices of shards; give one of .*second"):
        weight_files.read(tmp_path)
    (tmp_path / "second.safetensors.index.json").unlink()
    write({"a": "w-0.safetensors", "b": "w-2.safetensors"})
    with pytest.raises(FileNotFoundError, match="lacks w-2.safetensors of 2 files; download"):
        weight_files.read(index)
    write({"a": "w-0.safetensors", "c": "w-1.safetensors"})
    with pytest.raises(ValueError, match="names arrays that its files lack: c; download"):
        weight_files.read(index)
    for bad in ({"a": "../w-0.safetensors"}, {"a": "/etc/passwd"}, {"a": 3}):
        write(bad)
        with pytest.raises(ValueError, match="is not an index of shards .*not in its folder.*; download"):
            weight_files.read(index)
    for text in ("[]", "{", '{"weight_map": 3}', "[" * 10**5, '{"weight_map": {"a": "w.safetensors.index.json"}}'):
        index.write_text(text)
        with pytest.raises(ValueError, match="is not an index of shards .*; download"):
            weight_files.read(index)


def test_what_is_more_or_less_than_a_state_dict_is_refused(tmp_path):
    for number, (content, message) in enumerate([
            (pickle.dumps({"epoch": 3}), "no named arrays, but 'epoch'; give"), (pickle.dumps([1]), "but a list; give"),
            (pickle.dumps({})[:-1], "cannot be read")]):
        with pytest.raises(ValueError, match=message):
            weight_files.read(archive(tmp_path / f"{number}.pth", content))
    with pytest.raises(ValueError, match="compressed"):
        weight_files.read(archive(tmp_path / "bomb.pth", pickle.dumps({}), [bytes(9)], zipfile.ZIP_DEFLATED))
    (tmp_path / "legacy.pth").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match="weights_only=True"):
        weight_files.read(tmp_path / "legacy.pth")


class Namespace:
    """An object that training states hold and whose class is unknown here."""

    def __init__(self):
        self.depth = 16


@pytest.fixture
def training_state(tmp_path, monkeypatch):
    torch_pickles.install(monkeypatch)
    return lambda content: torch_pickles.save(tmp_path / "state.pth", content)


def tensors(*names):
    return {name: tensor(Storage(), i, (1,), (1,)) for i, name in enumerate(names)}


def has_head(names):
    return "head" in names


@pytest.mark.parametrize(("content", "entry"), [
    ({"trainer": {"var_wo_ddp": tensors("head"), "vae_local": tensors("codes")}, "epoch": 3, "args": Namespace()},
     "trainer.var_wo_ddp"),
    ({"state_dict": tensors("head"), "optimizer": {"state": {0: tensors("exp_avg")}, "lr": [0.1]}}, "state_dict"),
    ({"model": tensors("head"), "ema": tensors("other", "head")}, "ema"),
    ({"model": tensors("head"), "ema": tensors("other")}, "model")], ids=range(4))
def test_the_entry_that_fits_is_taken_and_named(content, entry, training_state, caplog):
    path = training_state(content)
    assert "head" in weight_files.read(path, has_head)
    assert f"the weights are those of its entry {entry}" in caplog.text
    caplog.clear()
    assert weight_files.read(f"{path}#{entry}").keys() == weight_files.read(path, has_head).keys()
    with pytest.raises(ValueError, match=f"has no entry 'nothing'; choose one of .*{entry}"):
        weight_files.read(f"{path}#nothing")


def test_several_entries_that_fit_or_none_are_listed(training_state):
    path = training_state({"first": tensors("head"), "second": {"deep": tensors("head")}, "third": tensors("tail")})
    with pytest.raises(ValueError, match=r"several entries that fit: first, second.deep; give one as .*#second.deep"):
        weight_files.read(path, has_head)
    assert weight_files.read(f"{path}#second.deep", has_head).keys() == {"head"}
    with pytest.raises(ValueError, match=r"no entry that fits the network; it has first, second.deep, third; give one"):
        weight_files.read(path, lambda names: "nobody" in names)


def test_what_is_shared_many_times_is_looked_at_once(training_state):
    """Forty dictionaries, each of which holds the next twice: 2^40 paths lead to the last one."""
    deepest = tensors("head")
    content = deepest
    for _ in range(40):
        content = {"a": content, "b": content}
    assert weight_files.read(training_state(content)).keys() == {"head"}
    with pytest.raises(ValueError, match="0 is not a name; take another"):
        weight_files.read(training_state({0: tensors("head")["head"]}))


def test_only_what_is_chosen_is_read(training_state):
    """Of a training state, Adam's moments are twice the weights."""
    content = {"model": tensors("head"), "optimizer": {"exp_avg": tensor(Storage(key="not_there"))}}
    assert weight_files.read(training_state(content), has_head).keys() == {"head"}


def test_a_chosen_entry_may_hold_numbers_but_nothing_that_would_be_imported(training_state):
    assert weight_files.read(training_state({**tensors("head"), "epoch": 3})).keys() == {"head"}
    with pytest.raises(ValueError, match="'args' asks for tests.runtime.test_weight_files.Namespace, which no state"):
        weight_files.read(training_state({**tensors("head"), "args": Namespace()}))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_what_wrappers_put_before_all_names_is_taken_off(prefix, training_state, tmp_path, caplog):
    path = training_state(tensors(f"{prefix}head", f"{prefix}tail.module.weight"))
    assert weight_files.read(path, has_head).keys() == {"head", "tail.module.weight"}
    assert f"all names begin with {prefix}, which is removed" in caplog.text
    weight_files.write(tmp_path / "w.safetensors", {f"{prefix}a": np.zeros(1), f"{prefix}b": np.zeros(1)}, {})
    assert weight_files.read(tmp_path / "w.safetensors").keys() == {"a", "b"}
    weight_files.write(tmp_path / "w.safetensors", {f"{prefix}a": np.zeros(1), "b": np.zeros(1)}, {})
    assert weight_files.read(tmp_path / "w.safetensors").keys() == {f"{prefix}a", "b"}  # not all


@pytest.mark.parametrize("kind", ["pth", "before_1_6", "safetensors"])
def test_damaged_files_are_an_error_or_harmless(kind, tmp_path):
    """A file that is cut, or changed in one byte, gives a ValueError or arrays of some numbers."""
    path = tmp_path / ("damaged.safetensors" if kind == "safetensors" else "damaged.pth")
    random = np.random.default_rng(0)
    if kind != "safetensors":
        whole = (FIXTURE if kind == "pth" else OLD_FIXTURE).read_bytes()
    else:
        weight_files.write(path, {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int64)}, {"key": "value"})
        whole = path.read_bytes()
    errors = 0
    for trial in range(300):
        damaged = bytearray(whole)
        at = random.integers(len(whole))
        if trial % 3 == 0:
            damaged = damaged[:at]
        else:
            damaged[at] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            arrays = weight_files.read(path)
            assert all(isinstance(array, np.ndarray) for array in arrays.values())
        except ValueError:
            errors += 1
    assert errors > 100
