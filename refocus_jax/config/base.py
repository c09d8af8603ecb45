"""Every setting, once: its default, its range, and a line that says what it does.

`get_config` makes a ConfigDict of the defaults, the paper's settings at 256 px. A config file holds its differences
from them. A default that a dataclass has is taken from there. The reference in docs/ is printed from this table.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from refocus_jax.config import ranges as r
from refocus_jax.config.ranges import Range
from refocus_jax.data.sources import SourceSettings
from refocus_jax.evaluation.samples import FORMATS, DrawSettings
from refocus_jax.focus import GRID_SIZES, Pyramid
from refocus_jax.models.tokenizer import PYRAMIDS
from refocus_jax.sampling.decode import SamplingSettings
from refocus_jax.training.adversarial import AdversarialSettings
from refocus_jax.training.codebook import Revival
from refocus_jax.training.generator_task import TeacherSettings
from refocus_jax.training.loop import LoopSettings
from refocus_jax.training.optimizer import OptimizerSettings
from refocus_jax.training.tokenizer_task import TokenizerLosses

STAGES = ("tokenizer", "generator")


class Setting(NamedTuple):
    """A setting: what it is if nobody sets it, what it may be, and what it does."""

    default: Any
    range: Range
    line: str


def _optimizer(learning_rate: float, **changes: float) -> dict[str, Setting]:
    """VAR's AdamW; `changes` are other defaults."""
    o = OptimizerSettings
    lines = {
        "learning_rate": (learning_rate, r.NOT_NEGATIVE, "Peak of the learning rate."),
        "b1": (o.b1, r.BELOW_ONE, "Decay of AdamW's first moment."),
        "b2": (o.b2, r.BELOW_ONE, "Decay of AdamW's second moment."),
        "weight_decay": (o.weight_decay, r.NOT_NEGATIVE, "Weight decay at the start of the run."),
        "weight_decay_end": (o.weight_decay_end, r.NOT_NEGATIVE, "Weight decay at its end, along a half cosine."),
        "clip": (o.clip, r.GREATER_THAN_ZERO, "Largest global norm of a gradient."),
        "warmup": (o.warmup, r.FRACTION, "Share of the run in which the learning rate rises."),
        "warmup_initial": (o.warmup_initial, r.FRACTION, "Where it starts, as a share of its peak."),
        "flat": (o.flat, r.FRACTION, "Share of the rest of the run that stays at the peak."),
        "final": (o.final, r.FRACTION, "Where it ends, as a share of its peak, after a linear descent."),
    }
    return {name: Setting(changes.get(name, default), limits, line) for name, (default, limits, line) in lines.items()}


def _train(batch_size: int, steps: int) -> dict[str, Setting]:
    """What both stages have."""
    return {
        "batch_size": Setting(batch_size, r.POSITIVE, "Images in a step, on all devices together."),
        "microbatches": Setting(1, r.POSITIVE, "Parts of a batch whose gradients are summed one after the other, to "
                                               "save memory."),
        "steps": Setting(steps, r.POSITIVE, "Steps in all."),
        "log_every": Setting(LoopSettings.log_every, r.POSITIVE, "Steps between two lines of metrics."),
        "evaluate_every": Setting(LoopSettings.evaluate_every, r.POSITIVE,
                                  "Steps between two evaluations on held-out images."),
        "save_every": Setting(LoopSettings.save_every, r.POSITIVE, "Steps between two checkpoints."),
        "keep": Setting(LoopSettings.keep, r.POSITIVE, "Checkpoints that are kept."),
        "skip_nonfinite": Setting(LoopSettings.skip_nonfinite, r.COUNT,
                                  "Steps with a NaN or infinite loss that are skipped before the run stops."),
    }


# By section; the names of a section's settings follow its own after a dot.
_SECTIONS: dict[str, dict[str, Setting]] = {
    "": {
        "seed": Setting(0, r.SEED, "Seed of everything random in a run."),
        "image_size": Setting(256, r.SIDE, "Side of the square images, in pixels."),
        "grid_sizes": Setting(GRID_SIZES["var10"], r.GRIDS, "Sides of the token maps, coarse to fine; the last is "
                                                            "image_size divided by the tokenizer's stride."),
    },
    "mesh": {  # devices are data x fsdp
        "data": Setting(-1, r.MESH_AXIS, "Devices along the axis that divides examples alone; -1 takes the rest."),
        "fsdp": Setting(1, r.MESH_AXIS, "Devices along the axis that also divides parameters and optimizer state."),
    },
    "data": {
        "source": Setting("tfds:imagenet2012", r.PATH, "Images: photos, npz:PATH, folder:PATH or tfds:NAME."),
        "num_classes": Setting(SourceSettings.num_classes, r.CLASS_COUNT,
                               "Number of classes; None takes the source's."),
        "class_depth": Setting(SourceSettings.class_depth, r.COUNT,
                               "Of a folder: 2 makes dog/poodle a class; 0 is 1, and refuses classes whose images all "
                               "lie in sub-folders."),
        "max_unreadable": Setting(SourceSettings.max_unreadable, r.FRACTION,
                                  "Share of a folder's images that may be skipped as unreadable; one always may."),
        "sixteen_bit_max": Setting(SourceSettings.sixteen_bit_max, r.SIXTEEN_BIT_MAX,
                                   "White in images of 16 bits: 4095 in those of a 12-bit camera; 0 finds it from the "
                                   "largest value of all images of a folder."),
        "resize_ratio": Setting(1.125, r.RESIZE_RATIO, "Short side before the crop, in image sizes; 0 crops at native "
                                                       "resolution."),
        "flip": Setting(False, r.SWITCH, "Mirrors half of the training crops."),
        "num_workers": Setting(8, r.COUNT, "Processes that prepare batches; 0 uses threads of this one."),
        "validation_examples": Setting(2048, r.POSITIVE, "Held-out crops that are evaluated, at most."),
        "crops_per_image": Setting(1, r.POSITIVE, "Crops of every held-out image."),
        "tokens": Setting("", r.PATH, "Folder that --mode=encode wrote, for stage 2; empty tokenizes every batch."),
        "token_examples": Setting(0, r.COUNT, "Crops that stage 2 encodes into the workdir before it starts; 0 "
                                              "tokenizes every batch."),
    },
    "focus": {
        "psf": Setting(Pyramid.psf, r.NAME, "Blur: disk, gaussian or none."),
        "schedule": Setting(Pyramid.schedule, r.NAME, "Radii over the scales: cosine or nyquist."),
        "downsample": Setting(Pyramid.downsample, r.NAME, "Reduction after the blur: bilinear, stride or area."),
        "rho_max": Setting(12.0, r.GREATER_THAN_ZERO, "Largest radius, in pixels of the image; the paper's is 12 at "
                                                      "256 px."),
        "noise_first": Setting(Pyramid.noise_first, r.NOT_NEGATIVE, "Noise on the coarsest view, while tokenizers "
                                                                    "train."),
        "noise_last": Setting(Pyramid.noise_last, r.NOT_NEGATIVE, "Noise on the finest view."),
        "implementation": Setting(Pyramid.implementation, r.NAME, "How the blur is computed: matrices, convolution or "
                                                                  "auto, by platform; see focus/psf.py."),
    },
    "tokenizer": {
        "pretrained": Setting("", r.PATH, "A workdir whose tokenizers serve this run instead of stage 1, or an "
                                          "official vae_ch160v4096z32.pth."),
        "perceptual_network": Setting("efficientnet_lite0", r.PATH,
                                      "Network of loss.perceptual: efficientnet_lite0, vgg16:PATH (torchvision's file) "
                                      "or none."),
    },
    "tokenizer.model": {
        "pyramid": Setting("focus", r.one_of(PYRAMIDS), "What the token maps describe: focused views, or VAR's area "
                                                        "averages of one encoding."),
        "residual": Setting(False, r.SWITCH, "Residual quantization over the scales, with which sampling is VAR's to "
                                             "the letter."),
        "vocab_size": Setting(8192, r.POSITIVE, "Codes of the structure codebook."),
        "latent_channels": Setting(32, r.POSITIVE, "Channels of a code."),
        "num_phi": Setting(4, r.COUNT, "Convolutions that the scales share after their codes are enlarged; 0 is none."),
        "channels": Setting(160, r.POSITIVE, "Channels of the autoencoder's first level."),
        "channel_multipliers": Setting((1, 1, 2, 2, 4), r.MULTIPLIERS, "Channels of its levels, in multiples of the "
                                                                       "first; n levels have stride 2^(n - 1)."),
        "num_residual_blocks": Setting(2, r.POSITIVE, "Residual blocks of a level."),
        "norm_groups": Setting(32, r.POSITIVE, "Groups of its group normalizations."),
        "dtype": Setting("bfloat16", r.DTYPE, "What the networks of stage 1 compute in."),
        "remat": Setting("products", r.TOKENIZER_REMAT, "What the backward pass computes again: nothing, blocks, or "
                                                        "all but their convolutions."),
    },
    "tokenizer.alias": {
        "shared": Setting(False, r.SWITCH, "Uses the structure tokenizer for the alias residuals too."),
        "vocab_size": Setting(512, r.POSITIVE, "Codes of the alias codebook."),
        "latent_channels": Setting(16, r.POSITIVE, "Channels of a code."),
        "channels": Setting(256, r.POSITIVE, "Channels of the alias autoencoder."),
        "num_residual_blocks": Setting(2, r.COUNT, "Residual blocks of its encoder and of its decoder."),
        "norm_groups": Setting(32, r.POSITIVE, "Groups of its group normalizations."),
    },
    "tokenizer.loss": {
        "l1": Setting(TokenizerLosses.l1, r.NOT_NEGATIVE, "Weight of absolute pixel errors."),
        "l2": Setting(TokenizerLosses.l2, r.NOT_NEGATIVE, "Weight of squared pixel errors."),
        "view": Setting(TokenizerLosses.view, r.NOT_NEGATIVE, "Weight of what coarser latents decode to, against their "
                                                              "views."),
        "consistency": Setting(TokenizerLosses.consistency, r.NOT_NEGATIVE,
                               "Weight that ties coarser latents to the finest, for residual focus pyramids."),
        "commitment": Setting(TokenizerLosses.commitment, r.NOT_NEGATIVE, "Commitment weight of the quantizers."),
        "alias": Setting(TokenizerLosses.alias, r.NOT_NEGATIVE, "Weight of the alias tokenizer's terms."),
        "perceptual": Setting(TokenizerLosses.perceptual, r.NOT_NEGATIVE, "Weight of the perceptual loss; "
                                                                          "docs/measurements/perceptual.md."),
    },
    "tokenizer.revival": {
        "every": Setting(Revival.every, r.POSITIVE, "Steps between two revivals of unused codes."),
        "stop_fraction": Setting(Revival.stop_fraction, r.FRACTION, "Share of the run after which none is revived."),
    },
    "tokenizer.adversarial": {
        "weight": Setting(AdversarialSettings.weight, r.NOT_NEGATIVE, "Weight of the adversarial loss; 0 leaves the "
                                                                      "discriminator out."),
        "start": Setting(AdversarialSettings.start, r.COUNT, "Step at which it begins."),
        "cap": Setting(AdversarialSettings.cap, r.GREATER_THAN_ZERO, "Largest adaptive weight."),
    },
    "tokenizer.discriminator": {
        "channels": Setting(64, r.POSITIVE, "Channels of the discriminator's first layer."),
        "num_layers": Setting(3, r.POSITIVE, "Its strided layers."),
        "norm_groups": Setting(32, r.POSITIVE, "Groups of its group normalizations."),
    },
    "tokenizer.optimizer": _optimizer(1e-4, b1=0.9, b2=0.99, weight_decay=0.0, weight_decay_end=0.0),
    "tokenizer.discriminator_optimizer": _optimizer(1e-4, b1=0.5, b2=0.9, weight_decay=0.0, weight_decay_end=0.0),
    "tokenizer.train": _train(256, 100_000),
    "generator": {
        "init_from": Setting("", r.PATH, "A workdir, or an official var_d16.pth ..., whose transformer stage 2 starts "
                                         "from."),
        "init_classes": Setting("same", r.one_of(("same", "new")), "Classes of init_from: the same as here, or new, "
                                "whose embedding starts again except for the null class."),
    },
    "generator.model": {
        "depth": Setting(16, r.POSITIVE, "Transformer blocks."),
        "width": Setting(1024, r.POSITIVE, "Width of the residual stream."),
        "num_heads": Setting(16, r.POSITIVE, "Attention heads."),
        "qk_norm": Setting(True, r.SWITCH, "Normalizes queries and keys, with a learned temperature per head."),
        "shared_modulation": Setting(False, r.SWITCH, "Shares one AdaLN among the blocks, as VAR's d36 does."),
        "gamma_init": Setting(1e-3, r.NOT_NEGATIVE, "Scale of the AdaLN gates at the start."),
        "drop_path_rate": Setting(0.1 * 16 / 24, r.BELOW_ONE, "Stochastic depth of the last block; it grows linearly."),
        "remat": Setting("blocks", r.GENERATOR_REMAT, "What the backward pass computes again: nothing, blocks, or all "
                                                      "but matrix products."),
        "attention": Setting("auto", r.NAME, "prefix everywhere, splash on TPUs, cudnn on GPUs; auto is prefix. See "
                                             "models/attention.py."),
        "dtype": Setting("bfloat16", r.DTYPE, "What the transformer computes in."),
    },
    "generator.teacher": {
        "enabled": Setting(TeacherSettings.enabled, r.SWITCH, "Trains a teacher and distils it; without, stage 2 "
                                                              "trains plain VAR."),
        "share_weights": Setting(TeacherSettings.share_weights, r.SWITCH, "Runs the student's own last blocks again "
                                                                          "instead of a second network."),
        "train_shared": Setting(TeacherSettings.train_shared, r.SWITCH,
                                "Lets the teacher's loss reach shared weights."),
        "num_alias_blocks": Setting(TeacherSettings.num_alias_blocks, r.POSITIVE, "Last blocks that read alias tokens, "
                                                                                  "1 or 2."),
        "num_alias_scales": Setting(TeacherSettings.num_alias_scales, r.POSITIVE, "Last scales that the teacher sees."),
        "gate": Setting(TeacherSettings.gate, r.NAME, "learned (Eq. 11) or none (Eq. 10)."),
        "logit_weight": Setting(TeacherSettings.logit_weight, r.NOT_NEGATIVE, "Weight of the distilled logits."),
        "feature_weight": Setting(TeacherSettings.feature_weight, r.NOT_NEGATIVE, "Weight of the distilled features."),
    },
    "generator.optimizer": _optimizer(1e-4),
    "generator.train": _train(256, 400_000) | {
        "label_dropout": Setting(0.1, r.FRACTION, "Share of labels that become the null class, for guidance."),
        "ema_decay": Setting(0.0, r.BELOW_ONE, "Decay of the student's moving average, which images are then drawn "
                                               "with; 0 keeps none."),
        "samples_per_class": Setting(6, r.POSITIVE, "Samples of a class in the pictures of training."),
    },
    "sampling": {
        "cfg": Setting(SamplingSettings.cfg, r.GUIDANCE, "Guidance at the last scale as VAR counts it: 0 is unguided. "
                       "Where 1 is unguided (DiT and others) it is a ramp from 1 at the first scale to 1 + cfg at the "
                       "last."),
        "top_k": Setting(SamplingSettings.top_k, r.COUNT, "Most likely codes that may be drawn; 0 is all."),
        "top_p": Setting(SamplingSettings.top_p, r.FRACTION, "Probability mass that may be drawn; 0 is all."),
        "smooth": Setting(SamplingSettings.smooth, r.SWITCH, "Feeds back mixtures of codes: smoother pictures, worse "
                                                             "FID."),
    },
    "encode": {
        "passes": Setting(1, r.POSITIVE, "Passes over all training images."),
        "output": Setting("", r.PATH, "Folder of the tokens; default WORKDIR/tokens."),
        "shard_size": Setting(8192, r.POSITIVE, "Examples in a file."),
        "batch_size": Setting(32, r.POSITIVE, "Crops that a device encodes at a time."),
    },
    "sample": {
        "classes": Setting(DrawSettings.classes, r.CLASSES, "Classes to draw, by number or name; empty is all."),
        "count": Setting(DrawSettings.count, r.POSITIVE, "Images in all, shared evenly among the classes."),
        "seed": Setting(DrawSettings.seed, r.SEED, "Seed: an image depends on it, its number and its class alone."),
        "batch_size": Setting(DrawSettings.batch_size, r.POSITIVE, "Images drawn at a time."),
        "format": Setting(DrawSettings.format, r.one_of(FORMATS), "One picture, a folder of PNG files, or ADM's .npz."),
        "output": Setting(DrawSettings.output, r.PATH, "Directory; default WORKDIR/samples."),
    },
    "edit": {
        "image": Setting("", r.PATH, "The image file to edit."),
        "mask": Setting("", r.PATH, "What is hidden: a file, white where to paint, or box:LEFT,TOP,RIGHT,BOTTOM, or "
                                    "outside:LEFT,TOP,RIGHT,BOTTOM."),
        "label": Setting("0", r.NAME, "Class to paint, by number or name."),
        "count": Setting(4, r.POSITIVE, "Images to paint."),
        "seed": Setting(0, r.SEED, "Seed of what is painted."),
    },
    "evaluate": {
        "parts": Setting(STAGES, r.PARTS, "What is measured: tokenizer, generator or both."),
        "features": Setting("efficientnet_lite0", r.PATH, "Network that looks at the images: efficientnet_lite0, which "
                            "is installed, inception (FID's, downloaded once) or inception:PATH."),
        "samples": Setting("", r.PATH, "A folder or ADM's .npz to measure instead of the workdir's generator."),
        "count": Setting(50_000, r.COMPARABLE, "Samples, drawn as sampling says, as many of every class."),
        "seed": Setting(0, r.SEED, "Their seed."),
        "reference": Setting("validation", r.PATH, "What samples are compared with: validation or train, crops of "
                             "data.source; or a folder, an .npz with x, or ADM's .npz of images or moments."),
        "reference_count": Setting(50_000, r.COMPARABLE, "Crops of data.source that are compared with, at most."),
        "batch_size": Setting(32, r.POSITIVE, "Samples and reconstructions that a device makes at a time."),
        "during_training": Setting(0, r.COMPARABLE_OR_OFF, "Samples that stage 2 draws and compares at every "
                                                           "evaluation; 0 is none."),
    },
    "aliasing": {
        "images": Setting(16, r.POSITIVE, "Crops that views and gates are measured on."),
        "samples": Setting("", r.PATH, "Generated images: a folder or .npz; default what the workdir has."),
    },
    "report": {
        "compare": Setting((), r.PATHS, "Workdirs to show next to this one."),
        "reference": Setting("", r.PATH, "Curves of healthy runs, see benchmarks/reference.py: a file, or the name of "
                                         "one that is shipped, as tiny."),
    },
    "plan": {
        "topology": Setting("", r.NAME, "The machine: tpu:v5e:4x4, tpu:v5p:4x4x4, gpu:a100:1x8 (hosts x GPUs of "
                                        "each), ..."),
        "programs": Setting(("tokenizer", "generator", "sample"), r.PROGRAMS, "Programs to compile."),
        "utilization": Setting(0.4, r.SHARE, "Share of the chips' peak that days are reckoned with."),
        "search_batch": Setting(False, r.SWITCH, "Looks for the largest batch."),
        "optimization": Setting("O1", r.one_of(("O0", "O1", "O2", "O3")), "XLA's optimization level: O1 compiles "
                                                                         "sooner, and may need more memory."),
    },
    "export": {
        "format": Setting("var", r.one_of(("var", "sampler")), "var: files for PyTorch's VAR code; sampler: one file "
                                                               "that draws without our models."),
        "output": Setting("", r.PATH, "The file: NAME.safetensors or NAME.zip; default student.safetensors or "
                                      "sampler.zip in WORKDIR."),
        "batch_size": Setting(4, r.POSITIVE, "Images that an exported sampler draws at a time."),
        "allow_differences": Setting(False, r.SWITCH, "Writes a tokenizer that VAR's code only decodes after the "
                                                      "changes that are printed."),
    },
}
SETTINGS: dict[str, Setting] = {f"{section}.{name}".lstrip("."): setting
                                for section, settings in _SECTIONS.items() for name, setting in settings.items()}


def get_config() -> ConfigDict:
    """The defaults, locked: a setting that is not in the table cannot be added."""
    c = ConfigDict()
    for section, settings in _SECTIONS.items():
        target = c
        for name in filter(None, section.split(".")):
            if name not in target:
                target[name] = ConfigDict()
            target = target[name]
        for name, setting in settings.items():
            target[name] = placeholder(int) if setting.default is None else setting.default
    c.lock()
    return c
