"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

run_file = click.argument("run_file", type=click.Path(path_type=Path), metavar="RUN.toml")
overrides = click.argument("overrides", nargs=-1, metavar="[key=value ...]")
run_folder = click.argument("folder", type=click.Path(path_type=Path), metavar="RUN_FOLDER")
base_url = click.option("--base-url", metavar="URL", help="Address of the judge, if it is not OpenAI's.")
key_env = click.option(
    "--key-env", metavar="NAME", help="Environment variable that holds the judge's key; '' if there is none."
)


def also_json(file: str) -> Callable[[Any], Any]:
    """The option that copies a command's file of figures to another place."""
    return click.option(
        "--json",
        "json_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=f"Also write {file} there.",
    )
