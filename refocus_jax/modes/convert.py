"""`--mode=convert`: packs the image files of Parquet files, tar files or a folder, to train on."""

import os

import jax
from ml_collections import ConfigDict

from refocus_jax.config import build
from refocus_jax.data import conversion
from refocus_jax.runtime import bucket


def run(c: ConfigDict, workdir: str) -> None:
    """Converts `convert.source` into `convert.output` or WORKDIR/images; goes on where an earlier call stopped.

    Raises:
      ValueError: The images are damaged, or the folder holds others.
      FileNotFoundError: There are no images.
      ImportError: The extra `convert` is not installed.
    """
    output = bucket.open_data(c.convert.output or os.path.join(workdir, "images"), only_reads=False)
    settings = build.source_settings(c)
    collection = conversion.open_collection(c.convert.source, settings)
    index = conversion.write(output, collection, settings.max_unreadable)
    if jax.process_index() == 0:
        counts = ", ".join(f"{sum(shard.images for shard in shards)} {split}" for split, shards in index.splits.items())
        print(f"{bucket.address(output)}: {counts} images of {len(index.class_names)} classes\n"
              f"To train on them: --config.data.source=array_record:{bucket.address(output)}")
