"""Token maps kept instead of images: made once by the frozen tokenizers, read by every step of stage 2."""

import dataclasses
import io
import os

import grain
import jax
import numpy as np

from refocus_jax.data import pipeline


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenSet:
    """Flat token maps of n crops: structure (n, L), alias (n, L'; L' = 0 without a teacher) and label (n,), int32."""

    structure: np.ndarray
    alias: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"structure": self.structure[index], "alias": self.alias[index], "label": self.label[index]}


def save(path: str, tokens: TokenSet) -> None:
    """Writes the set as an npz file, atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dataclasses.asdict(tokens))
    temporary = f"{path}.tmp"
    with open(temporary, "wb") as file:
        file.write(buffer.getvalue())
    os.replace(temporary, path)


def load(path: str) -> TokenSet:
    with np.load(path, allow_pickle=False) as arrays:
        return TokenSet(**{field.name: arrays[field.name] for field in dataclasses.fields(TokenSet)})


def batches(tokens: TokenSet, *, batch_size: int, seed: int) -> grain.IterDataset:
    """Endless batches, shuffled anew every epoch; `batch_size` is global, each process yields its share.

    Raises:
      ValueError: a batch that the processes cannot share.
    """
    examples = grain.MapDataset.source(tokens).seed(seed).shuffle().repeat()
    return pipeline.process_batches(examples, batch_size).to_iter_dataset()
