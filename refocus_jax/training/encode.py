"""Encodes images as tokens with frozen tokenizers, for `--mode=encode`, `data.token_examples` and evaluation.

Every process encodes its share of the files (shards) on its own devices, a block of `encode.batch_size` crops per
device. So the bytes do not depend on the number of processes or devices. After an interruption, only the missing
shards are encoded.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.data import pipeline, token_cache
from refocus_jax.data.crops import CropRule
from refocus_jax.data.records import Source
from refocus_jax.data.token_cache import Description, TokenCache, TokenSet
from refocus_jax.models.randomness import seed_of
from refocus_jax.models.tokenizer import DualTokenizer, flatten_tokens, to_unit_range
from refocus_jax.runtime import bucket, processes
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.runtime.progress import Progress


def encoder(tokenizer: DualTokenizer, mesh: Any):
    """Makes a jitted function that encodes a batch.

    Args:
      tokenizer: The tokenizers.
      mesh: The mesh of devices that share a batch.

    Returns:
      (parameters, batch of `image` (b, s, s, 3) uint8 and `label` (b,)) -> `TokenSet`, replicated on every device.
    """
    def encode(params, batch):
        structure, alias = tokenizer.encode(params, to_unit_range(batch["image"]))
        empty = jnp.zeros((batch["image"].shape[0], 0), jnp.int32)
        return TokenSet(flatten_tokens(structure), flatten_tokens(alias) if alias else empty, batch["label"])

    return jax.jit(mesh_lib.on_mesh(mesh, encode), out_shardings=mesh_lib.replicated(mesh))


def encode_batches(tokenizer: DualTokenizer, params: Any, batches: Iterable, mesh: Any) -> TokenSet:
    """Encodes all images of finitely many batches, in memory; every process gets all tokens."""
    encode = encoder(tokenizer, mesh)
    parts = mesh_lib.fetched(encode(params, mesh_lib.put_batch(mesh, batch)) for batch in batches)
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def check(directory: str, expected: Description) -> None:
    """Raises a ValueError if a run that expects such tokens may not train on the cache in a directory."""
    if differing := token_cache.differences(token_cache.describe(directory), expected):
        raise ValueError(f"data.tokens is {directory}, which was made from other images, by other tokenizers or with "
                         f"other settings: {'; '.join(differing)}. Encode again (--mode=encode), or give the "
                         "data.source, tokenizer.pretrained and settings that made it")


def write(directory: str | Path, description: Description, source: Source, rule: CropRule, tokenizer: DualTokenizer,
          params: Any, *, num_workers: int = 0, mesh: Any = None) -> TokenCache:
    """Writes the missing shards of a token cache; all processes must call it.

    Args:
      directory: The directory of the cache.
      description: What the cache holds.
      source: The training images.
      rule: How images become crops.
      tokenizer: The tokenizers.
      params: Their parameters, replicated on every device or on the host.
      num_workers: The number of processes that cut crops.
      mesh: A mesh of this process's devices; default all of them.

    Returns:
      The complete cache.

    Raises:
      ValueError: The directory holds other tokens.
    """
    mesh = mesh_lib.make_mesh(jax.local_devices()) if mesh is None else mesh
    token_cache.begin(directory, description)
    mine = range(description.num_shards)[jax.process_index()::jax.process_count()]
    paths = {shard: token_cache.shard_path(directory, description, shard) for shard in mine}
    written = bucket.sizes(Path(directory))
    missing = [shard for shard, path in paths.items() if path.name not in written]
    ranges = [indices[i:i + description.batch_size] for shard in missing
              for indices in [description.examples_of(shard)] for i in range(0, len(indices), description.batch_size)]
    if ranges:
        crops = pipeline.passes(source, rule, seed=seed_of(description.seed, "encode"))
        batches = pipeline.blocks(crops, ranges, size=description.batch_size, per_batch=mesh.size,
                                  num_workers=num_workers)
        blocks = _encoded(tokenizer, params, batches, description.record, mesh)
        with Progress(len(ranges), 0, "encode") as progress:
            parts = []
            for done, (indices, records) in enumerate(zip(ranges, blocks, strict=False), start=1):
                parts.append(records[:len(indices)])
                shard = indices[0] // description.shard_size
                if indices[-1] == description.examples_of(shard)[-1]:
                    token_cache.write_shard(paths[shard], np.concatenate(parts))
                    parts = []
                progress.update(done, {})
    processes.barrier(f"shards of {bucket.address(directory)}")
    if jax.process_index() == 0:
        token_cache.finish(directory)
    processes.barrier(f"all of {bucket.address(directory)}")
    bucket.refresh(Path(directory))
    return TokenCache(directory)


def _encoded(tokenizer: DualTokenizer, params: Any, batches: Iterable, record: np.dtype, mesh) -> Iterator[np.ndarray]:
    """Yields the records (size,) of one block after the other, fetched while the devices encode the next batch."""
    encode, params = encoder(tokenizer, mesh), mesh_lib.put_whole(params, mesh_lib.replicated(mesh))

    def tokens() -> Iterator[TokenSet]:
        for batch in batches:
            flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in batch.items()}
            yield encode(params, mesh_lib.put_batch(mesh, flat))

    assert record.names is not None
    for found in mesh_lib.fetched(tokens()):
        records = np.zeros(len(found), record)
        for name in record.names:
            records[name] = getattr(found, name)
        yield from records.reshape(mesh.size, -1)
