"""Token maps on disk instead of images: made once by the frozen tokenizers, read by every step of stage 2.

A cache is a folder of `tokens-00000-of-00002.array_record` ... and `token_cache.json`, which says what is in them and
what made them (`Description`), and appears when all shards are there. A record is one example, little-endian and
without gaps: the label (uint32), the structure tokens (uint16, all scales, coarse to fine), then the alias tokens
(uint16, likewise; none without a teacher). Example i shows image `order[i % images]` in the pass `i // images`.
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
from refocus_jax.runtime.files import write_json

FORMAT_VERSION = 2
MAX_VOCAB_SIZE = 2**16
_COMPLETE, _PARTIAL = "token_cache.json", "token_cache.partial.json"

# What a cache and a run that trains from it must have in common. The rest says how many crops there are, and which.
_SHARED = ("images", "fingerprint", "class_names", "grid_sizes", "vocab_sizes", "settings", "tokenizers")


@dataclasses.dataclass(frozen=True)
class Description:
    """What is in a cache, and what made it.

    Attributes:
      examples: n. images: of the source. passes: over the source, the last one may be incomplete. seed: the config's.
      shard_size: examples in every shard but the last. batch_size: examples that a device encoded at a time.
      grid_sizes: of the structure tokens; alias tokens have all but the last. vocab_sizes: of "structure" and, with a
      teacher, "alias". settings: of the config, by dotted name. tokenizers: digests of their parameters, by part.
      fingerprint: of the source, wherever it lies.

    Raises:
      ValueError: a vocabulary that 16 bits cannot hold.
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
                raise ValueError(f"{setting} is {size}, and a token cache holds tokens of 16 bits; give at most "
                                 f"{MAX_VOCAB_SIZE}, or make tokens on the fly (data.tokens='', data.token_examples=0)")

    @property
    def num_shards(self) -> int:
        return -(-self.examples // self.shard_size)

    def examples_of(self, shard: int) -> range:
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.examples))

    @property
    def record(self) -> np.dtype:
        """The layout of one example."""
        structure = sum(p * p for p in self.grid_sizes)
        alias = sum(p * p for p in self.grid_sizes[:-1]) if "alias" in self.vocab_sizes else 0
        return np.dtype([("label", "<u4"), ("structure", "<u2", (structure,)), ("alias", "<u2", (alias,))])

    @property
    def digest(self) -> str:
        """A name for this very content."""
        return hashlib.blake2b(json.dumps(self.to_json(), sort_keys=True).encode(), digest_size=6).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION} | json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises a ValueError if the file is damaged or of another format."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("format_version")
            if version == FORMAT_VERSION:
                return cls(**content | {name: tuple(content[name]) for name in ("grid_sizes", "class_names")})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); make the tokens anew (--mode=encode)") from error
        raise ValueError(f"{path} is of format {version}, and this program reads {FORMAT_VERSION}; make the tokens "
                         "anew (--mode=encode), or take the version of the program that made them")


def differences(there: Description, here: Description, *, all_fields: bool = False) -> list[str]:
    """What two descriptions say otherwise, in words.

    Unless `all_fields`, only of what a cache and a run share, and a cache may hold more (alias tokens) than is read.
    """
    def flat(description: Description) -> dict[str, Any]:
        content = description.to_json()
        fields = {name: value for name, value in content.items() if all_fields or name in _SHARED}
        fields["fingerprint of data.source"] = fields.pop("fingerprint")
        return flatten_dict(fields | content["settings"] | {"settings": {}}, sep=".")

    def shown(values: dict[str, Any], name: str) -> str:
        return reprlib.repr(values[name]) if name in values else "absent"

    there, here = flat(there), flat(here)
    return [f"{name} is {shown(there, name)} there and {shown(here, name)} here"
            for name in sorted(here.keys() | (there.keys() if all_fields else ()))
            if name not in here or name not in there or here[name] != there[name]]


def begin(directory: str | os.PathLike, description: Description) -> None:
    """Says what will be in a cache before its first shard is written; only process 0 writes.

    Raises:
      ValueError: the directory holds other tokens, or the beginning of them.
    """
    for name in (_COMPLETE, _PARTIAL):
        path = Path(directory, name)
        if path.exists():
            if differing := differences(Description.read(path), description, all_fields=True):
                raise ValueError(f"{directory} holds other tokens: {'; '.join(differing)}. Give the settings that made "
                                 "them, remove the folder, or write into another (encode.output)")
    write_json(Path(directory, _PARTIAL), description.to_json())


def finish(directory: str | os.PathLike) -> None:
    """Declares a cache complete; only process 0 may."""
    os.replace(Path(directory, _PARTIAL), Path(directory, _COMPLETE))


def shard_path(directory: str | os.PathLike, description: Description, shard: int) -> Path:
    return Path(directory, f"tokens-{shard:05d}-of-{description.num_shards:05d}.array_record")


def write_shard(path: Path, records: np.ndarray) -> None:
    """Writes one shard, complete or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(temporary), "group_size:1")  # what random access needs
    for record in records:
        writer.write(record.tobytes())
    writer.close()
    os.replace(temporary, path)

@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenSet:
    """Flat token maps of n crops: structure (n, L), alias (n, L'; L' = 0 without a teacher) and label (n,), int32."""

    structure: np.ndarray
    alias: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int | slice) -> dict[str, np.ndarray]:
        return {"structure": self.structure[index], "alias": self.alias[index], "label": self.label[index]}


def describe(directory: str | os.PathLike) -> Description:
    """What a complete cache holds.

    Raises:
      FileNotFoundError: there is none. ValueError: it is damaged or of another format.
    """
    path = Path(directory, _COMPLETE)
    if not path.exists():
        begun = "only the beginning of one" if Path(directory, _PARTIAL).exists() else f"no {_COMPLETE}"
        raise FileNotFoundError(f"data.tokens is {directory}, where there is {begun}; make the tokens (--mode=encode, "
                                f"with encode.output={directory}), or correct the path")
    return Description.read(path)


def _readable_records(path: Path) -> int:
    """How many records a shard has; 0 without a sound end, where they are counted."""
    try:
        reader = ArrayRecordReader(str(path))
        count = reader.num_records()
        reader.close()  # which is where errors appear
    except RuntimeError:
        return 0
    return count


class TokenCache:
    """A complete cache, by random access: element i is example i of a `TokenSet`, read from disk.

    Raises:
      FileNotFoundError: there is none. ValueError: it is damaged.
    """

    def __init__(self, directory: str | os.PathLike):
        self.description, self._directory = describe(directory), directory
        paths = [shard_path(directory, self.description, i) for i in range(self.description.num_shards)]
        with ThreadPoolExecutor(32) as pool:  # file systems of clusters are slow to open a file
            counts = list(pool.map(_readable_records, paths))
        for shard, count in enumerate(counts):
            if count != (expected := len(self.description.examples_of(shard))):
                raise self._damaged(shard, f"{count} of its {expected} examples can be read")
        self._records = grain.sources.ArrayRecordDataSource(
            [f"{path}[0:{count}]" for path, count in zip(paths, counts, strict=True)])

    def _damaged(self, shard: int, reason: object) -> ValueError:
        return ValueError(f"{shard_path(self._directory, self.description, shard)} is missing or damaged ({reason}); "
                          "remove it, and make it again (--mode=encode)")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        try:
            record = np.frombuffer(self._records[index], self.description.record)[0]
        except RuntimeError as error:
            raise self._damaged(index // self.description.shard_size, error) from error
        return {name: record[name].astype(np.int32) for name in ("structure", "alias", "label")}

    def sample(self, limit: int) -> TokenSet:
        """At most `limit` examples, evenly spread over the cache, in memory."""
        examples = [self[i] for i in range(0, len(self), -(-len(self) // limit))]
        return TokenSet(**{name: np.stack([example[name] for example in examples]) for name in examples[0]})


def batches(tokens: TokenSet | TokenCache, *, batch_size: int, seed: int) -> pipeline.Batches:
    """Endless batches, shuffled anew every epoch; `batch_size` is global, each process yields its share.

    Raises:
      ValueError: a batch that the processes cannot share.
    """
    return pipeline.Batches(pipeline.shuffled(tokens, seed), batch_size)
