"""Local objectives, one file each: `[tuning.objective] name = "sft"` is `sft.py`."""
