"""The base of all configs: the paper's settings at 256 px. A config file holds its differences from this one.

Arguments that every config takes after a colon (`configs/d16.py:k4,noteacher`):
  k4           grids (2, 4, 8, 16), the paper's K = 4: rho = 12, 9, 3, 0 fits exactly, and 340 tokens instead of 680
  residual     residual quantization over the focus pyramid: sampling is VAR's to the letter
  var          Table 2: VAR's pyramid, no teacher
  norefocus    Table 2: no blur, so L = D, and the alias stream holds nothing but noise
  gaussian     Table 2: a Gaussian of the disk's second moment instead of the disk
  noteacher    Table 2: the student alone
  shared       Table 2: one encoder and one codebook for structure and alias
  var_recipe   VAR's batch and epochs on ImageNet instead of the paper's 400,000 steps of 256
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from refocus_jax.focus import GRID_SIZES

IMAGENET_TRAIN_IMAGES = 1_281_167


def get_config() -> ConfigDict:
    """The base config; `apply_arguments` is called by each config after its own changes."""
    c = ConfigDict()
    c.seed = 0
    c.image_size = 256
    c.grid_sizes = GRID_SIZES["var10"]  # sides of the token maps, coarse to fine; the last is image_size / stride

    # Devices as data x fsdp, -1 for the rest: examples are divided among all of them, parameters and optimizer state
    # among those along fsdp.
    c.mesh = ConfigDict(dict(data=-1, fsdp=1))

    c.data = ConfigDict()
    c.data.source = "tfds:imagenet2012"  # photos, npz:PATH, folder:PATH or tfds:NAME
    c.data.num_classes = placeholder(int)  # None: as many as the source has
    # Of a folder: 2 makes dog/poodle a class; 0 is 1, and refuses classes whose images all lie in sub-folders.
    c.data.class_depth = 0
    c.data.max_unreadable = 0.01  # share of a folder's images that may be skipped; a single one always may
    # White in images of 16 bits: 4095 in those of a 12-bit camera. 0: white of 8, 10, 12, 14 or 16 bits, by the
    # largest value of all images of a folder.
    c.data.sixteen_bit_max = 0
    c.data.resize_ratio = 1.125  # short side before the crop, in image sizes; 0 crops at native resolution
    c.data.flip = False
    c.data.num_workers = 8
    c.data.validation_examples = 2048
    c.data.crops_per_image = 1  # of every held-out image
    # Stage 2 tokenizes every batch on the fly, unless it is given a folder that --mode=encode wrote, or told how many
    # crops to encode into the workdir before it starts.
    c.data.tokens = ""
    c.data.token_examples = 0
    # --mode=encode: passes over all training images; the folder, default WORKDIR/tokens; examples in a file, and crops
    # that a device encodes at a time.
    c.encode = ConfigDict(dict(passes=1, output="", shard_size=8192, batch_size=32))

    c.focus = ConfigDict()
    c.focus.psf = "disk"
    c.focus.schedule = "cosine"
    c.focus.downsample = "bilinear"
    c.focus.rho_max = 12.0  # pixels of the image; the paper's 12 at 256 px, see `resolution`
    c.focus.noise_first = 1e-3
    c.focus.noise_last = 1e-2
    c.focus.implementation = "auto"  # of the blur: matrices, or convolution by jax.lax; see focus/psf.py

    # A workdir whose tokenizers serve this run instead of stage 1, or an official vae_ch160v4096z32.pth.
    c.tokenizer_from = ""
    c.init_from = ""  # a workdir or an official var_d16.pth ... whose transformer stage 2 starts from
    c.init_classes = "same"  # as those of init_from; or new: their embedding starts again, but for the null class
    c.tokenizer = ConfigDict()
    c.tokenizer.pyramid = "focus"
    c.tokenizer.residual = False
    c.tokenizer.vocab_size = 8192
    c.tokenizer.latent_channels = 32
    c.tokenizer.num_phi = 4
    c.tokenizer.channels = 160
    c.tokenizer.channel_multipliers = (1, 1, 2, 2, 4)
    c.tokenizer.num_residual_blocks = 2
    c.tokenizer.norm_groups = 32
    c.tokenizer.dtype = "bfloat16"
    c.tokenizer.remat = "products"  # as generator.remat: none, blocks, or all but convolutions

    c.alias = ConfigDict()
    c.alias.shared = False
    c.alias.vocab_size = 512
    c.alias.latent_channels = 16
    c.alias.channels = 256
    c.alias.num_residual_blocks = 2
    c.alias.norm_groups = 32

    c.losses = ConfigDict(dict(l1=0.2, l2=1.0, view=1.0, consistency=0.25, commitment=0.25, alias=1.0,
                               perceptual=0.3))  # docs/perceptual.md
    c.perceptual = "efficientnet_lite0"  # the network of losses.perceptual; or vgg16:PATH (torchvision's), or none
    c.revival = ConfigDict(dict(every=50, stop_fraction=0.9))
    c.adversarial = ConfigDict(dict(weight=0.5, start=20_000, cap=100.0))
    c.discriminator = ConfigDict(dict(channels=64, num_layers=3, norm_groups=32))
    c.tokenizer_batch_size = 256
    c.tokenizer_batch_parts = 1  # gradients are summed over so many parts of a batch, to save memory
    c.tokenizer_optimizer = _optimizer(1e-4, b1=0.9, b2=0.99, weight_decay=0.0, weight_decay_end=0.0)
    c.discriminator_optimizer = _optimizer(1e-4, b1=0.5, b2=0.9, weight_decay=0.0, weight_decay_end=0.0)
    c.tokenizer_training = _training(100_000)

    c.generator = ConfigDict()
    c.generator.depth = 16
    c.generator.width = 1024
    c.generator.num_heads = 16
    c.generator.qk_norm = True
    c.generator.shared_modulation = False
    c.generator.gamma_init = 1e-3
    c.generator.drop_path_rate = 0.1 * 16 / 24
    c.generator.remat = "blocks"  # what the backward pass computes again: none, blocks, or all but matrix products
    c.generator.attention = "auto"  # splash on TPUs, cudnn on GPUs, prefix elsewhere; see models/attention.py
    c.generator.dtype = "bfloat16"
    c.label_drop = 0.1
    c.average_decay = 0.0  # of the student's running mean, which is then what images are drawn with; 0 is none

    c.teacher = ConfigDict(dict(enabled=True, share_weights=True, train_shared=False, num_alias_blocks=2,
                                num_alias_scales=2, gate="learned", logit_weight=0.5, feature_weight=1.0))
    c.generator_batch_size = 256
    c.generator_batch_parts = 1
    c.generator_optimizer = _optimizer(1e-4)
    c.generator_training = _training(400_000)

    # cfg is guidance at the last scale as VAR counts it: 0 is unguided. Where 1 is unguided (DiT and others) it is a
    # ramp from 1 at the first scale to 1 + cfg at the last. top_k, top_p: 0 is off.
    c.sampling = ConfigDict(dict(cfg=1.5, top_k=900, top_p=0.96, smooth=False))
    c.samples_per_class = 6  # in the pictures of training
    # --mode=sample; see evaluation/samples.py.
    c.draw = ConfigDict(dict(classes=(), count=64, seed=0, batch_size=8, format="grid", output=""))
    # --mode=aliasing: crops that views and gates are measured on; generated images, a folder or an npz file, default
    # what --mode=sample has written to WORKDIR/samples.
    c.aliasing = ConfigDict(dict(images=16, samples=""))
    # --mode=plan: which of tokenizer, generator and sample; the share of the chips' peak that days are reckoned with;
    # whether to look for the largest batch; and XLA's optimization level: O1 compiles sooner, and may need more memory.
    c.plan = ConfigDict(dict(programs=("tokenizer", "generator", "sample"), utilization=0.4, search_batch=False,
                             optimization="O1"))
    # --mode=evaluate: of tokenizer and generator; see evaluate.py.
    c.evaluation = ConfigDict()
    c.evaluation.parts = ("tokenizer", "generator")
    # What looks at the images: efficientnet_lite0, which is installed, inception (FID's own, downloaded once) or
    # inception:PATH.
    c.evaluation.features = "efficientnet_lite0"
    c.evaluation.samples = ""  # a folder or ADM's .npz instead of the workdir's generator; --samples is short for it
    c.evaluation.count = 50_000  # samples, drawn as config.sampling says, the same number of every class
    c.evaluation.seed = 0
    # What samples are compared with: "validation" or "train", crops of data.source, at most reference_count of them;
    # or a path: ADM's .npz of images or moments, an .npz with x, a folder.
    c.evaluation.reference = "validation"
    c.evaluation.reference_count = 50_000
    c.evaluation.batch_size = 32  # samples and reconstructions that a device makes at a time
    # Samples that stage 2 draws and compares with the reference at every evaluation; 0 is none.
    c.evaluation.during_training = 0
    # --mode=edit: an image file; a mask file, white where to paint anew, or box:LEFT,TOP,RIGHT,BOTTOM or outside:...;
    # the class, by number or name.
    c.edit = ConfigDict(dict(image="", mask="", label="0", count=4, seed=0))
    # --mode=report: workdirs to show beside this one; curves of healthy runs, see benchmarks/reference.py.
    c.report = ConfigDict(dict(compare=(), reference=""))
    c.lock()
    return c


def _optimizer(learning_rate: float, **changes) -> ConfigDict:
    """VAR's AdamW; see training/optimizer.py."""
    return ConfigDict(dict(learning_rate=learning_rate, b1=0.9, b2=0.95, weight_decay=0.05, weight_decay_end=0.05,
                           clip=2.0, warmup=0.02, warmup_initial=0.005, flat=0.05, final=0.1) | changes)


def _training(steps: int) -> ConfigDict:
    return ConfigDict(dict(steps=steps, log_every=100, evaluate_every=10_000, save_every=2_000, keep=2,
                           skip_nonfinite=0))


def resolution(c: ConfigDict, image_size: int, grid_sizes: tuple[int, ...]) -> None:
    """Another image size and its grids; the blur grows in proportion."""
    c.update(image_size=image_size, grid_sizes=grid_sizes)
    c.focus.rho_max = 12.0 * image_size / 256


def depth(c: ConfigDict, layers: int) -> None:
    """VAR's family of sizes: width 64 per layer, one head per layer, stochastic depth in proportion."""
    c.generator.update(depth=layers, width=64 * layers, num_heads=layers, drop_path_rate=0.1 * layers / 24)


def var_epochs(c: ConfigDict, epochs: int, batch_size: int) -> None:
    """VAR's stage-2 budget: its batch, its learning rate (which grows with the batch), its epochs on ImageNet."""
    c.generator_optimizer.learning_rate *= batch_size / 256
    c.generator_batch_size = batch_size
    c.generator_training.steps = epochs * IMAGENET_TRAIN_IMAGES // batch_size


def apply_arguments(c: ConfigDict, argument: str | None, **own) -> ConfigDict:
    """Applies the comma-separated arguments of a config; `own` maps a config's further ones to functions of c.

    Raises:
      ValueError: an argument that the config does not know.
    """
    known = {
        "k4": lambda c: c.update(grid_sizes=GRID_SIZES["k4"]),
        "residual": lambda c: c.tokenizer.update(residual=True),
        "var": lambda c: (c.tokenizer.update(pyramid="var", residual=True), c.teacher.update(enabled=False)),
        "norefocus": lambda c: c.focus.update(psf="none"),
        "gaussian": lambda c: c.focus.update(psf="gaussian"),
        "noteacher": lambda c: c.teacher.update(enabled=False),
        "shared": lambda c: c.alias.update(shared=True),
    } | own
    for name in filter(None, (argument or "").split(",")):
        if name not in known:
            raise ValueError(f"config argument {name!r} is unknown; choose from {', '.join(sorted(known))}")
        known[name](c)
    return c
