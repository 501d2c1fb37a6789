"""The trainer: from a client's examples to gradients, and from gradients to steps."""
