"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

run_file = click.argument("run_file", type=click.Path(path_type=Path), metavar="RUN.toml")
overrides = click.argument("overrides", nargs=-1, metavar="[key=value ...]")
run_folder = click.argument("folder", type=click.Path(path_type=Path), metavar="RUN_FOLDER")
base_url = click.option("--base-url", metavar="URL", help="Address of the judge, if it is not OpenAI's.")
key_env = click.option(
    "--key-env", metavar="NAME", help="Environment variable that holds the judge's key; '' if there is none."
)
