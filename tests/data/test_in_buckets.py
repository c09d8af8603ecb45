"""Images and tokens in a bucket, with an emulator on this machine: the same as on disk, and written shard by shard."""

import contextlib
import dataclasses
import itertools
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from refocus_jax.data import array_records, conversion, pipeline, sources, token_cache
from refocus_jax.data.crops import CropRule
from refocus_jax.data.records import SourceSettings
from refocus_jax.runtime import bucket, processes
from tests.data import test_tfds, test_token_cache
from tests.fixtures import bucket as emulator
from tests.fixtures import packed
from tests.fixtures.bucket import names

pytestmark = emulator.WARNINGS
SHARDS = {f"train-0000{i}-of-00003.array_record" for i in range(3)} | {"validation-00000-of-00001.array_record"}


@pytest.fixture
def in_parquet(tmp_path):
    """Three files of training images and one of validation images."""
    rows = packed.examples(24)
    for number in range(3):
        packed.write_parquet(tmp_path / f"in/train-{number:05d}-of-00003.parquet", rows[8 * number:8 * number + 8])
    packed.write_parquet(tmp_path / "in/validation-00000-of-00001.parquet", packed.examples(9, 100))
    return f"parquet:{tmp_path}/in"


def convert(spec, output):
    return conversion.write(bucket.open_data(output, only_reads=False),
                            conversion.open_collection(spec, SourceSettings()))


def content(url, name):
    found, prefix = bucket.objects(url)
    return found.blob(f"{prefix}{name}").download_as_bytes()


@pytest.fixture
def both(in_parquet, url, tmp_path):
    """The same images converted to a folder and into the bucket."""
    convert(in_parquet, tmp_path / "out")
    convert(in_parquet, url)
    return str(tmp_path / "out"), url


def test_what_is_written_into_a_bucket_is_what_is_written_to_disk(both, tmp_path):
    _, url = both
    assert names(url) == SHARDS | {"images.json"}
    for name in names(url):
        assert content(url, name) == (tmp_path / "out" / name).read_bytes()
    assert not list((tmp_path / "home").rglob("*.array_record"))
    for here, there in zip(*(sources.load_splits(f"array_record:{place}") for place in both), strict=True):
        assert (here.fingerprint, here.class_names, len(here)) == (there.fingerprint, there.class_names, len(there))
        for index in range(len(here)):
            assert here.records[index] == there.records[index]
    assert not list((tmp_path / "home").rglob("*.array_record"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_those_of_the_disk(both, num_workers):
    rule, found = CropRule(image_size=12, resize_ratio=1.125, flip=True), []
    for place, workers in zip(both, (0, num_workers), strict=True):
        batches = pipeline.training_batches(sources.load(f"array_record:{place}", "train"), rule, batch_size=8, seed=3,
                                            num_workers=workers)
        with contextlib.closing(iter(batches)) as endless:
            found.append([*itertools.islice(endless, 4)])
    for here, there in zip(*found, strict=True):
        jax.tree.map(np.testing.assert_array_equal, here, there)


def test_only_what_is_needed_of_a_folder_is_fetched(both, tmp_path, monkeypatch):
    _, url = both
    found, prefix = bucket.objects(url)
    for name in ("raw/0.json", "0.JPEG"):
        found.blob(f"{prefix}{name}").upload_from_string("{}")
    local = bucket.open_data(url)
    assert {path.name for path in local.iterdir()} == {"images.json", ".bucket.json"}
    assert bucket.sizes(local).keys() == SHARDS


class Killed(Exception):
    pass


@pytest.mark.parametrize("failing", ["send", "elsewhere"])
def test_an_interrupted_conversion_goes_on_with_the_missing_files(in_parquet, url, tmp_path, monkeypatch, failing):
    """Also on another machine; and whatever was on this machine only does not count."""
    send, sent = bucket.send, []

    def interrupted(path):
        if "train-00001" in path.name and not sent.count(path.name):
            raise Killed
        sent.append(path.name)
        send(path)

    monkeypatch.setattr(bucket, "send", interrupted)
    with pytest.raises(Killed):
        convert(in_parquet, url)
    first = "train-00000-of-00003.array_record"
    assert names(url) == {first, f"{first}.json", "images.partial.json"}
    with pytest.raises(FileNotFoundError, match=f"{url}, where there is only the beginning of a conversion; make it "):
        sources.load(f"array_record:{url}", "train")
    if failing == "elsewhere":
        monkeypatch.setenv("HOME", str(tmp_path / "another"))
    monkeypatch.setattr(bucket, "send", lambda path: (sent.append(path.name), send(path)))
    convert(in_parquet, url)
    assert sent.count(first) == 1 and names(url) == SHARDS | {"images.json"}
    convert(in_parquet, tmp_path / "out")
    assert content(url, "images.json") == (tmp_path / "out/images.json").read_bytes()
    assert sent.count("train-00001-of-00003.array_record") == 2  # into the bucket, and to disk


def test_processes_share_the_files_and_see_those_of_the_others(in_parquet, url, tmp_path, monkeypatch):
    class Waits(Exception):
        pass

    def barrier(name):
        assert url in name  # the same in all processes, whatever their own folders are
        raise Waits

    monkeypatch.setattr(processes, "check_same", lambda name, value: None)
    monkeypatch.setattr(processes, "barrier", barrier)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index in (1, 0):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        with pytest.raises(Waits):
            convert(in_parquet, url)
    assert names(url) == SHARDS | {f"{name}.json" for name in SHARDS} | {"images.partial.json"}
    monkeypatch.setattr(processes, "barrier", lambda name: None)
    monkeypatch.setattr(processes, "from_first", lambda function: jax.process_index() or function())
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        assert [shard.name for shard in convert(in_parquet, url).splits["train"]] == sorted(SHARDS)[:3]
    assert names(url) == SHARDS | {"images.json"}


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_file_is_named_and_made_again(both, in_parquet, damage):
    _, url = both
    found, prefix = bucket.objects(url)
    name = "train-00001-of-00003.array_record"
    before, blob = content(url, name), found.blob(f"{prefix}{name}")
    blob.delete()
    if damage == "cut":
        blob.upload_from_string(before[:1000])
    with pytest.raises(ValueError, match=f"{url}/{name} is missing or damaged .it should have {len(before)} bytes"):
        sources.load(f"array_record:{url}", "train")
    convert(in_parquet, url)
    assert content(url, name) == before


def test_a_damaged_record_is_named_when_it_is_read(both):
    _, url = both
    found, prefix = bucket.objects(url)
    name = "train-00000-of-00003.array_record"
    damaged = bytearray(content(url, name))
    damaged[1000] ^= 1
    source = sources.load(f"array_record:{url}", "train")
    found.blob(f"{prefix}{name}").upload_from_string(bytes(damaged))
    with pytest.raises(ValueError, match=f"{url}/{name} is missing or damaged"):
        [source.records[index] for index in range(8)]


def test_a_large_file_is_sent_in_parts(url, tmp_path):
    local = bucket.open_data(url, only_reads=False)
    records = [array_records.pack(np.random.default_rng(number).bytes(2_000_000), number) for number in range(8)]
    written = array_records.write(local / "train-00000-of-00001.array_record", records)
    assert not list(local.glob("*.array_record"))  # a disk need not hold all of them
    assert written.size > 2**23  # from here on, the client does not send a file at once
    assert bucket.sizes(local) == {"train-00000-of-00001.array_record": written.size}
    shard = array_records.Shard(name="train-00000-of-00001.array_record", origin="", largest_label=7, sixteen_bits={},
                                skipped=(), **written._asdict())
    found = array_records.Records(local, [shard])
    assert [array_records.pack(**{"content": found[i]["image"], "label": found[i]["label"]}) for i in (7, 0, 3)] == [
        records[i] for i in (7, 0, 3)]


def test_a_bucket_that_is_not_there_or_does_not_answer_is_named_before_it_is_read(bucket_address, monkeypatch):
    """ArrayRecord itself would wait for ever."""
    for opened in (lambda url: sources.load(f"array_record:{url}", "train"), token_cache.TokenCache):
        with pytest.raises(OSError, match="gs://nowhere/data: 404 .*correct the address, or your rights"):
            opened("gs://nowhere/data")
        with pytest.raises(FileNotFoundError, match=f"{bucket_address}/empty, where there is no .*json; make"):
            opened(f"{bucket_address}/empty")
    monkeypatch.setattr(bucket, "_SECONDS", 0.5)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://localhost:1")
    for opened in (lambda url: sources.load(f"array_record:{url}", "train"), token_cache.TokenCache):
        with pytest.raises(OSError, match="gs://bucket/data"):
            opened("gs://bucket/data")


@pytest.fixture
def tfds_here_and_there(url, tmp_path, monkeypatch):
    """The same dataset of tfds in a folder and in the bucket; a function that opens the splits of one of them."""
    def loaded(data_dir, name="tiny"):
        monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", data_dir)
        return sources.load_splits(f"tfds:{name}")

    def prepare(**numbers):
        test_tfds.prepare_tfds(tmp_path / "tfds", numbers)
        found, prefix = bucket.objects(url)
        for file in filter(Path.is_file, (tmp_path / "tfds").rglob("*")):
            found.blob(f"{prefix}{file.relative_to(tmp_path / 'tfds')}").upload_from_filename(str(file))
        return str(tmp_path / "tfds"), url

    return prepare, loaded


@pytest.mark.parametrize("numbers", [{"train": range(30)}, {"train": range(12), "test": range(100, 111)}])
def test_a_dataset_of_tfds_in_a_bucket_is_the_one_on_disk(tfds_here_and_there, numbers):
    prepare, loaded = tfds_here_and_there
    for here, there in zip(*map(loaded, prepare(**numbers)), strict=True):
        assert (here.fingerprint, here.class_names, len(here)) == (there.fingerprint, there.class_names, len(there))
        for index in range(len(here)):
            jax.tree.map(np.testing.assert_array_equal, here[index], there[index])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_of_tfds_are_those_of_the_disk(tfds_here_and_there, num_workers):
    prepare, loaded = tfds_here_and_there
    rule, found = CropRule(image_size=4, resize_ratio=1.125, flip=True), []
    for place, workers in zip(prepare(train=range(40)), (0, num_workers), strict=True):
        batches = pipeline.training_batches(loaded(place)[0], rule, batch_size=8, seed=3, num_workers=workers)
        with contextlib.closing(iter(batches)) as endless:
            found.append([*itertools.islice(endless, 4)])
    for here, there in zip(*found, strict=True):
        jax.tree.map(np.testing.assert_array_equal, here, there)


def test_what_is_missing_of_tfds_in_a_bucket_is_named(tfds_here_and_there, monkeypatch):
    prepare, loaded = tfds_here_and_there
    _, url = prepare(train=range(8), test=range(3))
    with pytest.raises(FileNotFoundError, match=f"tfds:mnist, which is not prepared in {url} .set TFDS_DATA_DIR"):
        loaded(url, "mnist")
    with pytest.raises(ValueError, match="tfds:nothing, but tensorflow_datasets knows no dataset of this name"):
        loaded(url, "nothing")
    found, prefix = bucket.objects(url)
    name = "tiny/1.0.0/tiny-test.array_record-00000-of-00001"
    found.blob(f"{prefix}{name}").delete()
    with pytest.raises(FileNotFoundError, match=f"data.source is tfds:tiny, of which {url}/{name} is missing; copy "):
        loaded(url)
    with pytest.raises(OSError, match="gs://nowhere/tfds: 404 .*correct the address, or your rights"):
        loaded("gs://nowhere/tfds")
    monkeypatch.setattr(bucket, "_SECONDS", 0.5)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://localhost:1")
    with pytest.raises(OSError, match=url):
        loaded(url)


def test_a_damaged_record_of_tfds_in_a_bucket_is_named(tfds_here_and_there):
    prepare, loaded = tfds_here_and_there
    _, url = prepare(train=range(8), test=range(3))
    source, _ = loaded(url)
    found, prefix = bucket.objects(url)
    blob = found.blob(f"{prefix}tiny/1.0.0/tiny-train.array_record-00000-of-00001")
    damaged = bytearray(blob.download_as_bytes())
    damaged[len(damaged) // 2] ^= 1
    blob.upload_from_string(bytes(damaged))
    with pytest.raises(ValueError, match="record 0 of tfds:tiny is damaged .*; copy the dataset again"):
        source[0]


def test_tokens_in_a_bucket_are_those_on_disk(url, tmp_path):
    records = test_token_cache.write(tmp_path / "out")
    test_token_cache.write(bucket.open_data(url, only_reads=False))
    assert names(url) == {path.name for path in (tmp_path / "out").iterdir()}
    here, there = token_cache.TokenCache(tmp_path / "out"), token_cache.TokenCache(url)
    assert here.description == there.description == token_cache.describe(url) and len(there) == len(records)
    with contextlib.ExitStack() as context:
        batches = [itertools.islice(context.enter_context(contextlib.closing(iter(token_cache.batches(
            cache, batch_size=8, seed=1)))), 6) for cache in (here, there)]
        for expected, found in zip(*batches, strict=True):
            jax.tree.map(np.testing.assert_array_equal, expected, found)
    jax.tree.map(np.testing.assert_array_equal, here.sample(7), there.sample(7))


def test_many_tokens_of_a_bucket_are_asked_for_at_once(url, monkeypatch):
    """Every example is one question, and an answer takes a long time compared with one of a disk."""
    test_token_cache.write(bucket.open_data(url, only_reads=False))
    waiting, most, lock = 0, 0, threading.Lock()

    def slow(cache, index):
        nonlocal waiting, most
        with lock:
            waiting, most = waiting + 1, max(most, waiting + 1)
        time.sleep(0.02)
        with lock:
            waiting -= 1
        return example

    example = token_cache.TokenCache(url)[0]
    monkeypatch.setattr(token_cache.TokenCache, "__getitem__", slow)
    with contextlib.closing(iter(token_cache.batches(token_cache.TokenCache(url), batch_size=8, seed=1))) as batches:
        for _ in range(4):
            next(batches)
    assert most > 16


def test_a_damaged_shard_of_tokens_is_named(url):
    test_token_cache.write(bucket.open_data(url, only_reads=False))
    found, prefix = bucket.objects(url)
    name = "tokens-00002-of-00004.array_record"
    found.blob(f"{prefix}{name}").upload_from_string(content(url, name)[:1000])
    with pytest.raises(ValueError, match=f"{url}/{name} is missing or damaged .0 of its 12 examples can be read"):
        token_cache.TokenCache(url)


def test_a_description_that_differs_is_refused_with_the_address(url):
    test_token_cache.write(bucket.open_data(url, only_reads=False))
    with pytest.raises(ValueError, match=f"{url} holds other tokens: seed is 1 there and 2 here"):
        token_cache.begin(bucket.open_data(url, only_reads=False),
                          dataclasses.replace(test_token_cache.DESCRIPTION, seed=2))
