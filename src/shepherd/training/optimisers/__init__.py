"""Local optimisers, one file each: `[tuning.optimiser] name = "sgd"` is `sgd.py`."""
