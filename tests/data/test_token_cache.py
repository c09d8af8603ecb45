"""Tokens on disk: the layout of a record, batches of an epoch, and what is refused."""

import dataclasses
import itertools
import struct

import jax
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from refocus_jax.data import token_cache

DESCRIPTION = token_cache.Description(
    examples=40, images=16, passes=3, seed=1, shard_size=12, batch_size=4, grid_sizes=(1, 2, 4),
    vocab_sizes={"structure": 65536, "alias": 16}, class_names=("even", "odd"),
    settings={"image_size": 8, "focus": {"psf": "disk"}}, tokenizers={"structure": "ab", "alias": "cd"},
    fingerprint="ef")


def write(directory, description=DESCRIPTION):
    """A cache of random tokens, labelled by their position; returns its records."""
    rng = np.random.default_rng(0)
    records = np.zeros(description.examples, description.record)
    records["label"] = np.arange(description.examples)
    records["structure"] = rng.integers(0, 65536, records["structure"].shape)
    records["alias"] = rng.integers(0, 16, records["alias"].shape)
    token_cache.begin(directory, description)
    for shard in range(description.num_shards):
        token_cache.write_shard(token_cache.shard_path(directory, description, shard),
                                records[description.examples_of(shard)])
    token_cache.finish(directory)
    return records


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A cache of four shards, and its records."""
    directory = tmp_path_factory.mktemp("tokens")
    return directory, write(directory)


def take(dataset, count):
    return list(itertools.islice(iter(dataset), count))


def test_a_cache_is_what_was_written(written):
    directory, records = written
    cache = token_cache.TokenCache(directory)
    assert len(cache) == 40 and cache.description == DESCRIPTION
    assert sorted(path.name for path in directory.iterdir()) == [
        "token_cache.json", *(f"tokens-0000{i}-of-00004.array_record" for i in range(4))]
    for index in (0, 11, 12, 39):
        for name, value in cache[index].items():
            assert value.dtype == np.int32
            np.testing.assert_array_equal(value, records[name][index])


def test_a_record_is_laid_out_as_documented(written):
    directory, records = written
    reader = ArrayRecordReader(str(directory / "tokens-00001-of-00004.array_record"))
    assert reader.num_records() == 12
    numbers = struct.unpack("<I21H5H", reader.read([3])[0])
    reader.close()
    assert numbers == (15, *records["structure"][15], *records["alias"][15])


def test_without_a_teacher_there_are_no_alias_tokens(tmp_path):
    write(tmp_path, dataclasses.replace(DESCRIPTION, vocab_sizes={"structure": 32}))
    assert token_cache.TokenCache(tmp_path)[7]["alias"].shape == (0,)


def test_every_epoch_has_all_examples_in_a_new_order(written):
    """An epoch is 26 passes over 40 examples: the first multiple of them that is at least 1024."""
    first, second = take(token_cache.batches(token_cache.TokenCache(written[0]), batch_size=1040, seed=0), 2)
    for batch in (first, second):
        assert batch["structure"].shape == (1040, 21) and batch["alias"].shape == (1040, 5)
        assert set(np.bincount(batch["label"], minlength=40)) == {26}
        np.testing.assert_array_equal(batch["structure"], written[1]["structure"][batch["label"]])
    assert first["label"].tolist() != second["label"].tolist()


def test_other_batches_go_on_with_the_examples_that_come_next(written):
    """Across the border of two epochs, which are 1040 examples each."""
    def rows(batches):
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches)

    cache = token_cache.TokenCache(written[0])
    whole = rows(take(token_cache.batches(cache, batch_size=1060, seed=3), 1))
    resumed = rows(itertools.islice(token_cache.batches(cache, batch_size=6, seed=3).starting_at(1028), 5))
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a[1028:1058], b), whole, resumed))


def test_processes_share_an_epoch_without_overlap_or_loss(written, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    shares = []
    for index in range(2):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        batches = token_cache.batches(token_cache.TokenCache(written[0]), batch_size=20, seed=0)
        shares.append(np.concatenate([batch["label"] for batch in take(batches, 52)]))
        assert len(shares[-1]) == 520
    assert set(np.bincount(np.concatenate(shares))) == {26}
    with pytest.raises(ValueError, match="batch_size 3 must be a positive multiple of the process count, 2"):
        token_cache.batches(token_cache.TokenCache(written[0]), batch_size=3, seed=0)


def test_a_sample_is_bounded_and_spread(written):
    cache = token_cache.TokenCache(written[0])
    sample = cache.sample(10)
    assert sample.label.tolist() == list(range(0, 40, 4))
    np.testing.assert_array_equal(sample.structure, written[1]["structure"][::4])
    assert len(cache.sample(39)) == 20 and len(cache.sample(40)) == len(cache.sample(10**6)) == 40


def test_what_is_not_complete_is_no_cache(tmp_path):
    with pytest.raises(FileNotFoundError, match="where there is no token_cache.json; make the tokens"):
        token_cache.TokenCache(tmp_path / "nowhere")
    token_cache.begin(tmp_path, DESCRIPTION)
    with pytest.raises(FileNotFoundError, match="only the beginning of a cache"):
        token_cache.TokenCache(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "cut", "changed", "of another cache"])
def test_damaged_shards_are_named(tmp_path, damage):
    records = write(tmp_path)
    path = tmp_path / "tokens-00002-of-00004.array_record"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:len(content) // 2])
    elif damage == "changed":
        # The bytes of a token of example 30 (compressed records are stored as they are where that is shorter).
        path.write_bytes(content.replace(records["structure"][30].tobytes()[:8], b"\0" * 8))
    else:
        token_cache.write_shard(path, records[:5])
    with pytest.raises(ValueError, match=f"{path.name} is missing or damaged (.*); remove it and make it again"):
        cache = token_cache.TokenCache(tmp_path)
        for index in range(40):
            assert cache[index]["label"] == index


def test_damaged_and_foreign_descriptions_are_named(tmp_path):
    write(tmp_path)
    path = tmp_path / "token_cache.json"
    content = path.read_text()
    path.write_text(content.replace('"format_version": 2', '"format_version": 1'))
    with pytest.raises(ValueError, match="has format 1, and this program reads 2; make the tokens again"):
        token_cache.TokenCache(tmp_path)
    for damaged in (content[:100], content.replace("seed", "sead"), "[]"):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="token_cache.json is damaged .*make the tokens again"):
            token_cache.TokenCache(tmp_path)


def test_differences_are_those_of_what_a_run_needs():
    """A cache may be longer, have other crops and hold more than is read; everything else must be the same."""
    plain = dataclasses.replace(DESCRIPTION, examples=5, seed=7, batch_size=8, vocab_sizes={"structure": 65536},
                                tokenizers={"structure": "ab"})
    assert token_cache.differences(DESCRIPTION, plain) == []
    assert token_cache.differences(plain, DESCRIPTION) == [
        "tokenizers.alias is absent there and 'cd' here", "vocab_sizes.alias is absent there and 16 here"]
    other = dataclasses.replace(DESCRIPTION, images=17, fingerprint="gh", class_names=("a", "b"),
                                settings={"image_size": 16, "focus": {"psf": "none"}})
    assert token_cache.differences(DESCRIPTION, other) == [
        "class_names is ['even', 'odd'] there and ['a', 'b'] here",
        "fingerprint of data.source is 'ef' there and 'gh' here", "focus.psf is 'disk' there and 'none' here",
        "image_size is 8 there and 16 here", "images is 16 there and 17 here"]


def test_a_folder_of_other_tokens_is_not_written_into(tmp_path):
    for finish in (lambda: None, lambda: token_cache.finish(tmp_path)):
        token_cache.begin(tmp_path, DESCRIPTION)
        finish()
        with pytest.raises(ValueError, match="holds other tokens: seed is 1 there and 2 here. Give the settings"):
            token_cache.begin(tmp_path, dataclasses.replace(DESCRIPTION, seed=2))


@pytest.mark.parametrize(("stream", "setting"), [("structure", "tokenizer.model"), ("alias", "tokenizer.alias")])
def test_a_vocabulary_beyond_16_bits_is_refused(stream, setting):
    with pytest.raises(ValueError, match=f"{setting}.vocab_size is 65537.*give at most 65536"):
        dataclasses.replace(DESCRIPTION, vocab_sizes={**DESCRIPTION.vocab_sizes, stream: 65537})
