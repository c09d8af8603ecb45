"""Checks and opens what a training needs before it starts: images, and parameters that come from elsewhere."""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from refocus_jax.config import build, stages
from refocus_jax.config.run import Run, open_run
from refocus_jax.pretrained import parameters
from refocus_jax.pretrained.loading import MODEL, TOKENIZER, weight_file
from refocus_jax.runtime.digests import digests
from refocus_jax.training import encode


class Prepared(NamedTuple):
    """A run that may start.

    Attributes:
      run: The run.
      tokenizers: The parameters of the tokenizers if the checks had to read them; None if stage 2 has to read them.
      student: The parameters of the file that stage 2 starts from, on the host; None if there is none.
    """

    run: Run
    tokenizers: Any
    student: Any


def prepare(c: ConfigDict, workdir: str, resumes: str = "generator") -> Prepared:
    """Opens the data, runs all checks that a config can fail, and writes config.json.

    Args:
      c: The config.
      workdir: The directory of the run.
      resumes: The stage that `resume_step` refers to.

    Raises:
      ValueError: The config, the data and the files that they name contradict each other.
      FileNotFoundError: A file or folder is missing.
    """
    run = open_run(c, workdir, resumes)
    prepared = Prepared(run, _tokenizers(run), _student(run))
    known = digests(prepared.tokenizers) if prepared.tokenizers else {}
    if c.data.tokens or c.data.token_examples:
        untrained = not known and stages.trained(run.workdir, "tokenizer") is None
        expected = stages.token_description(c, run.train, {"structure": "not trained yet"} if untrained else known)
        if c.data.tokens:
            encode.check(c.data.tokens, expected)
    stages.check_tokenizers(run.workdir, known, c.tokenizer.pretrained)
    if c.evaluate.during_training:
        build.open_reference(c)
    run.write_config()
    return prepared


def _tokenizers(run: Run) -> Any:
    """Reads the tokenizers of stage 2 if something is compared with them now; otherwise only checks that they fit."""
    c, source = run.config, run.config.tokenizer.pretrained
    generator = stages.trained(run.workdir, "generator")
    if source:
        try:
            if c.data.tokens or generator or weight_file(source, TOKENIZER):
                return parameters.tokenizer(c, source, run.mesh).params
            parameters.check_tokenizer(c, source, run.mesh)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"tokenizer.pretrained is {source!r}: {error}") from error
    elif generator:
        before = stages.trained(run.workdir, "tokenizer", run.resume_step("tokenizer"))
        stages.check_tokenizers_stay(run.workdir, before, c.tokenizer.train.steps)
        return parameters.tokenizer(c, run.workdir, run.mesh).params
    return None


def _student(run: Run) -> Any:
    """Reads the parameters in files that stage 2 starts from; those of a workdir are only checked, and read later."""
    c, source = run.config, run.config.generator.init_from
    if not source:
        return None
    any_classes = c.generator.init_classes == "new"
    try:
        if weight_file(source, MODEL):
            return parameters.student_of_file(c, run.num_classes, source, any_classes)
        parameters.check_student(c, run.num_classes, source, run.mesh, any_classes=any_classes)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"generator.init_from is {source!r}: {error}") from error
    return None
