"""Flags and modes, nothing else: python -m refocus_jax.main --config=configs/tiny.py --workdir=runs/tiny"""

import os
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from refocus_jax import aliasing, evaluate, experiment, generate, plan, report
from refocus_jax.runtime import processes
from refocus_jax.runtime.preemption import EXIT_CODE, Preempted

MODES = {
    "train": experiment.train,
    "tokenizer": lambda config, workdir: experiment.train_tokenizer(experiment.prepare(config, workdir)),
    "generator": lambda config, workdir: experiment.train_generator(experiment.prepare(config, workdir)),
    "encode": experiment.encode_data,
    "sample": generate.sample,
    "edit": generate.edit,
    "aliasing": aliasing.measure,
    "evaluate": lambda config, workdir: evaluate.evaluate(config, workdir, _SAMPLES.value),
    "report": report.write,
    "plan": lambda config, workdir: plan.plan(config, workdir, _TOPOLOGY.value),
}

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Config file, e.g. configs/tiny.py or "
                                          "configs/d16.py:k4,noteacher; single settings: --config.data.source=photos")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of this run; a run that stopped goes on from it.")
_MODE = flags.DEFINE_enum("mode", "train", sorted(MODES), "train: both stages, then samples; tokenizer: stage 1; "
                          "encode: training images to tokens, see --config.encode; generator: stage 2; sample: images "
                          "of a trained generator, see --config.draw; edit: paint part of an image anew, see "
                          "--config.edit; aliasing: what aliases in views, tokenizer and samples, see "
                          "--config.aliasing; evaluate: FID and other numbers, see --config.evaluation; report: a page "
                          "of one run or of several, see --config.report; plan: what a machine that is not here would "
                          "need, see --topology.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "What --mode=plan plans for: tpu:v5e:4x4, tpu:v5p:4x4x4, "
                                "gpu:a100:1x8 (hosts x GPUs of each), ...")
_SAMPLES = flags.DEFINE_string("samples", None, "What --mode=evaluate measures instead of samples of the workdir's "
                               "generator: a folder of images or an .npz file, as --config.evaluation.samples.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where several processes train "
                                   "together; under Slurm and on TPU pods they find each other without these flags.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0, with --coordinator.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    if not jax.config.jax_compilation_cache_dir:  # JAX_COMPILATION_CACHE_DIR chooses another
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/refocus_jax"))
    processes.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    config = _CONFIG.value.copy_and_resolve_references()
    try:
        MODES[_MODE.value](config, _WORKDIR.value)
    except Preempted as error:
        logging.warning("%s", error)
        sys.exit(EXIT_CODE)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
