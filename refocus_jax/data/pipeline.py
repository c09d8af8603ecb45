"""Batches of square crops, cut from a source by grain; and of whatever else is shuffled, like tokens.

A stream of examples has one order, and any batch starts at any example of it. Every process of a multi-process run
builds the same stream and takes its part of each batch, so neither the number of processes or workers nor the size of
the batches before has any part in which examples come next.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import grain
import jax
import numpy as np
from absl import flags

from refocus_jax.data.crops import CropRule
from refocus_jax.data.sources import Source

# Whole batches are prepared by threads, in order; more would only hold more batches in memory.
READ_OPTIONS = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)

# grain's shuffle takes milliseconds per example for a handful of examples, microseconds from a thousand on:
# a smaller source is repeated to this length before it is shuffled.
_SHUFFLED_LENGTH = 1024

# A fixed order in which a prefix of class-sorted data still covers the classes.
_VALIDATION_SEED = 0


@dataclasses.dataclass(frozen=True)
class Batches:
    """A stream of examples in global batches, of which each process yields its own part.

    Attributes:
      examples: by random access; a rest that does not fill a batch is left out. batch_size: of the global batch.
      num_workers: processes that prepare batches; 0 uses threads of this one.

    Raises:
      ValueError: a `batch_size` the processes cannot share.
    """

    examples: grain.MapDataset
    batch_size: int
    num_workers: int = 0

    def __post_init__(self):
        if self.batch_size < 1 or self.batch_size % jax.process_count():
            raise ValueError(f"batch_size {self.batch_size} must be a positive multiple of the process count, "
                             f"{jax.process_count()}")

    def __iter__(self) -> grain.DatasetIterator:
        return self.starting_at(0)

    def starting_at(self, example: int) -> grain.DatasetIterator:
        """The batches of the examples from this one on; `close()` ends the workers."""
        share = _Share(self.examples, self.batch_size, example)
        return iter(_read_ahead(share.batch(self.batch_size // jax.process_count(), drop_remainder=True),
                                self.num_workers))


def _read_ahead(batches: grain.MapDataset, num_workers: int) -> grain.IterDataset:
    if num_workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers ask for flags, and outside of absl.app nobody has parsed any
    options = grain.MultiprocessingOptions(num_workers=num_workers)
    return batches.to_iter_dataset(READ_OPTIONS).mp_prefetch(options)


def training_batches(source: Source, rule: CropRule, *, batch_size: int, seed: int, num_workers: int = 0) -> Batches:
    """Endless batches of random crops; every epoch is shuffled and cropped again.

    An epoch is one pass over the source, or as many passes as make 1024 examples where it is smaller.

    Args:
      source: may be smaller than a batch, not empty.
      rule: how its images become crops of side s.
      batch_size: of the global batch; each process yields its share b of it.
      seed: in [0, 2**32).
      num_workers: as of `Batches`.

    Returns:
      Batches `{"image": uint8 (b, s, s, 3), "label": int32 (b,)}`.

    Raises:
      ValueError: a `batch_size` that the processes cannot share.
    """
    return Batches(shuffled(source, seed).random_map(rule.random), batch_size, num_workers)


def validation_batches(source: Source, rule: CropRule, *, batch_size: int, limit: int | None = None) -> Batches:
    """A finite, always identical sequence of batches, each example in it once.

    All images give their first crop (the centre) before any gives its second, in a fixed shuffled order: a
    prefix covers images and classes evenly. The number of examples (`len(source) * rule.crops_per_image` or
    `limit`) is cut to a multiple of `batch_size`: batches have one shape, and statistics count nothing twice.

    Args:
      source, rule, batch_size: as for `training_batches`.
      limit: at most this many examples.

    Returns:
      Batches `{"image": uint8 (b, s, s, 3), "label": int32 (b,)}`.

    Raises:
      ValueError: as `training_batches`, and where there are fewer examples than one batch.
    """
    examples = spread_crops(source, rule)
    wanted = len(examples) if limit is None else min(limit, len(examples))
    if wanted < batch_size:
        raise ValueError(
            f"{wanted} validation examples ({len(source)} images x {rule.crops_per_image} crops, limit {limit}) "
            f"do not fill one batch of {batch_size}: lower batch_size, or raise crops_per_image or limit"
        )
    return Batches(examples[:wanted], batch_size)


def spread_crops(source: Source, rule: CropRule) -> grain.MapDataset:
    """The crops of `validation_batches` by random access: `{"image": uint8 (s, s, 3), "label": int32}` each."""
    images = grain.MapDataset.source(source).shuffle(seed=_VALIDATION_SEED)
    crop = functools.partial(rule.spread, len(source))
    return images.repeat(rule.crops_per_image, reseed_each_epoch=False).map_with_index(crop)


def passes(source: Source, rule: CropRule, *, seed: int) -> grain.MapDataset:
    """Random crops by random access: examples [p n, (p + 1) n) are pass p over the n images, each of them once.

    The images come in one shuffled order, so that a prefix covers the classes; every pass cuts them again.

    Args:
      source, rule, seed: as for `training_batches`.

    Returns:
      Endless examples `{"image": uint8 (s, s, 3), "label": int32}`.
    """
    order = np.random.default_rng(seed).permutation(len(source)).tolist()
    return grain.MapDataset.source(order).seed(seed).repeat().map(source.__getitem__).random_map(rule.random)


def blocks(
    examples: grain.MapDataset, ranges: Sequence[range], *, size: int, per_batch: int, num_workers: int = 0
) -> grain.IterDataset:
    """Ranges of examples as blocks of one size, whatever the length of the ranges.

    Args:
      examples: of `passes`. ranges: each of 1 to `size` indices. per_batch: blocks in a batch.

    Returns:
      Batches `{"image": uint8 (per_batch, size, s, s, 3), "label": int32 (per_batch, size)}`. The last example of a
      range is repeated to the end of its block, and the last block to the end of the last batch.
    """
    ranges = [*ranges, *ranges[-1:] * (-len(ranges) % per_batch)]
    one = functools.partial(_block, examples, size)
    return _read_ahead(grain.MapDataset.source(ranges).map(one).batch(per_batch), num_workers)


def _block(examples: grain.MapDataset, size: int, indices: range) -> dict[str, np.ndarray]:
    rows = [examples[index] for index in indices]
    rows += rows[-1:] * (size - len(rows))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def shuffled(source: Sequence, seed: int) -> grain.MapDataset:
    """Endless epochs of a source, each shuffled again; an epoch has whole passes and at least 1024 elements."""
    epoch = grain.MapDataset.source(source).repeat(math.ceil(_SHUFFLED_LENGTH / len(source)))
    return epoch.seed(seed).shuffle().repeat()


class _Share(grain.MapDataset):
    """This process's examples of a stream that is dealt in global batches: of each, one part in a row."""

    def __init__(self, examples: grain.MapDataset, batch_size: int, first: int):
        """first: example of the first batch."""
        super().__init__(examples)
        self._batch_size, self._size, self._first = batch_size, batch_size // jax.process_count(), first
        self._start = first + jax.process_index() * self._size

    def __len__(self) -> int:
        return (len(self._parent) - self._first) // self._batch_size * self._size

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, self._size)
        return self._parent[batch * self._batch_size + self._start + place]
