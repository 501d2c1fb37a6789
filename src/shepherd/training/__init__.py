"""How a client's examples become gradients, and gradients steps."""
