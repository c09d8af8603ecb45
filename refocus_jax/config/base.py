"""Table of all settings: the default, the range and a one-line description of each.

`get_config` returns the defaults, the paper's settings at 256 px, as a ConfigDict. A config file holds only its
differences from them. Where a dataclass has the same field, the default is taken from there. The settings reference in
docs/ is printed from this table.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from refocus_jax.config import ranges as r
from refocus_jax.config.ranges import Range
from refocus_jax.data.records import SourceSettings
from refocus_jax.evaluation.samples import FORMATS, DrawSettings
from refocus_jax.focus import GRID_SIZES, Pyramid
from refocus_jax.models.tokenizer import PYRAMIDS
from refocus_jax.models.transformer import ARCHITECTURES, Transformer
from refocus_jax.sampling.decode import SamplingSettings
from refocus_jax.training.adversarial import AdversarialSettings
from refocus_jax.training.codebook import Revival
from refocus_jax.training.generator_task import EVIDENCE, TeacherSettings
from refocus_jax.training.loop import LoopSettings
from refocus_jax.training.optimizer import OptimizerSettings
from refocus_jax.training.tokenizer_task import TokenizerLosses

STAGES = ("tokenizer", "generator")


class Setting(NamedTuple):
    """A setting.

    Attributes:
      default: Its value if nobody sets it.
      range: The values that it may have.
      line: One line that says what it does.
    """

    default: Any
    range: Range
    line: str


def _optimizer(learning_rate: float, **changes: float) -> dict[str, Setting]:
    """Declares the settings of VAR's AdamW; `changes` are defaults that differ from VAR's."""
    o = OptimizerSettings
    lines = {
        "learning_rate": (learning_rate, r.NOT_NEGATIVE, "Peak learning rate."),
        "b1": (o.b1, r.BELOW_ONE, "Decay of AdamW's first moment."),
        "b2": (o.b2, r.BELOW_ONE, "Decay of AdamW's second moment."),
        "weight_decay": (o.weight_decay, r.NOT_NEGATIVE, "Weight decay at the start of the run."),
        "weight_decay_end": (o.weight_decay_end, r.NOT_NEGATIVE,
                             "Weight decay at the end of the run; it changes along a half cosine."),
        "clip": (o.clip, r.GREATER_THAN_ZERO, "Gradients are clipped to this global norm."),
        "warmup": (o.warmup, r.FRACTION, "Fraction of the run in which the learning rate rises to its peak."),
        "warmup_initial": (o.warmup_initial, r.FRACTION, "Learning rate at the start, as a fraction of the peak."),
        "flat": (o.flat, r.FRACTION, "Fraction of the steps after warm-up that stay at the peak."),
        "final": (o.final, r.FRACTION, "Learning rate at the end, as a fraction of the peak, after a linear decay."),
    }
    return {name: Setting(changes.get(name, default), limits, line) for name, (default, limits, line) in lines.items()}


def _train(batch_size: int, steps: int) -> dict[str, Setting]:
    """Declares the training settings that both stages have."""
    return {
        "batch_size": Setting(batch_size, r.POSITIVE, "Images per step, over all devices."),
        "microbatches": Setting(1, r.POSITIVE, "Parts into which a batch is divided to save memory; their gradients "
                                               "are accumulated."),
        "steps": Setting(steps, r.POSITIVE, "Total number of steps."),
        "log_every": Setting(LoopSettings.log_every, r.POSITIVE, "Steps between two lines of metrics."),
        "evaluate_every": Setting(LoopSettings.evaluate_every, r.POSITIVE,
                                  "Steps between two evaluations on held-out images."),
        "save_every": Setting(LoopSettings.save_every, r.POSITIVE, "Steps between two checkpoints."),
        "keep": Setting(LoopSettings.keep, r.POSITIVE, "Number of latest checkpoints to keep."),
        "keep_every": Setting(LoopSettings.keep_every, r.COUNT,
                              "Steps between two checkpoints that are kept for good, for example to evaluate them "
                              "later with resume_step; 0 keeps none."),
        "skip_nonfinite": Setting(LoopSettings.skip_nonfinite, r.COUNT,
                                  "Steps with a NaN or infinite loss or gradient that are skipped before the run "
                                  "stops."),
    }


# The settings by section. The full name of a setting is SECTION.NAME.
_SECTIONS: dict[str, dict[str, Setting]] = {
    "": {
        "seed": Setting(0, r.SEED, "Seed of all random numbers of a training."),
        "resume_step": Setting(-1, r.CHECKPOINT, "Step of the checkpoint that a training goes on from, or that sample, "
                                                 "edit, evaluate, aliasing and export use; -1 takes the latest. It is "
                                                 "a step of stage 1 with --mode=tokenizer, otherwise of stage 2."),
        "image_size": Setting(256, r.SIDE, "Side of the square images, in pixels."),
        "grid_sizes": Setting(GRID_SIZES["var10"], r.GRIDS, "Sides of the token maps, coarse to fine; the last is "
                                                            "image_size divided by the tokenizer's stride."),
    },
    "mesh": {  # the devices form a grid, data x fsdp
        "data": Setting(-1, r.MESH_AXIS, "Devices along the axis that divides only the batch; -1 takes all that are "
                                         "left."),
        "fsdp": Setting(1, r.MESH_AXIS, "Devices along the axis that also divides parameters and optimizer state."),
    },
    "data": {
        "source": Setting("tfds:imagenet2012", r.SOURCE, "The images: photos, npz:PATH, folder:PATH, array_record:PATH "
                                                          "(from --mode=convert, also array_record:gs://...) or "
                                                          "tfds:NAME."),
        "num_classes": Setting(SourceSettings.num_classes, r.CLASS_COUNT,
                               "Number of classes; None takes the source's."),
        "class_depth": Setting(SourceSettings.class_depth, r.COUNT,
                               "Levels of sub-folders that name a class: 2 makes dog/poodle a class; 0 means 1, but "
                               "refuses classes whose images are all in deeper sub-folders."),
        "max_unreadable": Setting(SourceSettings.max_unreadable, r.FRACTION,
                                  "Fraction of the images of a folder, or of a conversion, that may be skipped as "
                                  "unreadable; one always may."),
        "sixteen_bit_max": Setting(SourceSettings.sixteen_bit_max, r.SIXTEEN_BIT_MAX,
                                   "Value of white in 16-bit images, 4095 for a 12-bit camera; 0 derives it from the "
                                   "largest value in all images of a folder."),
        "resize_ratio": Setting(1.125, r.RESIZE_RATIO, "Short side before cropping, as a multiple of image_size; 0 "
                                                       "crops at native resolution."),
        "flip": Setting(False, r.SWITCH, "Mirrors half of the training crops."),
        "num_workers": Setting(8, r.COUNT, "Processes that prepare batches; 0 uses threads of the training process."),
        "validation_examples": Setting(2048, r.POSITIVE, "Largest number of held-out crops to evaluate."),
        "crops_per_image": Setting(1, r.POSITIVE, "Crops of every held-out image."),
        "tokens": Setting("", r.PLACE, "Folder of tokens that --mode=encode wrote, also gs://..., for stage 2; empty "
                                       "tokenizes every batch."),
        "token_examples": Setting(0, r.COUNT, "Crops that stage 2 encodes into the workdir before it starts; 0 "
                                              "tokenizes every batch."),
    },
    "focus": {
        "psf": Setting(Pyramid.psf, r.NAME, "Blur: disk, gaussian or none."),
        "schedule": Setting(Pyramid.schedule, r.NAME, "Radii over the scales: cosine or nyquist."),
        "downsample": Setting(Pyramid.downsample, r.NAME, "Downsampling after the blur: bilinear, stride or area."),
        "rho_max": Setting(12.0, r.GREATER_THAN_ZERO, "Largest radius, in pixels of the image. It should grow with "
                                                      "the factor by which the coarsest view is reduced; the paper's "
                                                      "is 12 for the factors 8, 4, 2."),
        "noise_first": Setting(Pyramid.noise_first, r.NOT_NEGATIVE, "Standard deviation of the noise on the coarsest "
                                                                    "view, while tokenizers train."),
        "noise_last": Setting(Pyramid.noise_last, r.NOT_NEGATIVE, "Standard deviation of the noise on the finest "
                                                                  "view."),
        "implementation": Setting(Pyramid.implementation, r.NAME, "How the blur is computed: matrices, convolution or "
                                                                  "auto (depends on the platform); see "
                                                                  "focus/psf.py."),
    },
    "tokenizer": {
        "pretrained": Setting("", r.PLACE, "A workdir or an exported folder whose tokenizers this run uses instead of "
                                           "training stage 1, an official vae_ch160v4096z32.pth, or small for those "
                                           "of the model that comes with the package."),
        "perceptual_network": Setting("efficientnet_lite0", r.PATH,
                                      "Network of loss.perceptual: efficientnet_lite0, vgg16:PATH (torchvision's file) "
                                      "or none."),
    },
    "tokenizer.model": {
        "pyramid": Setting("focus", r.one_of(PYRAMIDS), "What the token maps describe: focused views, or VAR's area "
                                                        "averages of one encoding."),
        "residual": Setting(False, r.SWITCH, "Residual quantization over the scales; sampling is then exactly VAR's."),
        "vocab_size": Setting(8192, r.POSITIVE, "Number of codes in the structure codebook."),
        "latent_channels": Setting(32, r.POSITIVE, "Channels of a code."),
        "num_phi": Setting(4, r.COUNT, "Convolutions applied to the upsampled codes and shared by the scales; 0 uses "
                                       "none."),
        "channels": Setting(160, r.POSITIVE, "Channels of the autoencoder's first level."),
        "channel_multipliers": Setting((1, 1, 2, 2, 4), r.MULTIPLIERS, "Channels of the autoencoder's levels, as "
                                                                       "multiples of the first; n levels have stride "
                                                                       "2^(n - 1)."),
        "num_residual_blocks": Setting(2, r.POSITIVE, "Residual blocks per level."),
        "norm_groups": Setting(32, r.POSITIVE, "Groups of the autoencoder's group normalizations."),
        "dtype": Setting("bfloat16", r.DTYPE, "Data type that the networks of stage 1 compute in."),
        "remat": Setting("products", r.TOKENIZER_REMAT, "What the backward pass recomputes: nothing, whole blocks, or "
                                                        "all but their convolutions."),
    },
    "tokenizer.alias": {
        "shared": Setting(False, r.SWITCH, "Uses the structure tokenizer for the alias residuals too."),
        "vocab_size": Setting(512, r.POSITIVE, "Number of codes in the alias codebook."),
        "latent_channels": Setting(16, r.POSITIVE, "Channels of a code."),
        "channels": Setting(256, r.POSITIVE, "Channels of the alias autoencoder."),
        "num_residual_blocks": Setting(2, r.COUNT, "Residual blocks of the alias encoder, and as many of the decoder."),
        "norm_groups": Setting(32, r.POSITIVE, "Groups of the alias autoencoder's group normalizations."),
    },
    "tokenizer.loss": {
        "l1": Setting(TokenizerLosses.l1, r.NOT_NEGATIVE, "Weight of the absolute pixel error."),
        "l2": Setting(TokenizerLosses.l2, r.NOT_NEGATIVE, "Weight of the squared pixel error."),
        "view": Setting(TokenizerLosses.view, r.NOT_NEGATIVE, "Weight of the error between the decoded coarser latents "
                                                              "and their views."),
        "consistency": Setting(TokenizerLosses.consistency, r.NOT_NEGATIVE,
                               "Weight of the loss that ties coarser latents to the finest one; only for residual "
                               "focus pyramids."),
        "commitment": Setting(TokenizerLosses.commitment, r.NOT_NEGATIVE, "Commitment weight of the quantizers."),
        "alias": Setting(TokenizerLosses.alias, r.NOT_NEGATIVE, "Weight of the alias tokenizer's terms."),
        "perceptual": Setting(TokenizerLosses.perceptual, r.NOT_NEGATIVE, "Weight of the perceptual loss; see "
                                                                          "docs/measurements/perceptual.md."),
    },
    "tokenizer.revival": {
        "every": Setting(Revival.every, r.POSITIVE, "Steps between two revivals of unused codes."),
        "stop_fraction": Setting(Revival.stop_fraction, r.FRACTION, "Fraction of the run after which no code is "
                                                                    "revived."),
    },
    "tokenizer.adversarial": {
        "weight": Setting(AdversarialSettings.weight, r.NOT_NEGATIVE, "Weight of the adversarial loss; 0 trains "
                                                                      "without a discriminator."),
        "start": Setting(AdversarialSettings.start, r.COUNT, "Step at which the adversarial loss begins."),
        "cap": Setting(AdversarialSettings.cap, r.GREATER_THAN_ZERO, "Upper bound of the adaptive weight."),
    },
    "tokenizer.discriminator": {
        "channels": Setting(64, r.POSITIVE, "Channels of the discriminator's first layer."),
        "num_layers": Setting(3, r.POSITIVE, "Strided layers of the discriminator."),
        "norm_groups": Setting(32, r.POSITIVE, "Groups of the discriminator's group normalizations."),
    },
    "tokenizer.optimizer": _optimizer(1e-4, b1=0.9, b2=0.99, weight_decay=0.0, weight_decay_end=0.0),
    "tokenizer.discriminator_optimizer": _optimizer(1e-4, b1=0.5, b2=0.9, weight_decay=0.0, weight_decay_end=0.0),
    "tokenizer.train": _train(256, 100_000),
    "generator": {
        "architecture": Setting(Transformer.architecture, r.one_of(ARCHITECTURES), "The student: VAR's transformer, or "
                                "M-VAR's, whose attention stays within a scale and whose Mamba-2 mixers carry a state "
                                "from scale to scale."),
        "init_from": Setting("", r.PATH, "A workdir, an exported folder, or an official file such as var_d16.pth, "
                                         "whose transformer stage 2 starts from; small is the model that comes with "
                                         "the package. A workdir without a run draws with it."),
        "init_classes": Setting("same", r.one_of(("same", "new")), "Whether this run's classes are those of init_from "
                                "(same) or others (new); new initializes their embedding again, except for the null "
                                "class."),
    },
    "generator.model": {
        "depth": Setting(16, r.POSITIVE, "Number of transformer blocks."),
        "width": Setting(1024, r.POSITIVE, "Width of the residual stream."),
        "num_heads": Setting(16, r.POSITIVE, "Number of attention heads."),
        "qk_norm": Setting(True, r.SWITCH, "Normalizes queries and keys, with a learned temperature per head."),
        "shared_modulation": Setting(False, r.SWITCH, "Shares one AdaLN among the blocks, as VAR's d36 does."),
        "gamma_init": Setting(1e-3, r.NOT_NEGATIVE, "Initial scale of the AdaLN gates."),
        "drop_path_rate": Setting(0.1 * 16 / 24, r.BELOW_ONE, "Stochastic depth rate of the last block; the rate grows "
                                                              "linearly with depth."),
        "remat": Setting("blocks", r.GENERATOR_REMAT, "What the backward pass recomputes: nothing, whole blocks, or "
                                                      "all but matrix products."),
        "attention": Setting("auto", r.NAME, "Attention kernel: prefix (runs everywhere), splash (TPUs) or cudnn "
                                             "(GPUs); auto is prefix. See models/attention.py."),
        "dtype": Setting("bfloat16", r.DTYPE, "Data type that the transformer computes in."),
    },
    "generator.teacher": {
        "enabled": Setting(TeacherSettings.enabled, r.SWITCH, "Trains a teacher and distils it into the student; "
                                                              "without it, stage 2 trains the student alone."),
        "share_weights": Setting(TeacherSettings.share_weights, r.SWITCH, "Runs the student's last blocks a second "
                                                                          "time as the teacher, instead of a second "
                                                                          "network."),
        "train_shared": Setting(TeacherSettings.train_shared, r.SWITCH,
                                "Lets the teacher's loss train the shared weights."),
        "num_alias_blocks": Setting(TeacherSettings.num_alias_blocks, r.POSITIVE, "Number of last blocks that read "
                                                                                  "alias tokens, 1 or 2."),
        "num_alias_scales": Setting(TeacherSettings.num_alias_scales, r.POSITIVE, "Number of last scales at which the "
                                                                                  "teacher uses alias tokens."),
        "gate": Setting(TeacherSettings.gate, r.NAME, "Gate of the alias stream: learned (Eq. 11) or none (Eq. 10)."),
        "alias": Setting(TeacherSettings.alias, r.one_of(EVIDENCE), "Alias tokens that the teacher reads: the image's "
                         "own, those of another image of its class (placebo), or none (zeros instead of codes)."),
        "logit_weight": Setting(TeacherSettings.logit_weight, r.NOT_NEGATIVE, "Weight of the loss that distils "
                                                                              "logits."),
        "feature_weight": Setting(TeacherSettings.feature_weight, r.NOT_NEGATIVE, "Weight of the loss that distils "
                                                                                  "features."),
    },
    "generator.optimizer": _optimizer(1e-4),
    "generator.train": _train(256, 400_000) | {
        "label_dropout": Setting(0.1, r.FRACTION, "Fraction of labels replaced by the null class, for guidance."),
        "ema_decay": Setting(0.0, r.BELOW_ONE, "Decay of the student's moving average, which then draws the images; 0 "
                                               "keeps no average."),
        "samples_per_class": Setting(6, r.POSITIVE, "Samples per class in the pictures that training writes."),
    },
    "log": {
        "wandb": Setting("", r.NAME, "Project of Weights & Biases to which metrics and pictures are copied; empty "
                                     "copies none."),
    },
    "profile": {
        "steps": Setting((), r.STEPS, "First and last step of each stage to trace into WORKDIR/STAGE/profile; () "
                                      "traces none."),
    },
    "sampling": {
        "cfg": Setting(SamplingSettings.cfg, r.GUIDANCE, "Classifier-free guidance at the last scale in VAR's "
                       "convention, where 0 is unguided. In the convention of DiT and others, where 1 is unguided, it "
                       "is a ramp from 1 at the first scale to 1 + cfg at the last."),
        "top_k": Setting(SamplingSettings.top_k, r.COUNT, "Draws only from the k most likely codes; 0 draws from all."),
        "top_p": Setting(SamplingSettings.top_p, r.FRACTION, "Draws only from the most likely codes of this "
                                                             "probability mass; 0 draws from all."),
        "smooth": Setting(SamplingSettings.smooth, r.SWITCH, "Feeds back mixtures of codes: smoother pictures, worse "
                                                             "FID."),
    },
    "convert": {
        "source": Setting("", r.PATH, "What --mode=convert reads: parquet:PATH or tar:PATH, each a file or a folder of "
                                      "such files, or folder:PATH, as in data.source."),
        "output": Setting("", r.PLACE, "Folder for the packed images, also gs://...; default WORKDIR/images."),
    },
    "encode": {
        "passes": Setting(1, r.POSITIVE, "Passes over all training images."),
        "output": Setting("", r.PLACE, "Folder for the tokens, also gs://...; default WORKDIR/tokens."),
        "shard_size": Setting(8192, r.POSITIVE, "Examples per file."),
        "batch_size": Setting(32, r.POSITIVE, "Crops that a device encodes at a time."),
    },
    "sample": {
        "classes": Setting(DrawSettings.classes, r.CLASSES, "Classes to draw, by number or name; empty draws all."),
        "count": Setting(DrawSettings.count, r.POSITIVE, "Total number of images, divided evenly among the classes."),
        "seed": Setting(DrawSettings.seed, r.SEED, "Seed; an image depends only on the seed, its number and its "
                                                   "class."),
        "batch_size": Setting(DrawSettings.batch_size, r.POSITIVE, "Images drawn at a time."),
        "format": Setting(DrawSettings.format, r.one_of(FORMATS), "One picture, a folder of PNG files, or ADM's .npz."),
        "output": Setting(DrawSettings.output, r.PATH, "Directory; default WORKDIR/samples."),
    },
    "edit": {
        "image": Setting("", r.PATH, "The image file to edit."),
        "mask": Setting("", r.PATH, "The part to paint: a mask file that is white there, box:LEFT,TOP,RIGHT,BOTTOM or "
                                    "outside:LEFT,TOP,RIGHT,BOTTOM."),
        "label": Setting("0", r.NAME, "Class to paint, by number or name."),
        "count": Setting(4, r.POSITIVE, "Number of images to paint."),
        "seed": Setting(0, r.SEED, "Seed of the painted parts."),
    },
    "demo": {
        "port": Setting(7860, r.PORT, "Port of the page, which is served on 127.0.0.1 only."),
    },
    "evaluate": {
        "parts": Setting(STAGES, r.PARTS, "What is measured: tokenizer, generator or both."),
        "features": Setting("efficientnet_lite0", r.PATH, "Feature network: efficientnet_lite0, which is installed, "
                            "efficientnet_lite1, inception (FID's, downloaded once) or inception:PATH."),
        "samples": Setting("", r.PATH, "A folder or ADM's .npz to measure instead of the workdir's generator."),
        "count": Setting(50_000, r.COMPARABLE, "Number of samples, the same for every class, drawn with the settings "
                                               "of sampling."),
        "seed": Setting(0, r.SEED, "Seed of the samples."),
        "reference": Setting("validation", r.PATH, "What samples are compared with: validation or train (crops of "
                             "data.source), a folder, an .npz with x, or ADM's .npz of images or moments."),
        "reference_count": Setting(50_000, r.COMPARABLE, "Largest number of crops of data.source to compare with."),
        "batch_size": Setting(32, r.POSITIVE, "Samples and reconstructions that a device makes at a time."),
        "during_training": Setting(0, r.COMPARABLE_OR_OFF, "Samples that stage 2 draws and compares at every "
                                                           "evaluation; 0 draws none."),
    },
    "aliasing": {
        "images": Setting(16, r.POSITIVE, "Crops that views and gates are measured on."),
        "samples": Setting("", r.PATH, "Generated images: a folder or .npz; default the newest samples in the "
                                       "workdir."),
    },
    "report": {
        "compare": Setting((), r.PATHS, "Workdirs to show next to this one."),
        "reference": Setting("", r.PATH, "Curves of healthy runs (see benchmarks/reference.py): a file, or the name of "
                                         "shipped ones, such as tiny."),
    },
    "plan": {
        "topology": Setting("", r.NAME, "The machine: tpu:v5e:4x4, tpu:v5p:4x4x4, gpu:a100:1x8 (hosts x GPUs per "
                                        "host), ..."),
        "programs": Setting(("tokenizer", "generator", "sample"), r.PROGRAMS, "Programs to compile."),
        "utilization": Setting(0.4, r.SHARE, "Fraction of the chips' peak that the estimated days assume."),
        "search_batch": Setting(False, r.SWITCH, "Searches for the largest batch that fits."),
        "optimization": Setting("O1", r.one_of(("O0", "O1", "O2", "O3")), "XLA's optimization level; O1 compiles "
                                                                         "faster, but the program may need more "
                                                                         "memory."),
    },
    "export": {
        "format": Setting("var", r.one_of(("var", "sampler", "folder")),
                          "var: files for PyTorch's VAR code; sampler: one file that draws images without this "
                          "package's models; folder: weights, config, model card and pictures to hand over."),
        "output": Setting("", r.PATH, "The file, NAME.safetensors or NAME.zip, or the folder; default "
                                      "student.safetensors, sampler.zip or model in WORKDIR."),
        "dtype": Setting("float32", r.one_of(("float32", "float16", "bfloat16")), "Data type of the weights in an "
                                                                                  "exported folder."),
        "license": Setting("", r.NAME, "Licence that the model card of an exported folder names, such as cc-by-4.0."),
        "batch_size": Setting(4, r.POSITIVE, "Images that an exported sampler draws at a time."),
        "allow_differences": Setting(False, r.SWITCH, "Also writes a tokenizer that VAR's code decodes only after the "
                                                      "changes that are printed."),
    },
}
SETTINGS: dict[str, Setting] = {f"{section}.{name}".lstrip("."): setting
                                for section, settings in _SECTIONS.items() for name, setting in settings.items()}


def get_config() -> ConfigDict:
    """Returns the defaults, locked: a setting that is not in the table cannot be added."""
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
