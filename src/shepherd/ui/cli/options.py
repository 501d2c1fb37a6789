"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

run_file = click.argument("run_file", type=click.Path(path_type=Path), metavar="RUN.toml")
overrides = click.argument("overrides", nargs=-1, metavar="[key=value ...]")
run_folder = click.argument("folder", type=click.Path(path_type=Path), metavar="RUN_FOLDER")
base_url = click.option("--base-url", metavar="URL", help="The judge's address, where it is not OpenAI's.")
key_env = click.option(
    "--key-env", metavar="NAME", help="The environment variable with the judge's key; '' for none."
)
