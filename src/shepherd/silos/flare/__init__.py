"""A federation of silos on NVIDIA FLARE: the one package that knows it."""
