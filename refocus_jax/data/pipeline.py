"""Batches of square crops, and of other shuffled examples such as tokens, made with grain.

A stream of examples has one order, and a batch can start at any example of it. Every process of a multi-process run
builds the same stream and takes its part of each batch. So the next examples depend neither on the number of processes
or workers nor on the size of earlier batches.
"""

import dataclasses
import functools
import math
import signal
from collections.abc import Sequence

import grain
import jax
import numpy as np
from absl import flags

from refocus_jax.data.crops import CropRule
from refocus_jax.data.records import Source

# Each thread prepares whole batches, in order; more threads would only hold more batches in memory.
READ_OPTIONS = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)
# For small examples in a bucket, which sends them one by one: the threads only wait.
WAITING = grain.ReadOptions(num_threads=64, prefetch_buffer_size=64)

# grain's shuffle takes milliseconds per example for a handful of examples, but microseconds from a thousand on. So a
# smaller source is repeated to this length before it is shuffled.
_SHUFFLED_LENGTH = 1024

# Seed of a fixed order: with it, a prefix of data sorted by class still covers the classes.
_VALIDATION_SEED = 0


@dataclasses.dataclass(frozen=True)
class Batches:
    """A stream of examples in global batches, of which each process yields its own part.

    Attributes:
      examples: The examples, by random access; a remainder that does not fill a batch is left out.
      batch_size: Number of examples in a global batch.
      num_workers: Number of worker processes that prepare batches; 0 uses threads of this process.
      options: The threads of a process; None takes `READ_OPTIONS`.

    Raises:
      ValueError: If the processes cannot share a `batch_size` evenly.
    """

    examples: grain.MapDataset
    batch_size: int
    num_workers: int = 0
    options: grain.ReadOptions | None = None

    def __post_init__(self):
        if self.batch_size < 1 or self.batch_size % jax.process_count():
            raise ValueError(f"batch_size {self.batch_size} must be a positive multiple of the process count, "
                             f"{jax.process_count()}")

    def __iter__(self) -> grain.DatasetIterator:
        return self.starting_at(0)

    def starting_at(self, example: int) -> grain.DatasetIterator:
        """Return an iterator over the batches that starts at an example; its `close()` ends the workers."""
        share = _Share(self.examples, self.batch_size, example)
        return iter(_read_ahead(share.batch(self.batch_size // jax.process_count(), drop_remainder=True),
                                self.num_workers, self.options))


def _read_ahead(batches: grain.MapDataset, num_workers: int,
                read_options: grain.ReadOptions | None = None) -> grain.IterDataset:
    if num_workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers read flags, which are not parsed outside of absl.app
    options = grain.MultiprocessingOptions(num_workers=num_workers)
    return batches.to_iter_dataset(read_options or READ_OPTIONS).mp_prefetch(options, worker_init_fn=_ignore_ctrl_c)


def _ignore_ctrl_c(number: int, count: int) -> None:
    """Leaves Ctrl-C, which a terminal sends to all processes, to the run: it saves and then ends its workers."""
    del number, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def training_batches(source: Source, rule: CropRule, *, batch_size: int, seed: int, num_workers: int = 0) -> Batches:
    """Make endless batches of random crops; every epoch is shuffled and cropped again.

    An epoch is one pass over the source, or, for smaller sources, as many passes as are needed for 1024 examples.

    Args:
      source: The images; may be fewer than a batch, but not empty.
      rule: How the images become crops of side s.
      batch_size: Size of the global batch; each process yields its share b of it.
      seed: Seed of the order and the crops, in [0, 2**32).
      num_workers: Number of worker processes, see `Batches`.

    Returns:
      Batches `{"image": uint8 (b, s, s, 3), "label": int32 (b,)}`.

    Raises:
      ValueError: If the processes cannot share a `batch_size` evenly.
    """
    return Batches(shuffled(source, seed).random_map(rule.random), batch_size, num_workers)


def validation_batches(source: Source, rule: CropRule, *, batch_size: int, limit: int | None = None) -> Batches:
    """Make a finite sequence of batches that is always the same and has each example once.

    All images give their first crop (the centre) before any gives its second one, in a fixed shuffled order, so that a
    prefix covers images and classes evenly. The number of examples (`len(source) * rule.crops_per_image` or `limit`) is
    cut to a multiple of `batch_size`: all batches have the same shape, and statistics count no example twice.

    Args:
      source: The images.
      rule: How the images become crops of side s.
      batch_size: Size of the global batch; each process yields its share b of it.
      limit: Maximum number of examples; None takes all.

    Returns:
      Batches `{"image": uint8 (b, s, s, 3), "label": int32 (b,)}`.

    Raises:
      ValueError: If the processes cannot share a `batch_size` evenly, or if there are fewer examples than one batch.
    """
    examples = spread_crops(source, rule)
    wanted = len(examples) if limit is None else min(limit, len(examples))
    if wanted < batch_size:
        raise ValueError(
            f"{wanted} validation examples ({len(source)} images x {rule.crops_per_image} crops, limit {limit}) "
            f"do not fill one batch of {batch_size}; lower batch_size, or raise crops_per_image or limit"
        )
    return Batches(examples[:wanted], batch_size)


def spread_crops(source: Source, rule: CropRule) -> grain.MapDataset:
    """Make the crops of `validation_batches` by random access: `{"image": uint8 (s, s, 3), "label": int32}` each."""
    images = grain.MapDataset.source(source).shuffle(seed=_VALIDATION_SEED)
    crop = functools.partial(rule.spread, len(source))
    return images.repeat(rule.crops_per_image, reseed_each_epoch=False).map_with_index(crop)


def passes(source: Source, rule: CropRule, *, seed: int) -> grain.MapDataset:
    """Make random crops by random access: examples [p n, (p + 1) n) are pass p over the n images, each of them once.

    All passes have the same shuffled order, so that a prefix covers the classes; every pass crops the images again.

    Args:
      source: The images; not empty.
      rule: How the images become crops of side s.
      seed: Seed of the order and the crops, in [0, 2**32).

    Returns:
      Endless examples `{"image": uint8 (s, s, 3), "label": int32}`.
    """
    order = np.random.default_rng(seed).permutation(len(source)).tolist()
    return grain.MapDataset.source(order).seed(seed).repeat().map(source.__getitem__).random_map(rule.random)


def blocks(
    examples: grain.MapDataset, ranges: Sequence[range], *, size: int, per_batch: int, num_workers: int = 0
) -> grain.IterDataset:
    """Make blocks of one size from ranges of examples of any length up to it.

    Args:
      examples: The examples of `passes`.
      ranges: The ranges, each with 1 to `size` indices.
      size: Number of examples in a block.
      per_batch: Number of blocks in a batch.
      num_workers: Number of worker processes, see `Batches`.

    Returns:
      Batches `{"image": uint8 (per_batch, size, s, s, 3), "label": int32 (per_batch, size)}`. The last example of a
      range is repeated to the end of its block, and the last block to the end of the last batch.
    """
    ranges = [*ranges, *list(ranges[-1:]) * (-len(ranges) % per_batch)]
    one = functools.partial(_block, examples, size)
    return _read_ahead(grain.MapDataset.source(ranges).map(one).batch(per_batch), num_workers)


def _block(examples: grain.MapDataset, size: int, indices: range) -> dict[str, np.ndarray]:
    rows = [examples[index] for index in indices]
    rows += rows[-1:] * (size - len(rows))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def shuffled(source: Sequence | grain.sources.RandomAccessDataSource, seed: int) -> grain.MapDataset:
    """Make endless epochs of a source, each shuffled again; an epoch has whole passes and at least 1024 elements."""
    epoch = grain.MapDataset.source(source).repeat(math.ceil(_SHUFFLED_LENGTH / len(source)))
    return epoch.seed(seed).shuffle().repeat()


class _Share(grain.MapDataset):
    """The examples of this process in a stream of global batches: one contiguous part of each batch."""

    def __init__(self, examples: grain.MapDataset, batch_size: int, first: int):
        """Start the first batch at the example `first`."""
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
