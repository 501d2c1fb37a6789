"""The command `shepherd`: parse, build, loop over the rounds. Nothing heavy is imported before it is used.

An error that a person can fix is one line on stderr and exit code 2; Ctrl-C is exit code 130, SIGTERM 143.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from shepherd.errors import FolderError, ShepherdError, TemplateError
from shepherd.machine import malloc
from shepherd.progress import many
from shepherd.ui.cli.silos import agreed, echo, plugin, require_flare, silos, tracker, trust, wished
from shepherd.version import DISTRIBUTION
from shepherd.visible import in_this_process, shown

if TYPE_CHECKING:
    from shepherd.prepare import Division
    from shepherd.settings import RunSettings

_came = threading.Event()
"""Set once SIGTERM has come."""


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM, as Slurm, Kubernetes and `timeout` send it, stops a command as Ctrl-C does."""

    def stop(*_: object) -> None:
        _came.set()
        raise KeyboardInterrupt

    _came.clear()
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Commands(click.Group):
    """A group that says what is wrong in one sentence instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _terminated():
                return super().invoke(ctx)
        except ShepherdError as error:
            _fail(str(error))
        except ModuleNotFoundError as error:
            if find_spec("torch") is not None:
                raise
            _fail(
                f"{error.name} is not installed here, where only the server of a federation runs; for this"
                " command run pip install shepherd-fit"
            )
        except KeyboardInterrupt as stopped:
            number = signal.SIGTERM if _came.is_set() else signal.SIGINT
            _fail(str(stopped) or "stopped", 128 + number)  # as shells count
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            where = f" of {error.filename}" if error.filename else ""
            _fail(f"the disk{where} is full; free some space, then `shepherd resume` the run")


def _fail(message: str, code: int = 2) -> NoReturn:
    click.echo(f"shepherd: {shown(message)}", err=True)
    raise click.exceptions.Exit(code)


run_file = click.argument("run_file", type=click.Path(path_type=Path), metavar="RUN.toml")
overrides = click.argument("overrides", nargs=-1, metavar="[key=value ...]")
run_folder = click.argument("folder", type=click.Path(path_type=Path), metavar="RUN_FOLDER")
base_url = click.option("--base-url", metavar="URL", help="The judge's address, where it is not OpenAI's.")
key_env = click.option(
    "--key-env", metavar="NAME", help="The environment variable with the judge's key; '' for none."
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=DISTRIBUTION, prog_name="shepherd")
def main() -> None:
    """Federated instruction tuning of language models.

    Private data stay with their clients; small adapters travel.
    """


@main.command()
@run_file
@overrides
@click.option(
    "--silos", "kit", type=click.Path(path_type=Path), metavar="ADMIN_KIT", help="Over sites on a network."
)
@trust
@plugin
@tracker
def run(
    run_file: Path,
    overrides: tuple[str, ...],
    kit: Path | None,
    remote_code: bool,
    plugins: tuple[str, ...],
    trackers: tuple[str, ...],
) -> None:
    """Train as a run file says.

    Any key can be given again: federation.rounds=2 tuning.max_steps=3
    """
    from shepherd.folder import require_free
    from shepherd.plugins import require
    from shepherd.settings import read

    settings = read(run_file, wished(overrides, remote_code))
    require_free(settings.output)
    consent = agreed(remote_code, plugins, trackers)
    require(settings, consent.plugins)
    from shepherd.ui.terminal.going import train

    if kit is not None:
        require_flare()
        from shepherd.silos.coordinator import coordinate

        train(lambda: coordinate.open_run(settings, kit, consent=consent), Path(settings.output))
        return
    from shepherd.run import open_run  # torch takes seconds, a wrong key should not

    train(lambda: open_run(settings, consent=consent), Path(settings.output))


@main.command()
@run_folder
@click.option(
    "--silos",
    "kit",
    type=click.Path(path_type=Path),
    metavar="ADMIN_KIT",
    help="Of a run over sites, where the kit has moved.",
)
@trust
@plugin
@tracker
def resume(
    folder: Path,
    kit: Path | None,
    remote_code: bool,
    plugins: tuple[str, ...],
    trackers: tuple[str, ...],
) -> None:
    """Go on with a run that was stopped or killed, after its last finished round."""
    from shepherd.folder import is_finished, is_over_silos, read_settings

    rounds = read_settings(folder).federation.rounds
    consent = agreed(remote_code, plugins, trackers)
    if is_finished(folder):
        done = many(rounds, "round")
        echo(f"{folder} is finished already, after {done}; its adapter is in {folder / 'adapter'}")
        return
    from shepherd.ui.terminal.going import train

    if is_over_silos(folder):
        require_flare()
        from shepherd.silos.coordinator import coordinate

        train(lambda: coordinate.resume(folder, kit=kit, consent=consent), folder)
        return
    if kit is not None:
        raise FolderError(f"the run in {folder} is not over silos; resume it without --silos")
    from shepherd.run import resume

    train(lambda: resume(folder, consent=consent), folder)


@main.command()
@run_file
@overrides
@click.option("--local", "locals_", multiple=True, metavar="CLIENT", help="Also tunes alone.  [default: all]")
@click.option("--arm", "arms", multiple=True, metavar='"NAME: key=value ..."', help="A federated variant.")
@click.option(
    "--match",
    type=click.Choice(["both", "steps", "examples"]),
    default="both",
    show_default=True,
    help="What arms get the same number of; `both` trains the centralised arm twice, local ones by steps.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings of each arm."
)
@click.option("--max-calls", type=click.IntRange(min=0), help="At most so many requests to the judge.")
@base_url
@key_env
@trust
@plugin
@tracker
def compare(
    run_file: Path,
    overrides: tuple[str, ...],
    locals_: tuple[str, ...],
    arms: tuple[str, ...],
    match: Literal["both", "steps", "examples"],
    seeds: int,
    max_calls: int | None,
    base_url: str | None,
    key_env: str | None,
    remote_code: bool,
    plugins: tuple[str, ...],
    trackers: tuple[str, ...],
) -> None:
    """Train and score the arms: base, each client alone, all data in one place, federated.

    What is there already is not made again; a stopped comparison goes on with the same command. Where the
    run file has a [judge], it judges too.
    """
    from shepherd.compare.arms import Asked, variant
    from shepherd.settings import read

    given = {"judge.base_url": base_url, "judge.key_env": key_env}
    said = (f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None)
    settings = read(run_file, (*wished(overrides, remote_code), *said))
    consent = agreed(remote_code, plugins, trackers, base_url, key_env)
    for arm in arms:
        variant(arm)  # a mistake there costs no training
    if settings.judge.model:
        from shepherd.judge.agreed import require_agreed

        require_agreed(settings.judge, consent)
    from shepherd.compare.comparing import compare
    from shepherd.compare.judging import judged
    from shepherd.ui.terminal.compared import compared
    from shepherd.ui.terminal.going import shown, stopped
    from shepherd.ui.terminal.judged import judged as show_judged
    from shepherd.ui.terminal.running import lines

    asked = Asked(locals=locals_ or None, variants=arms, match=match, seeds=seeds)
    output = Path(settings.output)
    try:
        with lines() as seen:
            found = compare(settings, asked, train=shown, consent=consent)
            compared(found)
            if settings.judge.model:
                found = judged(output, settings.judge, seen.say, max_calls, consent)
                show_judged(found["judge"])
    except KeyboardInterrupt:
        raise KeyboardInterrupt(stopped(output, "compare")) from None
    name = shlex.quote(str(output))
    echo(f"\nTry next:\n  shepherd report {name}\n  shepherd chat {name}")


@main.command()
@click.argument("first", type=click.Path(path_type=Path), metavar="A")
@click.argument("second", type=click.Path(path_type=Path), metavar="B")
@overrides
@click.option(
    "--questions", metavar="FILE", help='Or "heldout", "vicuna", "mt-bench".  [default: the run\'s]'
)
@base_url
@key_env
@click.option("--model", help="The judge.")
@click.option("--max-calls", type=click.IntRange(min=0), help="At most so many requests.")
@trust
def judge(
    first: Path,
    second: Path,
    overrides: tuple[str, ...],
    max_calls: int | None,
    remote_code: bool,
    **options: str | None,
) -> None:
    """Have a judge compare two answers files, adapters or runs.

    A, then B: `fedit` shows A's answer first and prints B's sum by A's. Any key of [judge] can be given:
    protocol=fedit limit=80; its address and the name of its key's variable by their options.
    """
    from shepherd.compare.judging import judge_two
    from shepherd.ui.terminal.judged import judged as show_judged
    from shepherd.ui.terminal.running import lines

    given = {name: value for name, value in options.items() if value is not None}
    consent = agreed(remote_code, base_url=options["base_url"], key_env=options["key_env"])
    with lines() as seen:
        found = judge_two(first, second, overrides, given, seen.say, max_calls, consent)
    show_judged(found)


@main.command()
@run_folder
@overrides
@click.option(
    "--to", default="peft", show_default=True, metavar="FORM", help="As `shepherd plugins exporters` lists."
)
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="New or empty."
)
@click.option("--round", type=click.IntRange(min=1), help="Of a kept checkpoint.  [default: the last]")
@trust
@plugin
def export(
    folder: Path,
    overrides: tuple[str, ...],
    to: str,
    output: Path,
    round: int | None,
    remote_code: bool,
    plugins: tuple[str, ...],
) -> None:
    """Write the adapter of a run for other programs: with its base merged, or as PEFT reads it.

    Keys are those of the form: dtype=float16
    """
    from shepherd.export import export as write

    write(folder, output, to, overrides, round=round, consent=agreed(remote_code, plugins))
    echo(f"wrote {output}")


@main.command("plugins")
@click.argument("kinds", nargs=-1, metavar="[KIND ...]")
@plugin
def list_plugins(kinds: tuple[str, ...], plugins: tuple[str, ...]) -> None:
    """List every plug-in that there is to choose from, with its keys: algorithms, splits, and so on.

    Those of other packages are listed from their metadata, and imported only by --allow-plugin.
    """
    from shepherd import catalogue

    for line in catalogue.lines(catalogue.kinds_named(kinds), plugins):
        echo(line)


@main.command()
@run_folder
def report(folder: Path) -> None:
    """Write report.html, one page that needs no network, and report.json."""
    from shepherd.ui.report import write

    echo(f"wrote {write(folder)}")


@main.command()
@run_folder
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="On this machine.  [default: any]")
def watch(folder: Path, port: int) -> None:
    """Serve the report of a run that is going on, to this machine alone."""
    from shepherd.ui.report import watch

    watch(folder, port, echo)


@main.command()
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
    from shepherd.folder import read_settings

    read_settings(folder)
    from shepherd.ui.chat.page import launch

    launch(
        folder,
        arms=arms or None,
        port=port or None,
        share=share,
        show=opened,
        say=echo,
        consent=agreed(remote_code),
    )


main.add_command(silos)


@main.group()
def data() -> None:
    """Look at the data of a run file before any training."""


@data.command()
@run_file
@overrides
@click.option("--samples", type=click.IntRange(min=0), default=1, show_default=True, help="Of each category.")
@trust
@plugin
def check(
    run_file: Path, overrides: tuple[str, ...], samples: int, remote_code: bool, plugins: tuple[str, ...]
) -> None:
    """Show examples with what is trained set off from what is masked, and the shares cut and dropped."""
    from shepherd.inspection import inspect_data
    from shepherd.settings import read
    from shepherd.ui.terminal.data import report

    settings = read(run_file, wished(overrides, remote_code))
    found = inspect_data(settings, samples=samples, consent=agreed(remote_code, plugins))
    report(found.report)
    _left_out(found.division, settings)
    if not found.report.counts.kept:
        raise TemplateError("no example is left to train on; change data.template or data.max_tokens")


@data.command()
@run_file
@overrides
@click.option("--plot", is_flag=False, flag_value="split.png", metavar="[FILE.png]", help="Draw it as well.")
@plugin
def split(run_file: Path, overrides: tuple[str, ...], plot: str | None, plugins: tuple[str, ...]) -> None:
    """Show which client holds how many examples of which category."""
    from shepherd.data.plot import draw, holdings
    from shepherd.prepare import divide
    from shepherd.settings import read
    from shepherd.ui.terminal.data import holdings as show

    settings = read(run_file, overrides)
    division = divide(settings, plugins)
    names, table = holdings(division.reading.examples, division.clients)
    show(names, list(division.clients), table.tolist())
    _left_out(division, settings)
    if plot:
        echo(f"drawn in {draw(division.reading.examples, division.clients, plot)}")


def _left_out(division: Division, settings: RunSettings) -> None:
    from shepherd.data.files import left_out
    from shepherd.prepare import division_remarks

    held = division.held
    left = many(held.duplicates, "duplicate"), many(len(division.reading.skipped), "bad row")
    echo(
        f"{many(len(held.train), 'example')} to train on, {len(held.heldout)} held out,"
        f" {' and '.join(left)} left out"
    )
    table = settings.data
    for sentence in (
        *left_out(table.source, table.config, table.part),
        *division_remarks(division, settings),
    ):
        echo(sentence)


@main.command()
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
    from shepherd.folder import read_settings
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
    from shepherd.asking import Options, load_run, require_options  # torch takes seconds

    how = Options(**options)
    require_options(folder, how)
    with lines(sys.stderr):
        with answers.timed(f"loaded {settings.model.base}"):
            run = load_run(folder, consent=agreed(remote_code))
        found = run.answers(asked, how)
        answers.shown(found, several=len(asked) * options["n"] > 1, as_json=as_json)


@main.command()
@click.argument("file", type=click.Path(path_type=Path), default=Path("run.toml"), metavar="[FILE]")
@click.option(
    "--data", metavar="FILE", help="Or a folder with a file a client, or a Hugging Face dataset's id."
)
@click.option("--base", metavar="NAME", help="A model's folder or its Hugging Face id.")
@click.option("--instruction", metavar="COLUMN", help="What is asked.  [default: found, as are the others]")
@click.option("--context", metavar="COLUMN", help="What it is about; '' for none.")
@click.option("--response", metavar="COLUMN", help="The answer.")
@click.option("--messages", metavar="COLUMN", help="A chat's list of turns; '' for none.")
@click.option("--client", metavar="COLUMN", help="Who holds the row; '' for none.")
@click.option("--category", metavar="COLUMN", help="The kind of instruction; '' for none.")
@trust
def new(file: Path, data: str | None, base: str | None, remote_code: bool, **columns: str | None) -> None:
    """Write a run file with every key, its meaning, and a value that fits the data and the base.

    Without --data it is the embedded world, without --base the embedded tiny base.
    """
    from shepherd.new import write  # torch takes seconds

    sources = {name: value for name, value in {"data": data, "base": base}.items() if value}
    given = {part: name for part, name in columns.items() if name is not None}
    for sentence in write(file, given=given, consent=agreed(remote_code), **sources):
        echo(sentence)
    echo(f"wrote {file}; next: shepherd data check {shlex.quote(str(file))}")


def start() -> None:
    """The program `shepherd`: what tunes begins with an allocator that is set up for it."""
    if sys.argv[1:2] in (["run"], ["resume"], ["compare"]):
        malloc.restart()
    in_this_process()
    main(prog_name="shepherd")
