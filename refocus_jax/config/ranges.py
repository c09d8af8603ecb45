"""Ranges of settings: each has a test for a value, and words that tell a user what to give."""

import difflib
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from refocus_jax.evaluation.image_sets import MIN_IMAGES
from refocus_jax.models import autoencoder, transformer
from refocus_jax.runtime import bucket, weight_files


class Range(NamedTuple):
    """A range of values.

    Attributes:
      fits: Whether a value is in the range.
      says: How an error message describes the range after "give".
    """

    fits: Callable[[Any], bool]
    says: str


def number(fits: Callable[[Any], bool], says: str) -> Range:
    """Makes a range of finite numbers; NaN and booleans do not fit."""
    return Range(lambda v: isinstance(v, numbers.Real) and not isinstance(v, bool) and math.isfinite(v) and fits(v),
                 says)


def integer(fits: Callable[[Any], bool], says: str) -> Range:
    """Makes a range of integers; booleans do not fit."""
    return Range(lambda v: isinstance(v, numbers.Integral) and not isinstance(v, bool) and fits(v),
                 f"{says} (an integer)")


def tuple_of(element: Range, says: str, min_length: int = 0) -> Range:
    """Makes a range of tuples and lists of a minimum length whose elements all fit."""
    return Range(lambda v: isinstance(v, list | tuple) and len(v) >= min_length and all(map(element.fits, v)), says)


def one_of(names: Iterable[str]) -> Range:
    """Makes a range of a few names."""
    return Range(lambda v: isinstance(v, str) and v in names, f"one of {', '.join(names)}")


POSITIVE = integer(lambda v: v >= 1, "1 or more")
COUNT = integer(lambda v: v >= 0, "0 or more")
NOT_NEGATIVE = number(lambda v: v >= 0, "0 or more, and finite")
GREATER_THAN_ZERO = number(lambda v: v > 0, "more than 0, and finite")
FRACTION = number(lambda v: 0 <= v <= 1, "0 to 1")
BELOW_ONE = number(lambda v: 0 <= v < 1, "0 or more and less than 1")
COMPARABLE = integer(lambda v: v >= MIN_IMAGES, f"{MIN_IMAGES} or more")
COMPARABLE_OR_OFF = integer(lambda v: v == 0 or v >= MIN_IMAGES, f"0 (off), or {MIN_IMAGES} or more")
SEED = integer(lambda v: 0 <= v < 2**32, "0 to 2^32 - 1")
CHECKPOINT = integer(lambda v: v >= -1, "0 or more, or -1 for the latest")
PORT = integer(lambda v: 1 <= v < 2**16, "1 to 65535")
MESH_AXIS = integer(lambda v: v == -1 or v >= 1, "1 or more, or -1 (the rest) for one axis")
SWITCH = Range(lambda v: isinstance(v, bool), "True or False")
DTYPE = one_of(("float32", "bfloat16"))
# A choice among names that the dataclass or module using the setting checks.
NAME = Range(lambda v: isinstance(v, str), "a name")
# A file or folder, "" or a name, perhaps after a prefix as in npz:PATH. `~` is expanded in all of these settings.
# Those that are a `PLACE` or a `SOURCE` may also be in a bucket.
PATH = Range(lambda v: isinstance(v, str) and not bucket.is_url(v), "a path as text (a bucket must be mounted)")
PLACE = Range(lambda v: isinstance(v, str) and (not bucket.is_url(v) or (
                  bucket.is_address(v) and not weight_files.is_weight_file(v))),
              "a path as text, or gs://BUCKET/FOLDER (other buckets must be mounted)")
SOURCE = Range(lambda v: isinstance(v, str) and (not bucket.is_url(v) or (
                   v.startswith("array_record:") and bucket.is_address(v.removeprefix("array_record:")))),
               "photos, npz:PATH, folder:PATH, array_record:PATH, array_record:gs://BUCKET/FOLDER or tfds:NAME "
               "(convert other images of a bucket once, by --mode=convert, or mount it)")
PATHS = tuple_of(PATH, "a tuple of paths, ('runs/a', 'runs/b') (a bucket must be mounted)")
SIDE = integer(lambda v: v >= 1, "1 or more: the side in pixels, as all images are square")
STEPS = Range(lambda v: isinstance(v, list | tuple) and (not v or (len(v) == 2 and all(map(POSITIVE.fits, v))
                                                         and v[0] <= v[1])),
              "(first, last), two steps of 1 or more in this order, such as (10, 20), or () for none")
GRIDS = tuple_of(POSITIVE, "sides of the token maps, increasing integers of 1 or more, such as (1, 2, 4, 8)", 2)
MULTIPLIERS = tuple_of(POSITIVE, "a tuple of integers of 1 or more, such as (1, 1, 2, 2)", 1)
CLASS_COUNT = Range(lambda v: v is None or POSITIVE.fits(v), "None, or 1 or more")
CLASSES = Range(lambda v: isinstance(v, list | tuple) and all(COUNT.fits(e) or NAME.fits(e) for e in v),
                "a tuple of class numbers or names, such as (0, 'cat')")
RESIZE_RATIO = number(lambda v: v == 0 or v >= 1, "0 (native resolution), or 1 or more")
SIXTEEN_BIT_MAX = integer(lambda v: v == 0 or 255 <= v < 2**16, "0 (derived from the images), or 255 to 65535")
GUIDANCE = number(lambda v: v >= 0, "a finite number, 0 (unguided) or more")
SHARE = number(lambda v: 0 < v <= 1, "more than 0, and at most 1")
TOKENIZER_REMAT = one_of(autoencoder.REMAT)
GENERATOR_REMAT = one_of(transformer.REMAT)
PROGRAMS = tuple_of(NAME, "a tuple of programs, such as ('tokenizer', 'generator')", 1)
PARTS = Range(
    lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(part in ("tokenizer", "generator") for part in v),
    "('tokenizer', 'generator') or one of them")


def is_path(limits: Range) -> bool:
    """Whether a setting of this range names a file or folder, or several."""
    return limits in (PATH, PATHS, PLACE, SOURCE)


def nearest(name: str, names: Iterable[str]) -> str:
    """Suggests the most similar of `names` for a misspelled one, in words; "" if there are no names."""
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return f" (the nearest is {found[0]})" if found else ""
