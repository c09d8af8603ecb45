"""The token cache: token maps on disk, made once by the frozen tokenizers and read by every step of stage 2.

A cache is a folder of `tokens-00000-of-00002.array_record` ... and `token_cache.json`. The JSON file describes the
content and its origin (`Description`) and is written when all shards are there. A record is one example, little-endian
and without gaps: the label (uint32), the structure tokens (uint16, all scales, coarse to fine), then the alias tokens
(uint16, in the same order; none without a teacher). Example i shows image `order[i % images]` in pass `i // images`.
"""

import dataclasses
import hashlib
import json
import os
import reprlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grain
import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from flax.traverse_util import flatten_dict

from refocus_jax.data import pipeline
from refocus_jax.runtime import bucket
from refocus_jax.runtime.files import write_json

FORMAT_VERSION = 2
MAX_VOCAB_SIZE = 2**16
_COMPLETE, _PARTIAL = "token_cache.json", "token_cache.partial.json"

# The fields that a cache and a run that trains from it must share. The other fields say how many crops there are, and
# which.
_SHARED = ("images", "fingerprint", "class_names", "grid_sizes", "vocab_sizes", "settings", "tokenizers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """The content of a cache and its origin.

    Attributes:
      examples: Number n of examples.
      images: Number of images in the source.
      passes: Number of passes over the source; the last one may be incomplete.
      seed: The seed of the config.
      shard_size: Number of examples in every shard but the last.
      batch_size: Number of examples that a device encoded at a time.
      grid_sizes: Grid sizes of the structure tokens; alias tokens have all but the last.
      vocab_sizes: Vocabulary sizes of "structure" and, with a teacher, "alias".
      class_names: Names of the classes, by label.
      settings: Settings of the config, by dotted name.
      tokenizers: Digests of the tokenizers' parameters, by part.
      fingerprint: Fingerprint of the source, independent of its location.

    Raises:
      ValueError: If 16 bits cannot hold a vocabulary.
    """

    examples: int
    images: int
    passes: int
    seed: int
    shard_size: int
    batch_size: int
    grid_sizes: tuple[int, ...]
    vocab_sizes: dict[str, int]
    class_names: tuple[str, ...]
    settings: dict[str, Any]
    tokenizers: dict[str, str]
    fingerprint: str

    def __post_init__(self):
        for stream, size in self.vocab_sizes.items():
            if size > MAX_VOCAB_SIZE:
                setting = "tokenizer.model.vocab_size" if stream == "structure" else "tokenizer.alias.vocab_size"
                raise ValueError(f"{setting} is {size}, but a token cache holds tokens of 16 bits; give at most "
                                 f"{MAX_VOCAB_SIZE}, or make tokens on the fly (data.tokens='', data.token_examples=0)")

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.examples // self.shard_size)

    def examples_of(self, shard: int) -> range:
        """Return the indices of the examples in a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.examples))

    @property
    def record(self) -> np.dtype:
        """The binary layout of one example."""
        structure = sum(p * p for p in self.grid_sizes)
        alias = sum(p * p for p in self.grid_sizes[:-1]) if "alias" in self.vocab_sizes else 0
        return np.dtype([("label", "<u4"), ("structure", "<u2", (structure,)), ("alias", "<u2", (alias,))])

    @property
    def digest(self) -> str:
        """A short digest that identifies the content."""
        return hashlib.blake2b(json.dumps(self.to_json(), sort_keys=True).encode(), digest_size=6).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the description with the format version, as values that JSON can hold."""
        return {"format_version": FORMAT_VERSION} | json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a description; raise a ValueError if the file is damaged or has another format."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("format_version")
            if version == FORMAT_VERSION:
                return cls(**content | {name: tuple(content[name]) for name in ("grid_sizes", "class_names")})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{bucket.address(path)} is damaged ({error!r}); make the tokens again "
                             "(--mode=encode)") from error
        raise ValueError(f"{bucket.address(path)} has format {version}, and this program reads {FORMAT_VERSION}; "
                         "make the tokens again (--mode=encode), or use the version of the program that made them")


def differences(there: Description, here: Description, *, all_fields: bool = False) -> list[str]:
    """List the differences between two descriptions, in words.

    Unless `all_fields` is set, only the fields that a cache and a run must share are compared, and the cache may hold
    more than the run reads (alias tokens).
    """
    def flat(description: Description) -> dict[str, Any]:
        content = description.to_json()
        fields = {name: value for name, value in content.items() if all_fields or name in _SHARED}
        fields["fingerprint of data.source"] = fields.pop("fingerprint")
        return flatten_dict(fields | content["settings"] | {"settings": {}}, sep=".")

    def shown(values: dict[str, Any], name: str) -> str:
        return reprlib.repr(values[name]) if name in values else "absent"

    theirs, ours = flat(there), flat(here)
    return [f"{name} is {shown(theirs, name)} there and {shown(ours, name)} here"
            for name in sorted(ours.keys() | (theirs.keys() if all_fields else ()))
            if name not in ours or name not in theirs or ours[name] != theirs[name]]


def begin(directory: str | os.PathLike, description: Description) -> None:
    """Write the description of a cache before its first shard is written; only process 0 may call this.

    Args:
      directory: Folder of the cache.
      description: The content that the cache will have.

    Raises:
      ValueError: If the directory holds other tokens, or an incomplete cache of other tokens.
    """
    for name in (_COMPLETE, _PARTIAL):
        path = Path(directory, name)
        if path.exists() and (differing := differences(Description.read(path), description, all_fields=True)):
            raise ValueError(f"{bucket.address(directory)} holds other tokens: {'; '.join(differing)}. Give the "
                             "settings that made them, remove the folder, or write into another (encode.output)")
    write_json(Path(directory, _PARTIAL), description.to_json())
    bucket.publish(directory)


def finish(directory: str | os.PathLike) -> None:
    """Declare a cache complete; only process 0 may call this."""
    os.replace(Path(directory, _PARTIAL), Path(directory, _COMPLETE))
    bucket.publish(directory)


def shard_path(directory: str | os.PathLike, description: Description, shard: int) -> Path:
    """Return the path of a shard."""
    return Path(directory, _shard_name(description, shard))


def _shard_name(description: Description, shard: int) -> str:
    return f"tokens-{shard:05d}-of-{description.num_shards:05d}.array_record"


def write_shard(path: Path, records: np.ndarray) -> None:
    """Write one shard atomically: it is complete, or it does not exist. In a bucket it becomes one object."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(temporary), "group_size:1")  # random access needs it
    for record in records:
        writer.write(record.tobytes())
    writer.close()
    os.replace(temporary, path)
    bucket.send(path)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenSet:
    """Flat token maps of n crops, int32.

    Attributes:
      structure: Structure tokens (n, L).
      alias: Alias tokens (n, L'), with L' = 0 without a teacher.
      label: Class labels (n,).
    """

    structure: np.ndarray
    alias: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int | slice) -> dict[str, np.ndarray]:
        return {"structure": self.structure[index], "alias": self.alias[index], "label": self.label[index]}


def describe(directory: str | os.PathLike) -> Description:
    """Read the description of a complete cache.

    Args:
      directory: Folder of the cache, or its address in a bucket.

    Returns:
      The description.

    Raises:
      FileNotFoundError: If there is no complete cache.
      ValueError: If the description is damaged or has another format.
    """
    directory = bucket.open_data(directory)
    path = directory / _COMPLETE
    if not path.exists():
        begun = "only the beginning of a cache" if (directory / _PARTIAL).exists() else f"no {_COMPLETE}"
        place = bucket.address(directory)
        raise FileNotFoundError(f"data.tokens is {place}, where there is {begun}; make the tokens (--mode=encode "
                                f"with encode.output={place}), or correct the path")
    return Description.read(path)


def _readable_records(path: str) -> int:
    """Return how many records a shard has; 0 if its end, where the count is stored, is damaged."""
    try:
        reader = ArrayRecordReader(path)
        count = reader.num_records()
        reader.close()  # raises the errors
    except RuntimeError:
        return 0
    return count


class TokenCache:
    """A complete cache with random access: element i is example i of a `TokenSet`, read from disk or from a bucket.

    Args:
      directory: Folder of the cache, or its address.

    Raises:
      FileNotFoundError: If there is no complete cache.
      ValueError: If the cache is damaged.
    """

    def __init__(self, directory: str | os.PathLike):
        directory = bucket.open_data(directory)
        self.description = describe(directory)
        place = bucket.address(directory)
        self.in_bucket = bucket.is_url(place)
        self._paths = [f"{place}/{_shard_name(self.description, i)}" for i in range(self.description.num_shards)]
        with ThreadPoolExecutor(32) as pool:  # opening a file is slow on the file systems of clusters
            counts = list(pool.map(_readable_records, self._paths))
        for shard, count in enumerate(counts):
            if count != (expected := len(self.description.examples_of(shard))):
                raise self._damaged(shard, f"{count} of its {expected} examples can be read")
        self._records = grain.sources.ArrayRecordDataSource(
            [f"{path}[0:{count}]" for path, count in zip(self._paths, counts, strict=True)])

    def _damaged(self, shard: int, reason: object) -> ValueError:
        return ValueError(f"{self._paths[shard]} is missing or damaged ({reason}); remove it and make it again "
                          "(--mode=encode)")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        try:
            record = np.frombuffer(self._records[index], self.description.record)[0]
        except RuntimeError as error:
            raise self._damaged(index // self.description.shard_size, error) from error
        return {name: record[name].astype(np.int32) for name in ("structure", "alias", "label")}

    def sample(self, limit: int) -> TokenSet:
        """Read at most `limit` examples, evenly spread over the cache, into memory."""
        examples = [self[i] for i in range(0, len(self), -(-len(self) // limit))]
        return TokenSet(**{name: np.stack([example[name] for example in examples]) for name in examples[0]})


def batches(tokens: TokenSet | TokenCache, *, batch_size: int, seed: int) -> pipeline.Batches:
    """Make endless batches, shuffled again every epoch.

    Args:
      tokens: The examples.
      batch_size: Size of the global batch; each process yields its share.
      seed: Seed of the order, in [0, 2**32).

    Returns:
      Batches of structure tokens, alias tokens and labels, as of `TokenSet`.

    Raises:
      ValueError: If the processes cannot share a batch evenly.
    """
    options = pipeline.WAITING if isinstance(tokens, TokenCache) and tokens.in_bucket else None
    return pipeline.Batches(pipeline.shuffled(tokens, seed), batch_size, options=options)
