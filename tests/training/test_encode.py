"""Encoding into a token cache: what it holds, who writes which shard, and what is refused."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.config import build, stages
from refocus_jax.data import pipeline, token_cache
from refocus_jax.data.crops import CropRule
from refocus_jax.data.records import ArraySource
from refocus_jax.models.randomness import seed_of
from refocus_jax.runtime import bucket, processes
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.digests import digests
from refocus_jax.training import encode
from tests.fixtures import bucket as emulator

pytestmark = emulator.WARNINGS


@pytest.fixture(scope="module")
def params(micro):
    """Parameters of random tokenizers; drawn by numpy, which is faster than compiling an initializer."""
    rng, init = np.random.default_rng(0), build.tokenizer_task(micro()).init
    shapes = jax.eval_shape(init, jax.random.key(0)).params
    return jax.tree.map(lambda a: jnp.asarray(rng.uniform(0, 1, a.shape), a.dtype), shapes)


@pytest.fixture(scope="module")
def source(images):
    return ArraySource(images[:15].repeat(2, axis=2), np.arange(15) % 3, ("a", "b", "c"))


@pytest.fixture(scope="module")
def write(micro, params, source):
    """write(directory): two passes over 15 images, in shards of 12; keywords are those of `encode.write`."""
    c = micro()
    c.encode.passes = 2
    description = stages.token_description(c, source, digests(params))

    def run(directory, **keywords):
        return encode.write(directory, description, source, build.crop_rule(c), build.tokenizer(c), params, **keywords)

    return run


@pytest.fixture(scope="module")
def written(write, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokens")
    write(directory)
    return directory


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_cache_holds_the_tokens_of_every_pass(written, micro, params, source):
    c, cache = micro(), token_cache.TokenCache(written)
    assert len(cache) == 30 and len(list(written.glob("*.array_record"))) == 3
    crops = pipeline.passes(source, CropRule(image_size=8), seed=seed_of(c.seed, "encode"))
    encoder = encode.encoder(build.tokenizer(c), mesh_lib.make_mesh())
    for start in (0, 4, 24):  # one of these blocks ends in the middle of a pass
        rows = [crops[i] for i in range(start, start + 4)]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        tokens = encoder(params, batch)
        for row in range(4):
            for name, value in cache[start + row].items():
                np.testing.assert_array_equal(value, getattr(tokens, name)[row])
        assert tokens.label.tolist() == [row["label"] for row in rows]


def test_the_number_of_devices_changes_no_byte(written, write, tmp_path):
    """The other tests run on two devices."""
    assert len(jax.local_devices()) == 2
    write(tmp_path, mesh=mesh_lib.make_mesh(jax.local_devices()[:1]))
    assert contents(tmp_path) == contents(written)


def test_processes_write_a_part_each_and_the_first_declares_it_complete(written, write, tmp_path, monkeypatch):
    class Waits(Exception):
        pass

    def barrier(name):
        raise Waits

    monkeypatch.setattr(processes, "barrier", barrier)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index, shards in ((1, ["tokens-00001-of-00003.array_record"]), (0, sorted(contents(written))[1:])):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        with pytest.raises(Waits):
            write(tmp_path)
        assert sorted(path.name for path in tmp_path.glob("*.array_record")) == shards
        assert not (tmp_path / "token_cache.json").exists()
    monkeypatch.setattr(processes, "barrier", lambda name: None)
    write(tmp_path)
    assert contents(tmp_path) == contents(written)


def test_in_a_bucket_processes_write_a_part_each_and_read_all(written, write, url, monkeypatch):
    """Into a folder of a workdir, as for `data.token_examples`; the processes have no files in common."""
    index, found, sent, send = 1, {}, [], bucket.send

    def run():
        found[index] = write(Path(bucket.stage(url, only_reads=False), "tokens"))

    def barrier(name):
        nonlocal index
        assert url in name  # the same in all processes, whatever their own folders are
        if index == 0 and name.startswith("shards"):
            assert "tokens/token_cache.partial.json" in emulator.names(url)
        if index == 1 and not found:  # process 0 does its part while process 1 waits
            assert emulator.names(url) == {"tokens/tokens-00001-of-00003.array_record"}
            index = 0
            run()
            index = 1

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(processes, "barrier", barrier)
    monkeypatch.setattr(bucket, "send", lambda path: (sent.append(path.name), send(path)))
    run()
    index = 0
    monkeypatch.setattr(processes, "barrier", lambda name: None)
    run()  # now there is nothing to do
    assert emulator.names(url) == {f"tokens/{name}" for name in contents(written)}
    assert sorted(sent) == sorted(name for name in contents(written) if name.endswith(".array_record"))
    expected = token_cache.TokenCache(written)
    for cache in found.values():
        for example in (0, 11, 12, 29):
            jax.tree.map(np.testing.assert_array_equal, cache[example], expected[example])


def test_an_interrupted_cache_goes_on_with_the_missing_shards(written, write, tmp_path, monkeypatch):
    class Interrupt(Exception):
        pass

    def write_one(path, records):
        if "00001" in path.name:
            path.with_name(f".{path.name}.tmp").write_bytes(b"half a shard")
            raise Interrupt
        whole(path, records)

    whole = token_cache.write_shard
    monkeypatch.setattr(token_cache, "write_shard", write_one)
    with pytest.raises(Interrupt):
        write(tmp_path)
    monkeypatch.setattr(token_cache, "write_shard", whole)
    first = tmp_path / "tokens-00000-of-00003.array_record"
    made = first.stat().st_mtime_ns
    write(tmp_path)
    assert contents(tmp_path) == contents(written) and first.stat().st_mtime_ns == made
    first.unlink()  # as an error advises
    write(tmp_path)
    assert contents(tmp_path) == contents(written)


def test_a_cache_of_other_tokenizers_or_settings_is_refused(written, micro, params, source):
    def check(argument=None, tokenizers=None, source=source, **changes):
        c = micro(argument)
        c.update_from_flattened_dict(changes)
        tokenizers = digests(params) if tokenizers is None else tokenizers
        encode.check(str(written), stages.token_description(c, source, tokenizers))

    pixels = np.array(source.images)
    pixels[3, 0, 0, 0] ^= 1
    changed = dataclasses.replace(source, images=pixels)
    check()
    check(**{"data.source": "npz:moved"})
    check(seed=5, **{"encode.shard_size": 7, "encode.passes": 9, "data.num_workers": 3})
    check("noteacher", {"structure": digests(params)["structure"]})  # a run that reads no alias tokens
    for changes, said in (
            ({"data.flip": True}, "data.flip is False there and True here"),
            ({"focus.psf": "gaussian"}, "focus.psf is 'disk' there and 'gaussian' here"),
            ({"tokenizer.model.dtype": "bfloat16"}, "tokenizer.model.dtype is 'float32' there and 'bfloat16' here"),
            ({"tokenizer.alias.vocab_size": 8}, "tokenizer.alias.vocab_size is 16 there and 8 here; "
                                                "vocab_sizes.alias is 16 there"),
            ({"source": changed}, "fingerprint of data.source is '.*' there and '.*' here"),
            ({"tokenizers": {"structure": "other"}}, "tokenizers.structure is '.*' there and 'other' here")):
        with pytest.raises(ValueError, match=f"data.tokens is {re.escape(str(written))}.*: {said}.*Encode again"):
            check(**changes)
