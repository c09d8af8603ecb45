"""One module for each `--mode` (train.py has three): `run(config, workdir)` does what the mode promises."""
