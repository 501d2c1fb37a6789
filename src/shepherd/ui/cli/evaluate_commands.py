"""`shepherd evaluate`: score a finished run on a file of examples, benchmark tasks, or harmful prompts."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from shepherd.ui.cli.options import base_url, key_env, run_folder
from shepherd.ui.cli.silos import agreed, plugin, trust
from shepherd.visible import shown_json

OF_DATA, OF_TASKS = (
    ("answers", "round", "adapter"),
    ("include", "limit", "fewshot", "chat", "formats", "task_code", "hub"),
)
"""Parameters of --data, and of --tasks."""


@click.command(short_help="Score a run on examples, tasks or harmful prompts.")
@run_folder
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File of rows with the fields of the run's data.",
)
@click.option(
    "--answers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of --data: also answer this many of the examples, and measure the answers.",
)
@click.option(
    "--round", type=click.IntRange(min=1), help="Of --data: round of a kept checkpoint.  [default: the last]"
)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Of --data: score this PEFT folder of the same base in place of the run's adapter.",
)
@click.option(
    "--tasks",
    multiple=True,
    metavar="NAME[,NAME]",
    help="Benchmark tasks of lm-eval: a name, a group or a file; repeatable.",
)
@click.option(
    "--include",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder of task files (.yaml) with local data; repeatable.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Most documents of each task, the first ones.")
@click.option(
    "--fewshot", type=click.IntRange(min=0), help="Examples in each prompt.  [default: as the task says]"
)
@click.option("--chat", is_flag=True, help="Ask tasks in the chat template of the base's tokenizer.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(["general", "finance", "medical"]),
    help="Also ask choices in this format of FlowerTune; repeatable.",
)
@click.option(
    "--harmful",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Prompts that a model should refuse, one a line or as rows.",
)
@click.option(
    "--arm", "arms", multiple=True, metavar="NAME", help="Arm beside the base; repeatable.  [default: all]"
)
@click.option("--max-calls", type=click.IntRange(min=0), help="Most requests to send to the judge.")
@click.option(
    "--allow-task-code", "task_code", is_flag=True, help="Run the code of task files; read it first."
)
@click.option("--allow-hub", "hub", is_flag=True, help="Fetch tasks' data from the Hugging Face hub by name.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of tables.")
@base_url
@key_env
@trust
@plugin
@click.pass_context
def evaluate(
    context: click.Context,
    folder: Path,
    data: Path | None,
    answers: int,
    round: int | None,
    adapter: Path | None,
    tasks: tuple[str, ...],
    include: tuple[Path, ...],
    limit: int | None,
    fewshot: int | None,
    chat: bool,
    formats: tuple[str, ...],
    harmful: Path | None,
    arms: tuple[str, ...],
    max_calls: int | None,
    task_code: bool,
    hub: bool,
    as_json: bool,
    base_url: str | None,
    key_env: str | None,
    remote_code: bool,
    plugins: tuple[str, ...],
) -> None:
    """Score a run and its base on the examples of a file (--data), or the arms of a folder on benchmark tasks
    (--tasks) and harmful prompts (--harmful).

    The result goes to stdout, all else to stderr. Scores of tasks and prompts are kept in the folder's
    evaluation.json; those of --data are written nowhere.
    """
    _require_options(context, data, tasks, harmful)
    from shepherd.run.folder import read_settings

    settings = read_settings(folder)
    if adapter is not None and round is not None:
        raise click.UsageError("--round is of the run's own adapter; leave it out with --adapter")
    asks_judge = harmful is not None and settings.judge.model
    if not asks_judge and (base_url or key_env or max_calls is not None):
        raise click.UsageError(
            "--base-url, --key-env and --max-calls are of a judge, which is asked about --harmful where the"
            f" run names one: {'set judge.model in its run file' if harmful else 'add --harmful FILE'}"
        )
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as for `generate`
    from shepherd.ui.terminal.running import plain_lines

    consent = agreed(remote_code, plugins, (), base_url, key_env, task_code=task_code, hub=hub)
    if data is not None:
        from shepherd.run.evaluation import evaluate_run  # torch takes seconds
        from shepherd.ui.terminal.evaluation_table import print_evaluation

        with plain_lines(sys.stderr):
            found = evaluate_run(folder, data, answers=answers, round=round, adapter=adapter, consent=consent)
        if as_json:
            print(shown_json(json.dumps(found.row(), ensure_ascii=False)))
        else:
            print_evaluation(found)
        return
    from shepherd.compare.evaluating import evaluate_folder, require_lm_eval
    from shepherd.compare.folders import comparison
    from shepherd.run.release import settled
    from shepherd.ui.terminal.scores_table import print_by_arm, print_scores

    given = {"base_url": base_url, "key_env": key_env}
    judge = settings.judge.model_copy(
        update={key: value for key, value in given.items() if value is not None}
    )
    asked = None
    if tasks:
        require_lm_eval()
        from shepherd.evaluate.harness import Asked

        names = [name for each in tasks for name in each.split(",") if name]
        asked = Asked(tasks=names, include=include, limit=limit, fewshot=fewshot, chat=chat)
    with plain_lines(sys.stderr) as display:
        scores = evaluate_folder(
            folder,
            asked,
            harmful=harmful or "",
            formats=formats,
            only=arms,
            judge=judge,
            max_calls=max_calls,
            echo=display.echo,
            consent=consent,
        )
    verdict = settled(folder)
    if as_json:
        print(shown_json(json.dumps({"scores": scores, "release": verdict.row()}, ensure_ascii=False)))
        return
    compared = comparison(folder)
    joined = compared.get("scores", [])
    print_by_arm(joined, [arm["name"] for arm in compared.get("arms", [])])
    print_scores([row for row in scores if row not in joined], verdict)


def _require_options(
    context: click.Context, data: Path | None, tasks: tuple[str, ...], harmful: Path | None
) -> None:
    """Raise UsageError unless there is something to evaluate, and every option is of it."""
    if data is None and not tasks and harmful is None:
        raise click.UsageError("say what to evaluate on: --data FILE, --tasks NAME or --harmful FILE")
    if data is not None and (tasks or harmful is not None):
        raise click.UsageError("--data is of the run alone; evaluate --tasks and --harmful in another call")
    for parameter in context.command.params:
        name = parameter.name or ""
        if not context.params[name] or (name in OF_DATA and data is not None) or (name in OF_TASKS and tasks):
            continue
        if name in OF_DATA or name in OF_TASKS:
            raise click.UsageError(f"{parameter.opts[0]} is of {'--data' if name in OF_DATA else '--tasks'}")
