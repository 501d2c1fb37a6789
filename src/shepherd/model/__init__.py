"""The trainer: the only floor that imports torch, transformers and peft."""

import logging

# bitsandbytes, where it is installed, warns at its import of a faster kernel that our trainer does not use
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
