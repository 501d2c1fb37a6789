"""`shepherd generate` and `chat`: ask the adapters of a run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from shepherd.ui.cli.options import run_folder
from shepherd.ui.cli.silos import agreed, echo, trust


@click.command(short_help="Answer prompts with the adapter of a run.")
@run_folder
@click.argument("instruction", required=False)
@click.option(
    "--prompts",
    metavar="FILE",
    help='File with a prompt on each line, or with JSONL rows like the data; "-" is stdin.',
)
@click.option("--context", default="", help="Text that the INSTRUCTION refers to.")
@click.option("--n", type=click.IntRange(min=1), default=1, show_default=True, help="Answers to each prompt.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), help="Longest answer.  [default: as in the run file]"
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default="0, the likeliest answer",
    help="Temperature of the sampling.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Sample among the likeliest tokens that have this probability together.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), help="Seed of the sampling.  [default: a new one, printed]"
)
@click.option("--round", type=click.IntRange(min=1), help="Round of a kept checkpoint.  [default: the last]")
@click.option("--base", is_flag=True, help="Answer with the untuned base, for comparison.")
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Answer with this adapter of the same base: a PEFT folder, or another run.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON object for each answer: prompt, answer, n, seed."
)
@trust
def generate(
    folder: Path,
    instruction: str | None,
    prompts: str | None,
    context: str,
    as_json: bool,
    remote_code: bool,
    **options: Any,
) -> None:
    """Answer an INSTRUCTION, or each prompt of a file, with the adapter of a run.

    Answers go to stdout, all else to stderr. INSTRUCTION "-" reads prompts from stdin.
    """
    if instruction == "-":
        instruction, prompts = None, "-"
    if (instruction is None) == (prompts is None):
        raise click.UsageError("give an INSTRUCTION, or --prompts FILE")
    if prompts is not None and context:
        raise click.UsageError(
            "--context needs an INSTRUCTION; rows of a JSONL file have a context of their own"
        )
    if options["n"] > 1 and not options["temperature"]:
        raise click.UsageError("--n needs a --temperature above 0; greedy answers are all the same")
    from shepherd.data.prompts import prompt_of, read, remarks, with_context
    from shepherd.run.folder import read_settings
    from shepherd.ui.terminal import answers
    from shepherd.ui.terminal.running import plain_lines

    settings = read_settings(folder)
    if prompts is None:
        asked = [with_context(prompt_of(instruction or "", settings.data), context)]
    else:
        asked = read(prompts, settings.data)
        for sentence in remarks(asked):
            answers.print_stderr(sentence)
    if options["temperature"] and options["seed"] is None:
        import secrets

        options["seed"] = secrets.randbelow(2**31)
        answers.print_stderr(f"seed {options['seed']}; --seed {options['seed']} gives the same answers again")
    # Read when torch is imported. Threads that busily wait for the next small product take the cores from
    # each other: next to other work, a token costs five times as much processor time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from shepherd.run.answerer import Options, load_run, require_options  # torch takes seconds

    how = Options(**options)
    require_options(folder, how)
    with plain_lines(sys.stderr):
        with answers.timed(f"loaded {settings.model.base}"):
            run = load_run(folder, consent=agreed(remote_code))
        found = run.answers(asked, how)
        answers.print_answers(found, several=len(asked) * options["n"] > 1, as_json=as_json)


@click.command(short_help="Ask several models side by side, on a page.")
@run_folder
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port of 127.0.0.1.  [default: a free one]"
)
@click.option("--arm", "arms", multiple=True, help="Arm to load, once for each.  [default: all]")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="PEFT folder of the same base to ask as well; repeatable.",
)
@click.option("--open", "opened", is_flag=True, help="Open the page in the browser.")
@click.option(
    "--share", is_flag=True, help="Also serve it by a public Gradio link: anybody who has the link can ask."
)
@trust
def chat(
    folder: Path,
    port: int,
    arms: tuple[str, ...],
    adapters: tuple[Path, ...],
    opened: bool,
    share: bool,
    remote_code: bool,
) -> None:
    """Ask base, local, federated and centralised models side by side, on a page served to this machine."""
    from shepherd.run.folder import read_settings

    read_settings(folder)
    from shepherd.ui.chat.page import launch

    launch(
        folder,
        arms=arms or None,
        port=port or None,
        share=share,
        show=opened,
        echo=echo,
        consent=agreed(remote_code),
        adapters=adapters,
    )
