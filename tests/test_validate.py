"""Settings that a tired person types at night: each is refused by name, before anything is compiled or written."""

import re

import jax
import numpy as np
import pytest

from configs import tiny
from refocus_jax import experiment

BAD = [
    # geometry
    {"image_size": 60}, {"image_size": 0}, {"grid_sizes": (8,)}, {"grid_sizes": (1, 4, 2, 8)},
    {"grid_sizes": (0, 2, 4, 8)}, {"grid_sizes": (1, 2, 4, 7)},
    # optics
    {"focus.rho_max": 0.0}, {"focus.rho_max": -1.0}, {"focus.rho_max": float("nan")}, {"focus.rho_max": 1000.0},
    {"focus.psf": "dsk"}, {"focus.schedule": "cos"}, {"focus.downsample": "bicubic"}, {"focus.noise_first": -1.0},
    # tokenizers
    {"tokenizer.pyramid": "foo"}, {"tokenizer.residual": False, "tokenizer.pyramid": "var"},
    {"tokenizer.vocab_size": 0}, {"tokenizer.latent_channels": 0}, {"tokenizer.num_phi": -1},
    {"tokenizer.num_phi": 9}, {"tokenizer.norm_groups": 3}, {"tokenizer.norm_groups": 0},
    {"tokenizer.channel_multipliers": ()}, {"tokenizer.channel_multipliers": (1, 0, 1, 1)},
    {"tokenizer.num_residual_blocks": 0}, {"tokenizer.dtype": "float16"}, {"tokenizer.channels": 0},
    {"alias.vocab_size": 0}, {"alias.norm_groups": 7}, {"alias.channels": 0}, {"alias.latent_channels": 0},
    # stage 1
    {"losses.l1": -1.0}, {"losses.view": float("inf")}, {"revival.every": 0}, {"revival.stop_fraction": 2.0},
    {"adversarial.weight": -1.0}, {"adversarial.start": -1}, {"adversarial.cap": 0.0},
    {"discriminator.num_layers": 0}, {"discriminator.norm_groups": 5}, {"tokenizer_batch_size": 0},
    {"tokenizer_batch_size": 7}, {"tokenizer_optimizer.learning_rate": -1.0}, {"tokenizer_optimizer.b1": 1.0},
    {"discriminator_optimizer.final": -1.0}, {"tokenizer_training.steps": 0}, {"tokenizer_training.log_every": 0},
    # stage 2
    {"generator.depth": 0}, {"generator.depth": 1}, {"generator.num_heads": 7}, {"generator.num_heads": 0},
    {"generator.drop_path_rate": 1.0}, {"generator.dtype": "bf16"}, {"label_drop": 1.5},
    {"generator_batch_size": 0}, {"generator_batch_size": 3}, {"generator_optimizer.weight_decay": -1.0},
    {"generator_optimizer.clip": 0.0}, {"generator_optimizer.warmup": 2.0}, {"generator_training.keep": 0},
    {"generator_training.save_every": -3}, {"generator_training.skip_nonfinite": -1},
    {"teacher.num_alias_blocks": 3}, {"teacher.num_alias_scales": 4}, {"teacher.num_alias_scales": 0},
    {"teacher.gate": "open"}, {"teacher.logit_weight": -1.0}, {"teacher.feature_weight": float("nan")},
    {"teacher.train_shared": True, "teacher.share_weights": False},
    # sampling
    {"sampling.cfg": -1.0}, {"sampling.top_k": 2000}, {"sampling.top_k": -1}, {"sampling.top_p": 1.5},
    {"samples_per_class": 0}, {"draw.count": 0}, {"draw.format": "gif"}, {"edit.count": 0}, {"edit.seed": -1},
    {"aliasing.images": 0},
    # evaluation
    {"evaluation.count": 9}, {"evaluation.reference_count": 0}, {"evaluation.batch_size": 0}, {"evaluation.seed": -1},
    {"evaluation.during_training": 5}, {"evaluation.parts": ("student",)}, {"evaluation.parts": ()},
    # data
    {"data.source": "foto"}, {"data.source": "npz:/nowhere.npz"}, {"data.resize_ratio": -1.0},
    {"data.resize_ratio": 0.5}, {"data.validation_examples": 0}, {"data.token_examples": -1},
    {"data.token_examples": 8}, {"data.crops_per_image": 0}, {"data.num_classes": 10}, {"data.num_workers": -1},
    {"data.tokens": "/nowhere"}, {"tokenizer.vocab_size": 65537},
    {"encode.passes": 0}, {"encode.shard_size": 0}, {"encode.batch_size": -1},
    {"seed": -1},
    # scale
    {"mesh.data": 3}, {"mesh.fsdp": 5}, {"mesh.fsdp": -1}, {"mesh.data": 0}, {"tokenizer_batch_parts": 0},
    {"tokenizer_batch_parts": 3}, {"generator_batch_parts": 5}, {"average_decay": 1.0}, {"generator.remat": "all"},
    {"tokenizer.remat": "all"},
    # from elsewhere
    {"tokenizer_from": "/nowhere"}, {"init_from": "/nowhere"}, {"tokenizer_from": "/nowhere.pth"},
    {"init_from": "/nowhere.safetensors"},
]
REMEDY = re.compile(r"\b(give|choose|change|set|take|correct|train|use|leave)\b", re.IGNORECASE)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    images = np.random.default_rng(0).integers(0, 255, (16, 64, 64, 3), np.uint8)
    np.savez(folder / "images.npz", x=images, y=np.arange(16) % 2)

    def make(**changes):
        c = tiny.get_config()
        c.data.source = f"npz:{folder}/images.npz"
        c.update_from_flattened_dict(changes)
        return c

    return make


@pytest.fixture(scope="module")
def compiled():
    """Seconds of all that jax has compiled, growing."""
    seconds = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: seconds.append(duration) if "backend_compile" in event else None)
    jax.jit(lambda x: x * 3)(1.0)
    assert seconds
    return seconds


@pytest.mark.parametrize("changes", BAD, ids=str)
def test_bad_settings_are_named_with_a_remedy(changes, config, tmp_path, compiled):
    before = len(compiled)
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        experiment.prepare(config(**changes), str(tmp_path / "run"))
    name, value = next(iter(changes.items()))
    message = str(raised.value)
    assert name in message and str(value).strip("()") in message.replace("[", "(").replace("]", ")"), message
    assert REMEDY.search(message), message
    assert not (tmp_path / "run").exists() and sum(compiled[before:]) < 0.5  # a key at most


def test_good_settings_are_not_refused(config, tmp_path):
    for number, changes in enumerate([{}, {"focus.psf": "none"}, {"sampling.top_k": 1024}, {"adversarial.weight": 0.0},
                                      {"tokenizer.pyramid": "var", "tokenizer.residual": True}]):
        experiment.prepare(config(**changes), str(tmp_path / str(number)))


def test_a_bucket_is_no_workdir(config):
    with pytest.raises(ValueError, match="--workdir is gs://mine/run, which is no directory; give one"):
        experiment.prepare(config(), "gs://mine/run")
