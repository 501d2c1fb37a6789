"""The trainer: the only floor that imports torch, transformers and peft."""
