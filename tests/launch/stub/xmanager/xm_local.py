"""Executors, and an experiment that records."""

import contextlib
import json
import os
from pathlib import Path


class Local:
    Spec = type("LocalSpec", (), {})
    requirements = None


class Vertex:
    Spec = type("VertexSpec", (), {})

    def __init__(self, requirements=None):
        self.requirements = requirements


class Experiment:
    def __init__(self, title):
        self.record = {"title": title, "jobs": []}

    def package(self, packageables):
        """What was packaged, with the files of the folder that an image would be made of."""
        return [{"kind": p.kind, "spec": type(p.executor_spec).__name__, **p.settings, "files": sorted(
            str(path.relative_to(p.settings["path"])) for path in Path(p.settings["path"]).rglob("*")
            if path.is_file())} for p in packageables]

    def add(self, job):
        self.record["jobs"].append({"executable": job.executable, "executor": type(job.executor).__name__,
                                    "requirements": job.executor.requirements})


@contextlib.contextmanager
def create_experiment(experiment_title):
    experiment = Experiment(experiment_title)
    yield experiment
    Path(os.environ["RECORD"]).write_text(json.dumps(experiment.record))
