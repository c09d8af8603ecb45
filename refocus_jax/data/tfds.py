"""Datasets that TensorFlow Datasets has prepared, the source `tfds:NAME`, read without TensorFlow."""

import functools
from collections.abc import Callable
from typing import Any

from refocus_jax.data.records import EncodedSource, SourceSettings, digest, every_tenth
from refocus_jax.runtime import bucket, extras


def open_dataset(name: str, settings: SourceSettings) -> Callable[[str], EncodedSource]:
    """Open a dataset that is prepared in `TFDS_DATA_DIR`, a folder or a bucket.

    Args:
      name: NAME, NAME/CONFIG or NAME:VERSION.
      settings: How it is read.

    Returns:
      A function from the name of a split to its images. Without a held-out split, every tenth image is held out.

    Raises:
      ValueError: The dataset is unknown, cannot be opened, or has no images with class labels.
      FileNotFoundError: It is not prepared, or a file is missing.
      ImportError: tensorflow-datasets is not installed.
    """
    extras.require(f"data.source is 'tfds:{name}', which", "tfds", {"tensorflow_datasets": "tensorflow-datasets"})
    # Only this kind of source needs tfds, and importing it is slow.
    import tensorflow_datasets as tfds

    data_dir = tfds.core.constants.DATA_DIR
    if bucket.is_url(data_dir):
        if not bucket.is_address(data_dir):
            raise ValueError(f"data.source is tfds:{name}, and TFDS_DATA_DIR is {data_dir}; give gs://BUCKET/FOLDER, "
                             "or a folder (other buckets can be mounted)")
        bucket.list_files(data_dir)  # tfds and ArrayRecord would wait for a bucket that does not answer
    # This package decodes the image files: without TensorFlow, tfds would not convert greyscale and CMYK images.
    decoders = {"image": tfds.decode.SkipDecoding()}
    try:
        splits = tfds.data_source(name, download=False, decoders=decoders)
    except tfds.core.DatasetNotFoundError:
        raise ValueError(f"data.source is tfds:{name}, but tensorflow_datasets knows no dataset of this name") from None
    except Exception as error:  # a malformed name, an unknown version or configuration, files in another format
        raise ValueError(
            f"data.source is tfds:{name}, which cannot be opened: {error}\nGive tfds:NAME, tfds:NAME/CONFIG or "
            "tfds:NAME:VERSION of a dataset that is prepared in array_record format"
        ) from error
    if not splits:
        raise FileNotFoundError(_how_to_prepare(name, data_dir))
    return functools.partial(_split, name, splits, settings)


def _split(name: str, splits: dict[str, Any], settings: SourceSettings, split: str) -> EncodedSource:
    import tensorflow_datasets as tfds

    held_out = next((known for known in ("validation", "test") if known in splits), None)
    tfds_split = held_out if held_out and split == "validation" else "train"
    if tfds_split not in splits:
        raise ValueError(f"data.source is tfds:{name}, which has no {tfds_split} split but {sorted(splits)}; "
                         "use another dataset")
    records = splits[tfds_split]
    features = dict(records.dataset_info.features.items())
    image, label = features.get("image"), features.get("label")
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        raise ValueError(
            f"data.source is tfds:{name}, which has {sorted(features)}; use a dataset with an image and a class label"
        )
    # Version and shards distinguish one preparation of the dataset from another. ArrayRecord verifies its bytes
    # whenever it reads them, so damaged data are not mistaken for the same data.
    info = records.dataset_info.splits[tfds_split]
    place = str(records.dataset_info.data_dir)
    sizes = bucket.list_files(place)
    if missing := [file for file in info.filenames if file not in sizes]:
        raise FileNotFoundError(f"data.source is tfds:{name}, of which {place}/{missing[0]} is missing; copy all of "
                                "its files there, or prepare it again")
    shards = [(file, sizes[file]) for file in info.filenames]
    chosen = None if held_out else every_tenth(len(records), split)
    fingerprint = digest(records.dataset_info.full_name, tfds_split, info.shard_lengths, info.num_bytes, shards,
                          label.names, settings.sixteen_bit_max, *([] if held_out else [split])).hexdigest()
    return EncodedSource(f"tfds:{name}", records, tuple(label.names), fingerprint, settings.sixteen_bit_max, chosen)


def _how_to_prepare(name: str, data_dir: str) -> str:
    imagenet = name.startswith("imagenet2012")
    imagenet_step = "put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into manual_dir, then "
    return (
        f"data.source is tfds:{name}, which is not prepared in {data_dir} (set TFDS_DATA_DIR if it lies elsewhere): "
        f"{imagenet_step if imagenet else ''}run "
        f'tfds.builder("{name}", file_format="array_record").download_and_prepare() '
        "on a machine with tensorflow (manual_dir is downloads/manual in the data folder)"
        f"{'; or give array_record:PATH, see docs/how_to/imagenet.md, which needs no tensorflow' if imagenet else ''}"
    )
