"""`python -m shepherd` is the command `shepherd`."""

from shepherd.ui.cli.main import start

start()
