"""`shepherd generate` and `chat`: ask the adapters of a run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from shepherd.ui.cli.options import run_folder
from shepherd.ui.cli.silos import agreed, echo, trust


@click.command()
@run_folder
@click.argument("instruction", required=False)
@click.option("--prompts", metavar="FILE", help='One a line, or JSONL rows as the data have; "-" is stdin.')
@click.option("--context", default="", help="A text that the INSTRUCTION is about.")
@click.option("--n", type=click.IntRange(min=1), default=1, show_default=True, help="Answers to each prompt.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Of one answer.  [default: the run's]")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default="0, the likeliest answer"
)
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Of sampling."
)
@click.option("--seed", type=click.IntRange(min=0), help="Of sampling.  [default: a new one, which is said]")
@click.option("--round", type=click.IntRange(min=1), help="Of a kept checkpoint.  [default: the last]")
@click.option("--base", is_flag=True, help="Answer with the untuned base, to compare.")
@click.option("--json", "as_json", is_flag=True, help="A line an answer: prompt, answer, n, seed.")
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
        raise click.UsageError("--context belongs to an INSTRUCTION; rows of a JSONL file have their own")
    if options["n"] > 1 and not options["temperature"]:
        raise click.UsageError("--n needs a --temperature above 0; greedy answers are all the same")
    from shepherd.data.prompts import prompt_of, read, with_context
    from shepherd.run.folder import read_settings
    from shepherd.ui.terminal import answers
    from shepherd.ui.terminal.running import lines

    settings = read_settings(folder)
    if prompts is None:
        asked = [with_context(prompt_of(instruction or "", settings.data), context)]
    else:
        asked = read(prompts, settings.data)
    if options["temperature"] and options["seed"] is None:
        import secrets

        options["seed"] = secrets.randbelow(2**31)
        answers.said(f"seed {options['seed']}; the same answers again with --seed {options['seed']}")
    # read when torch is imported: threads that wait busily for the next small product take the cores from
    # each other, five times as much processor time a token beside other work
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from shepherd.run.answerer import Options, load_run, require_options  # torch takes seconds

    how = Options(**options)
    require_options(folder, how)
    with lines(sys.stderr):
        with answers.timed(f"loaded {settings.model.base}"):
            run = load_run(folder, consent=agreed(remote_code))
        found = run.answers(asked, how)
        answers.shown(found, several=len(asked) * options["n"] > 1, as_json=as_json)


@click.command()
@run_folder
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="On this machine.  [default: any]")
@click.option("--arm", "arms", multiple=True, help="Only these.  [default: all there are]")
@click.option("--open", "opened", is_flag=True, help="Open it in the browser.")
@click.option("--share", is_flag=True, help="Through a public link of Gradio's: anybody who has it can ask.")
@trust
def chat(
    folder: Path, port: int, arms: tuple[str, ...], opened: bool, share: bool, remote_code: bool
) -> None:
    """Ask base, local, federated and centralised models side by side, on a page of this machine."""
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
    )
