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
from PIL import Image

from refocus_jax.data.sources import Record, Source

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


def training_batches(
    source: Source,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    resize_ratio: float,
    flip: bool,
    num_workers: int = 0,
) -> Batches:
    """Endless batches of random crops; every epoch is shuffled and cropped anew.

    An epoch is one pass over the source, or as many passes as make 1024 examples where it is smaller.

    Args:
      source: may be smaller than a batch, not empty.
      image_size: side s of the square crops in pixels.
      batch_size: of the global batch; each process yields its share b of it.
      seed: in [0, 2**32).
      resize_ratio: the short side is first resized to `round(resize_ratio * image_size)`; 0 crops at native
        resolution, enlarging only what is smaller than the crop.
      flip: mirror half of the crops.
      num_workers: as of `Batches`.

    Returns:
      Batches `{"image": uint8 (b, s, s, 3), "label": int32 (b,)}`.

    Raises:
      ValueError: for sizes or ratios out of range, or a `batch_size` the processes cannot share.
    """
    _check_arguments(image_size, resize_ratio)
    crop = functools.partial(_random_crop, image_size=image_size, resize_ratio=resize_ratio, flip=flip)
    examples = shuffled(source, seed).random_map(crop)
    return Batches(examples, batch_size, num_workers)


def validation_batches(
    source: Source,
    *,
    image_size: int,
    batch_size: int,
    resize_ratio: float,
    crops_per_image: int = 1,
    limit: int | None = None,
) -> Batches:
    """A finite, always identical sequence of batches, each example in it once.

    All images give their first crop (the centre) before any gives its second, in a fixed shuffled order: a
    prefix covers images and classes evenly. The number of examples (`len(source) * crops_per_image` or
    `limit`) is cut to a multiple of `batch_size`: batches have one shape, and statistics count nothing twice.

    Args:
      crops_per_image: crops of each image, spread evenly over it.
      limit: at most this many examples.
      source, image_size, batch_size, resize_ratio: as for `training_batches`.

    Returns:
      Batches `{"image": uint8 (b, s, s, 3), "label": int32 (b,)}`.

    Raises:
      ValueError: as `training_batches`, and where there are fewer examples than one batch.
    """
    examples = spread_crops(source, image_size=image_size, resize_ratio=resize_ratio, crops_per_image=crops_per_image)
    wanted = len(examples) if limit is None else min(limit, len(examples))
    if wanted < batch_size:
        raise ValueError(
            f"{wanted} validation examples ({len(source)} images x {crops_per_image} crops, limit {limit}) "
            f"do not fill one batch of {batch_size}: lower batch_size, or raise crops_per_image or limit"
        )
    return Batches(examples[:wanted], batch_size)


def spread_crops(
    source: Source, *, image_size: int, resize_ratio: float, crops_per_image: int
) -> grain.MapDataset:
    """The crops of `validation_batches` by random access: `{"image": uint8 (s, s, 3), "label": int32}` each."""
    _check_arguments(image_size, resize_ratio)
    if crops_per_image < 1:
        raise ValueError(f"crops_per_image must be at least 1, got {crops_per_image}")
    crop = functools.partial(
        _spread_crop, image_count=len(source), image_size=image_size, resize_ratio=resize_ratio
    )
    images = grain.MapDataset.source(source).shuffle(seed=_VALIDATION_SEED)
    return images.repeat(crops_per_image, reseed_each_epoch=False).map_with_index(crop)


def passes(
    source: Source, *, image_size: int, seed: int, resize_ratio: float, flip: bool
) -> grain.MapDataset:
    """Random crops by random access: examples [p n, (p + 1) n) are pass p over the n images, each of them once.

    The images come in one shuffled order, so that a prefix covers the classes; every pass cuts them anew.

    Args:
      source, image_size, seed, resize_ratio, flip: as for `training_batches`.

    Returns:
      Endless examples `{"image": uint8 (s, s, 3), "label": int32}`.

    Raises:
      ValueError: for sizes or ratios out of range.
    """
    _check_arguments(image_size, resize_ratio)
    crop = functools.partial(_random_crop, image_size=image_size, resize_ratio=resize_ratio, flip=flip)
    order = np.random.default_rng(seed).permutation(len(source)).tolist()
    return grain.MapDataset.source(order).seed(seed).repeat().map(source.__getitem__).random_map(crop)


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
    """Endless epochs of a source, each shuffled anew; an epoch has whole passes and at least 1024 elements."""
    epoch = grain.MapDataset.source(source).repeat(math.ceil(_SHUFFLED_LENGTH / len(source)))
    return epoch.seed(seed).shuffle().repeat()


def _check_arguments(image_size: int, resize_ratio: float) -> None:
    if image_size < 1:
        raise ValueError(f"image_size must be positive, got {image_size}")
    if resize_ratio != 0 and resize_ratio < 1:
        raise ValueError(
            f"resize_ratio must be 0 (crop at native resolution) or at least 1, got {resize_ratio}: "
            "a smaller image could not hold the crop"
        )


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


def _random_crop(
    record: Record, rng: np.random.Generator, *, image_size: int, resize_ratio: float, flip: bool
) -> dict[str, np.ndarray]:
    image_hwc = _resize(record["image"], image_size, resize_ratio)
    top = rng.integers(image_hwc.shape[0] - image_size, endpoint=True)
    left = rng.integers(image_hwc.shape[1] - image_size, endpoint=True)
    crop_hwc = image_hwc[top : top + image_size, left : left + image_size]
    if flip and rng.random() < 0.5:
        crop_hwc = crop_hwc[:, ::-1]
    return {"image": crop_hwc, "label": np.int32(record["label"])}


def _spread_crop(
    index: int, record: Record, *, image_count: int, image_size: int, resize_ratio: float
) -> dict[str, np.ndarray]:
    crop_hwc = crop_at(record["image"], image_size, resize_ratio, *_spread_position(index // image_count))
    return {"image": crop_hwc, "label": np.int32(record["label"])}


def crop_at(
    image_hwc: np.ndarray, image_size: int, resize_ratio: float, vertical: float = 0.5, horizontal: float = 0.5
) -> np.ndarray:
    """The square crop at a position in [0, 1]^2 of the resized image; the default is its centre."""
    image_hwc = _resize(image_hwc, image_size, resize_ratio)
    top = round(vertical * (image_hwc.shape[0] - image_size))
    left = round(horizontal * (image_hwc.shape[1] - image_size))
    return image_hwc[top : top + image_size, left : left + image_size]


def _spread_position(crop_index: int) -> tuple[float, float]:
    """Position in the unit square of one crop of a sequence that starts at the centre and fills it evenly.

    Halton's sequence in bases 2 and 3, shifted: unlike a rectangular grid it is even for any number of crops
    and any aspect ratio.
    """
    return (0.5 + _radical_inverse(crop_index, 2)) % 1.0, (0.5 + _radical_inverse(crop_index, 3)) % 1.0


def _radical_inverse(number: int, base: int) -> float:
    """The digits of a number mirrored at the point: 6 = 110 in base 2 gives 0.011 = 3/8."""
    inverse, scale = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        scale /= base
        inverse += digit * scale
    return inverse


def _resize(image_hwc: np.ndarray, image_size: int, resize_ratio: float) -> np.ndarray:
    """Lanczos to the short side that the crop rule asks for; the long side is truncated to whole pixels."""
    height, width, _ = image_hwc.shape
    short = min(height, width)
    target = round(resize_ratio * image_size) if resize_ratio > 0 else max(short, image_size)
    if target == short:
        return image_hwc
    size = (width * target // short, height * target // short)
    return np.asarray(Image.fromarray(image_hwc).resize(size, Image.Resampling.LANCZOS))
