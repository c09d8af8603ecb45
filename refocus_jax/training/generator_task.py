"""Stage 2 as a task of the training loop: the student, the teacher built on it, and the distillation between them."""

import dataclasses
import itertools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from refocus_jax.models.bound import Bound
from refocus_jax.models.randomness import fold_in
from refocus_jax.models.teacher import AliasHead, teach
from refocus_jax.models.tokenizer import DualTokenizer, flatten_tokens, to_unit_range
from refocus_jax.models.transformer import Captured, Transformer, layer_norm
from refocus_jax.training.accumulation import mean_over_parts

# Number of last student blocks whose activations the teacher uses, the maximum of num_alias_blocks. It is always two:
# XLA unrolls a scan over one block and fuses it differently, and the student would not train bit for bit as VAR.
CAPTURED_BLOCKS = 2

# What the teacher reads as alias tokens; all but the first are controls.
EVIDENCE = ("own", "class", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """The teacher and its losses for the student (docs/method.md).

    Attributes:
      enabled: Whether there is a teacher; without it, the student trains alone.
      share_weights: Whether the teacher uses the student's blocks; otherwise it has a second network.
      train_shared: Whether the teacher's loss trains shared weights (ablation).
      num_alias_blocks: M, the number of last blocks that read alias tokens, 1 or 2.
      num_alias_scales: S, the number of last scales at which the teacher uses alias tokens.
      gate: 'learned' (Eq. 11) or 'none' (Eq. 10).
      alias: What the teacher reads as alias tokens, one of EVIDENCE. 'own' are the image's. 'class' is a placebo: those
        of another image of its class, see `placebo`. 'none' are zero vectors instead of codes at every position: the
        network, its parameters and its FLOPs are the same, but it learns nothing about the image.
      logit_weight: lambda of the KL divergence between the logits.
      feature_weight: lambda of the difference between the features.
    """

    enabled: bool = True
    share_weights: bool = True
    train_shared: bool = False
    num_alias_blocks: int = 2
    num_alias_scales: int = 2
    gate: str = "learned"
    alias: str = "own"
    logit_weight: float = 0.5
    feature_weight: float = 1.0

    def __post_init__(self):
        if self.num_alias_blocks not in (1, 2):
            raise ValueError(f"generator.teacher.num_alias_blocks is {self.num_alias_blocks}; choose 1 or 2")
        if self.gate not in ("learned", "none"):
            raise ValueError(f"generator.teacher.gate is {self.gate!r}; choose 'learned' or 'none'")
        if self.alias not in EVIDENCE:
            raise ValueError(f"generator.teacher.alias is {self.alias!r}; choose one of {', '.join(EVIDENCE)}")
        if self.train_shared and not self.share_weights:
            raise ValueError("generator.teacher.train_shared is True but generator.teacher.share_weights is False: "
                             "nothing is shared; change one of them")


@flax.struct.dataclass
class GeneratorState:
    """Everything that stage 2 carries from step to step.

    Attributes:
      step: The number of updates so far.
      params: {"student": ..., "teacher": ...}; the teacher's part does not contain shared weights.
      opt_state: The optimizer state of each.
      average: The moving average of the student's parameters, or None.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    average: Any = None

    @property
    def sampled(self) -> Any:
        """The student's parameters that images are drawn with: the average if there is one."""
        return self.params["student"] if self.average is None else self.average


def token_losses(logits_blv: jax.Array, tokens_bl: jax.Array) -> jax.Array:
    """Computes the cross-entropy of every token in nats: (b, L)."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_blv, tokens_bl)


def token_hits(logits_blv: jax.Array, tokens_bl: jax.Array) -> jax.Array:
    """Tells for every token whether no other has a larger logit: (b, L) float32, 0 or 1.

    It compares the largest logits, not their indices, which XLA finds slowly on a CPU.
    """
    own = jnp.take_along_axis(logits_blv, tokens_bl[..., None], axis=-1)[..., 0]
    return (own >= logits_blv.max(axis=-1)).astype(jnp.float32)


def placebo(labels: jax.Array) -> jax.Array:
    """Chooses another image for every image of a batch: the next one of its class, or else the next one.

    The batch is read as a ring. Training batches are shuffled, so the next image of a class is a random one of it.

    Args:
      labels: The classes (b,) of two images or more.

    Returns:
      The numbers (b,) of the chosen images, int32; no image is chosen for itself.
    """
    b = len(labels)
    others = (jnp.arange(b)[:, None] + jnp.arange(1, b)[None]) % b
    nearest = jnp.argmax(labels[others] == labels[:, None], axis=1)  # 0, the next image, if there is none of the class
    return others[jnp.arange(b), nearest]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorTask:
    """Trains a student, and its teacher if enabled, on token maps.

    Batches hold `label` (b,) and either uint8 `image`, tokenized on the fly by the frozen tokenizers, or `structure`
    (b, L) and `alias` (b, L') from a token set. `frozen` is the parameter tree of the `DualTokenizer`.

    Attributes:
      tokenizer: The frozen tokenizers.
      student: The transformer to train.
      teacher: The settings of the teacher.
      optimizer: The optimizer; student and teacher have separate states.
      label_dropout: The fraction of labels that become the null class.
      microbatches: The number of parts of a batch whose gradients are accumulated.
      ema_decay: The decay of the student's moving average, at most (1 + step) / (10 + step); 0 keeps no average.
      name: The name of the stage.
    """

    tokenizer: DualTokenizer
    student: Transformer
    teacher: TeacherSettings
    optimizer: optax.GradientTransformation
    label_dropout: float = 0.1
    microbatches: int = 1
    ema_decay: float = 0.0
    name: str = "generator"

    def __post_init__(self):
        scales = len(self.student.grid_sizes)
        if self.teacher.enabled and not 1 <= self.teacher.num_alias_scales <= scales - 1:
            raise ValueError(f"generator.teacher.num_alias_scales is {self.teacher.num_alias_scales}; with {scales} "
                             f"grid_sizes choose 1 to {scales - 1}")
        if self.teacher.enabled and self.student.depth < CAPTURED_BLOCKS:
            raise ValueError(f"generator.model.depth is {self.student.depth}; the teacher uses the last "
                             f"{CAPTURED_BLOCKS} blocks: give at least that many, or generator.teacher.enabled=False")

    @property
    def alias_head(self) -> AliasHead:
        """The teacher's network for alias tokens."""
        student, teacher = self.student, self.teacher
        return AliasHead(grid_sizes=student.grid_sizes, width=student.width, num_heads=max(1, student.num_heads // 2),
                         num_blocks=teacher.num_alias_blocks, gate=teacher.gate == "learned",
                         attention=student.attention, dtype=student.dtype, parent=None)

    @property
    def first_alias_scale(self) -> int:
        """The scale at which the teacher begins."""
        return len(self.student.grid_sizes) - self.teacher.num_alias_scales

    @property
    def first_alias_token(self) -> int:
        """The position in the sequence at which the scales of the teacher begin."""
        return self.student.offsets[self.first_alias_scale]

    def init(self, key: jax.Array) -> GeneratorState:
        """Initializes the first state."""
        length, channels = self.student.offsets[-1] - self.student.offsets[1], self.student.latent_channels
        labels, inputs = jnp.zeros((1,), jnp.int32), jnp.zeros((1, length, channels))
        params = {"student": self.student.init(fold_in(key, "student"), labels, inputs)["params"]}
        if self.teacher.enabled:
            alias = self.tokenizer.alias
            assert alias is not None  # there is one if there is a teacher
            vectors = jnp.zeros((1, self.student.offsets[-2], alias.codebook.latent_channels))
            params["teacher"] = {"alias": self.alias_head.init(fold_in(key, "alias"), vectors)["params"]}
            if not self.teacher.share_weights:
                params["teacher"]["network"] = self.student.init(fold_in(key, "teacher"), labels, inputs)["params"]
        # Separate optimizer states, because the gradients of student and teacher are clipped separately.
        opt_state = {name: self.optimizer.init(tree) for name, tree in params.items()}
        average = params["student"] if self.ema_decay else None
        return GeneratorState(jnp.zeros((), jnp.int32), params, opt_state, average)

    def warm_start(self, state: GeneratorState, student: Any, new_classes: bool = False) -> GeneratorState:
        """Puts given parameters into the student of a first state, and into the teacher's own network if it has one.

        Args:
          state: The first state.
          student: The parameters.
          new_classes: Whether to keep the state's class embedding except for the null class.

        Returns:
          The changed state.
        """
        if new_classes:
            own = state.params["student"]["class_embedding"]
            student = {**student, "class_embedding": own.at[-1].set(student["class_embedding"][-1])}
        params = {**state.params, "student": student}
        if self.teacher.enabled and not self.teacher.share_weights:
            # A copy: the loop donates the state, and no buffer may be donated twice.
            params["teacher"] = {**params["teacher"], "network": jax.tree.map(jnp.copy, student)}
        average = jax.tree.map(jnp.copy, student) if self.ema_decay else None
        return dataclasses.replace(state, params=params, average=average)

    def tokens(self, frozen, batch) -> tuple[jax.Array, jax.Array | None]:
        """Returns structure tokens (b, L) and alias tokens (b, L') of a batch; the latter is None without a teacher."""
        if "image" not in batch:
            return batch["structure"], batch.get("alias")
        structure, alias = self.tokenizer.encode(frozen, to_unit_range(batch["image"]))
        return flatten_tokens(structure), flatten_tokens(alias) if self.teacher.enabled else None

    def evidence(self, alias_bl: jax.Array | None, classes: jax.Array) -> jax.Array | None:
        """Returns the alias tokens (b, L') that the teacher reads; `classes` (b,) are the images', none dropped."""
        if self.teacher.enabled and self.teacher.alias == "class":
            assert alias_bl is not None  # there are alias tokens if there is a teacher
            return alias_bl[placebo(classes)]
        return alias_bl

    def inputs(self, frozen, structure_bl: jax.Array) -> jax.Array:
        """Computes the student's inputs under teacher forcing: (b, L - p_1^2, c)."""
        offsets = self.student.offsets
        maps = [structure_bl[:, a:b].reshape(-1, p, p)
                for a, b, p in zip(offsets[:-1], offsets[1:], self.student.grid_sizes, strict=True)]
        inputs: Any = self.tokenizer.structure.quantizer.apply(
            {"params": frozen["structure"]["quantizer"]}, maps, method="generator_inputs")
        return inputs

    def student_logits(self, params, labels, inputs, keep=None) -> tuple[jax.Array, Captured | None]:
        """Computes the student's logits (b, L, V), and the activations that the teacher uses (None without one)."""
        captured = CAPTURED_BLOCKS if self.teacher.enabled else 0
        output: Any = self.student.apply({"params": params["student"]}, labels, inputs, keep, captured,
                                         self.first_alias_scale)
        return output

    def teach(self, params, frozen, captured: Captured, labels, inputs, alias_bl, keep=None):
        """Runs the teacher.

        Args:
          params: The parameters of student and teacher.
          frozen: The parameters of the tokenizers.
          captured: The student's activations; a teacher with its own network computes its own.
          labels: The classes (b,).
          inputs: The student's inputs.
          alias_bl: The alias tokens (b, L') that it reads, see `evidence`.
          keep: The factors of stochastic depth, or None.

        Returns:
          The teacher's output over the alias scales, and its logits before them, to which its loss also applies (None
          if weights are shared).
        """
        settings, before, alias = self.teacher, None, self.tokenizer.alias
        assert alias is not None  # there is one if there is a teacher
        if settings.share_weights:
            network = params["student"]
            if not settings.train_shared:
                network, captured = jax.lax.stop_gradient((network, captured))
        else:
            network = params["teacher"]["network"]
            own: Any = self.student.apply({"params": network}, labels, inputs, keep, CAPTURED_BLOCKS,
                                          self.first_alias_scale)
            logits, captured = own
            before = logits[:, :self.first_alias_token]
        vectors: Any = alias.apply({"params": self.tokenizer.alias_params(frozen)}, alias_bl, method="embed")
        if settings.alias == "none":
            vectors = jnp.zeros_like(vectors)
        head = Bound(self.alias_head, params["teacher"]["alias"])
        output = teach(Bound(self.student, network), head, captured, vectors, settings.num_alias_scales, keep)
        return output, before

    def loss(self, params, frozen, structure, alias, labels, keep):
        """Computes the losses of student and teacher on one batch; returns their sum and scalars for the log."""
        inputs = self.inputs(frozen, structure)
        logits, captured = self.student_logits(params, labels, inputs, keep)
        losses = token_losses(logits, structure)
        terms = {"cross_entropy": losses.mean()}
        accuracy = token_hits(logits, structure)
        if self.teacher.enabled:
            output, before = self.teach(params, frozen, captured, labels, inputs, alias, keep)
            start = self.first_alias_token
            teacher_losses = token_losses(output.logits, structure[:, start:])
            if before is not None:
                teacher_losses = jnp.concatenate([token_losses(before, structure[:, :start]), teacher_losses], axis=1)
            terms["teacher_cross_entropy"] = teacher_losses.mean()
            if self.teacher.logit_weight:
                teacher_log = jax.nn.log_softmax(jax.lax.stop_gradient(output.logits))
                student_log = jax.nn.log_softmax(logits[:, start:])
                terms["logit"] = self.teacher.logit_weight * jnp.mean(
                    jnp.sum(jnp.exp(teacher_log) * (teacher_log - student_log), axis=-1))
            if self.teacher.feature_weight:
                student_features = layer_norm(captured.outputs[-self.teacher.num_alias_blocks:, :, start:])
                teacher_features = layer_norm(jax.lax.stop_gradient(output.features))
                terms["feature"] = self.teacher.feature_weight * jnp.mean(
                    jnp.square(student_features - teacher_features))
        values = {f"loss/{name}": value for name, value in terms.items()} | {"accuracy": accuracy.mean()}
        for k, (a, b) in enumerate(itertools.pairwise(self.student.offsets)):
            values[f"cross_entropy/scale_{k + 1}"] = losses[:, a:b].mean()
            values[f"accuracy/scale_{k + 1}"] = accuracy[:, a:b].mean()
        return sum(terms.values()), values

    def update(self, state: GeneratorState, frozen, batch, key: jax.Array):
        """Makes one step; returns the new state and scalars for the log."""
        key = jax.random.fold_in(key, state.step)
        dropped = jax.random.bernoulli(fold_in(key, "label drop"), self.label_dropout, batch["label"].shape)
        labels = jnp.where(dropped, self.student.num_classes, batch["label"])
        keep = self.student.drop_path_factors(fold_in(key, "drop path"), labels.shape[0])
        batch = {**batch, "class": batch["label"], "label": labels,
                 "keep": None if keep is None else jnp.moveaxis(keep, 2, 0)}

        def gradient(part, number):
            del number
            structure, alias = self.tokens(frozen, part)
            alias = self.evidence(alias, part["class"])
            keep = None if part["keep"] is None else jnp.moveaxis(part["keep"], 0, 2)
            (total, values), gradient = jax.value_and_grad(self.loss, has_aux=True)(
                state.params, frozen, structure, alias, part["label"], keep)
            return (values | {"loss/total": total}, gradient), None

        (values, gradients), _ = mean_over_parts(gradient, self.microbatches, batch)
        params, opt_state = {}, {}
        for name in state.params:
            updates, opt_state[name] = self.optimizer.update(gradients[name], state.opt_state[name], state.params[name])
            params[name] = optax.apply_updates(state.params[name], updates)
            values[f"gradient_norm/{name}"] = optax.tree.norm(gradients[name])
        average = None
        if self.ema_decay:
            decay = jnp.minimum(self.ema_decay, (1 + state.step) / (10 + state.step))
            average = jax.tree.map(lambda a, b: a + (1 - decay) * (b - a), state.average, params["student"])
        return GeneratorState(state.step + 1, params, opt_state, average), values
