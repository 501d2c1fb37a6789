"""What an attacker of a federation gets out, by the shepherd that is on the path: one number a case.

    PYTHONPATH=src:. python -m benchmarks.attacks CASE

`benchmarks.leaks` runs each case twice: with the code of today, and with that of a former commit. So this
file uses only what both have, and takes a refusal, of whatever kind, for nothing that came out. A real site's
`Trainer` with its default policy answers, the server's real `ServerRun` or the real round loop asks; FLARE,
which carries their bytes, is replaced by a function call. The site's data are the embedded world's.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from numpy.typing import NDArray

from benchmarks.at_once import AtOnce
from shepherd import plugins, rounds, world
from shepherd.core import Adapter, Broadcast, ClientInfo, Failure, ServerState, Update
from shepherd.data import pipeline
from shepherd.errors import ShepherdError
from shepherd.model import base as bases
from shepherd.model import lora, pass_plan
from shepherd.model.digest import digest
from shepherd.overrides import parse, plain
from shepherd.rounds import weights as weighing
from shepherd.run import checkpoint
from shepherd.run.checkpoint import Checkpoint
from shepherd.settings import RunSettings
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.jobspec import JobSpec, settings_for_site
from shepherd.silos.server.server_run import ServerRun
from shepherd.silos.site import site_settings as site_file
from shepherd.silos.site.trainer import Trainer

VICTIM = "victim"
GHOSTS = [f"ghost{number}" for number in range(9)]
RUN_OF_TOKENS = 4  # so many of a text's tokens in a row are no chance
LENGTHS = range(22, 35)  # of `data.max_tokens`: each one more shows a token more
APART = (16, 24)  # held-out examples: the second asks for one more of each of the eight categories


def run_file(**tables: Mapping[str, Any]) -> RunSettings:
    """A run on the embedded base that trains one module by rank 1, changed by `tables`."""
    mine: dict[str, dict[str, Any]] = {
        "model": {"base": "tiny", "dtype": "float32"},
        "adapter": {"rank": 1, "alpha": 1.0, "targets": ["down_proj"]},
        "data": {"source": "world", "template": "plain", "holdout": 0.5, "max_tokens": 64, "seed": 0},
        "tuning": {"max_steps": 1, "batch_size": 1},
        "machine": {"threads": 1},
        "federation": {"rounds": 1},
    }
    return parse({**mine, **{name: {**mine.get(name, {}), **table} for name, table in tables.items()}})


@dataclass(frozen=True)
class Site:
    """A real trainer with the default policy over 60 examples, and what its texts are."""

    trainer: Trainer
    texts: list[list[int]]
    """Tokens of each response."""

    def asked(self, settings: RunSettings, kind: str, adapter: Adapter, run: str) -> Any:
        """The reply to one request; a `Failure` where it is refused."""
        request = wire.Request(
            kind=kind,  # type: ignore[arg-type]
            run=run,
            id="",
            round=0,
            deadline=600.0,
            sent=time.time(),
            version=wire.version(),
            cohort=3,
            base=digest(world.base_path()),
            settings=settings_for_site(settings),
            broadcast=Broadcast(round=0, adapter=adapter, seed=0),
        )
        message = wire.encode_request(replace(request, id=wire.request_id(request)))
        return wire.decode_reply(self.trainer.handle(message))


def site(home: Path, base: bases.Base) -> Site:
    settings = parse(
        {"model": {"base": "tiny"}, "data": {"source": "world", "limit": 60}, "split": {"clients": 1}}
    )
    divided = pipeline.divide(settings)
    examples = divided.of(next(iter(divided.clients.values())))
    rows = [
        {"instruction": e.instruction, "context": e.context, "response": e.response, "category": e.category}
        for e in examples
    ]
    home.mkdir(parents=True)
    (home / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny = {"name": "tiny", "folder": "tiny", "sha256": digest(world.base_path())}
    (home / "site.toml").write_text(tomli_w.dumps({"data": {"source": "data.jsonl"}, "bases": [tiny]}))
    texts = [base.tokenizer(e.response)["input_ids"] for e in examples]
    return Site(Trainer(site_file.read(home / "site.toml"), VICTIM, home / "kit"), texts)


def loaded() -> bases.Base:
    settings = run_file()
    table = settings.model.model_copy(update={"base": str(world.base_path())})
    return bases.load(table, settings.adapter)


def oracle(base: bases.Base) -> tuple[Adapter, NDArray[np.float64]]:
    """An adapter under which every state is one vector, and the loss that each token then has, (V,)."""
    last = base.targets[-1]
    flat = {name: np.zeros(shape) for name, shape in base.shapes.items()}
    seen: list[torch.Tensor] = []
    module = base.model.get_submodule(last.module)
    hook = module.register_forward_pre_hook(lambda m, a: seen.append(a[0].detach().flatten(0, -2)))
    lora.bind_adapters(base.model, base.targets, lora.stacked([Adapter(flat)], base.device))
    ids = base.tokenizer("The river is long and the town is small. Name a bird.", return_tensors="pt")
    with torch.no_grad():
        base.model(input_ids=ids["input_ids"])
    hook.remove()
    mean = seen[0].mean(0).numpy()
    flat[last.name_a] = mean[None, :] / np.abs(seen[0].numpy() @ mean).mean()
    flat[last.name_b] = 1e10 * np.random.default_rng(0).normal(size=(last.outputs, 1))
    adapter = Adapter(flat)
    lora.bind_adapters(base.model, base.targets, lora.stacked([adapter], base.device))
    plan = pass_plan.padded(1, 1, 0)
    with torch.no_grad(), pass_plan.use_plan(plan):
        logits = base.model(input_ids=ids["input_ids"]).logits[0].double()
    return adapter, np.median(-torch.log_softmax(logits, -1).numpy(), 0)


def in_texts(tokens: Sequence[int], texts: Sequence[Sequence[int]]) -> int:
    """How many of these tokens stand in runs of `RUN_OF_TOKENS` or more that a text holds."""
    whole = [" ".join(map(str, text)) + " " for text in texts]
    out: set[int] = set()
    for start in range(len(tokens) - RUN_OF_TOKENS + 1):
        piece = " ".join(map(str, tokens[start : start + RUN_OF_TOKENS])) + " "
        if any(piece in text for text in whole):
            out.update(range(start, start + RUN_OF_TOKENS))
    return len(out)


def steps_between(sums: Sequence[tuple[float, float]], table: NDArray[np.float64]) -> list[int]:
    """From (summed loss, tokens) at each `max_tokens` to the token that each one more shows."""
    return [
        int(np.abs(table - (after[0] - before[0])).argmin())
        for before, after in pairwise(sums)
        if after[1] > before[1]
    ]


# the cases -------------------------------------------------------------------------------------------------


def heldout_text(home: Path) -> int:
    """Tokens of held-out responses, by the difference of two scores at each length."""
    base = loaded()
    victim = site(home / "site", base)
    adapter, table = oracle(base)
    found: dict[str, list[tuple[float, float]]] = {}
    number = 0
    for length in LENGTHS:
        sums = []
        for many in APART:
            number += 1
            settings = run_file(
                data={"max_tokens": length}, evaluation={"examples": many}, tuning={"batch_size": 16}
            )
            reply = victim.asked(settings, "score", adapter, f"{number:016x}")
            if isinstance(reply, Failure):
                return 0
            sums.append(reply.categories)
        for name in sums[0].keys() & sums[1].keys():
            less, more = sums[0][name], sums[1][name]
            found.setdefault(name, []).append((more[0] - less[0], more[1] - less[1]))
    return sum(in_texts(steps_between(sums_, table), victim.texts) for sums_ in found.values())


def training_text(home: Path) -> int:
    """Tokens of a training response, by the loss of visits of one example at each length.

    A new run begins at the front of the data, in the order of its seed: seeds are tried until a long response
    stands there, and its last tokens are asked for one by one.
    """
    base = loaded()
    victim = site(home / "site", base)
    adapter, table = oracle(base)
    number = 0

    def visit(seed: int, length: int) -> Mapping[str, float]:
        nonlocal number
        number += 1
        settings = run_file(data={"max_tokens": length}).model_copy(update={"seed": seed})
        return getattr(victim.asked(settings, "train", adapter, f"{number:016x}"), "metrics", {})

    for seed in range(40):
        whole = visit(seed, 512)
        if not {"loss", "tokens", "trained_tokens"} <= whole.keys():
            return 0
        if whole["trained_tokens"] >= 20:
            break
    longest = int(whole["tokens"])
    found = [visit(seed, length) for length in range(longest - 10, longest + 1)]
    sums = [(m["loss"] * m["trained_tokens"], m["trained_tokens"]) for m in found if "loss" in m]
    return in_texts(steps_between(sums, table), victim.texts)


def updates_of_one_example(home: Path) -> int:
    """Visits, of three that are asked for, whose update comes of one example."""
    base = loaded()
    victim = site(home / "site", base)
    fresh = lora.fresh(base.targets, 1, 0)
    replies = [victim.asked(run_file(), "train", fresh, f"{number:016x}") for number in (1, 2, 3)]
    return sum(isinstance(reply, Update) for reply in replies)


class Asked(AtOnce):
    """Carries requests to the sites that are there."""

    def __init__(self, sites: Mapping[str, Callable[[bytes], bytes]]) -> None:
        self.sites = sites

    def present(self) -> list[str]:
        return sorted(self.sites)

    def ask(self, message: bytes, sites: Sequence[str], seconds: float) -> Iterator[tuple[str, bytes]]:
        for name in sites:
            yield name, self.sites[name](message)


def means_of_one_site(home: Path) -> int:
    """Means that a lead can fetch from an honest server, and that one site's update makes alone.

    Two runs: nine sites that do not exist beside the victim; and a second site that is away.
    """
    base = loaded()
    victim = site(home / "site", base)
    out = 0
    usual = {"max_steps": 2, "batch_size": 16}  # a visit that a policy has nothing against
    for number, others in enumerate((GHOSTS, ["away"]), 1):
        sites = [VICTIM, *others]
        settings = run_file(
            tuning=usual,
            federation={"quorum": 0.05, "sites": sites, "rounds": 1},
            data={"max_tokens": 256, "holdout": 0.1},
        )
        out += _released(settings, sites, victim, base, home / f"lead{number}", f"{number:016x}")
    return out


def _released(
    settings: RunSettings, sites: list[str], victim: Site, base: bases.Base, home: Path, run: str
) -> int:
    """1 where the server holds a checkpoint of a round after the one that was brought."""
    _service(settings, sites, Asked({VICTIM: victim.trainer.handle}), base, home, run).run()
    last = checkpoint.latest(home / "server" / "checkpoints")
    return int(last is not None and checkpoint.load(last).state.round > 0)


def _service(
    settings: RunSettings, sites: Sequence[str], post: Asked, base: bases.Base, home: Path, run: str
) -> ServerRun:
    """The server's part of a lead's job, which brings a new adapter."""
    notes: dict[str, Any] = {"positions": {}, "row": None, "base": base.fingerprint}
    state = ServerState(round=0, adapter=lora.fresh(base.targets, 1, 0))
    given = checkpoint.save(home / "given", Checkpoint(state=state, notes=notes), keep=1)
    order = JobSpec(
        run=run,
        base=digest(world.base_path()),
        fingerprint=base.fingerprint,
        version=wire.version(),
        sites=tuple(sites),
        settings=plain(settings),
    )
    return ServerRun(order, home / "server", given, post)


"""What a site says of itself by the default policy; nothing in former versions."""


class Members:
    """Clients that answer as they like: name -> (weight, every number of the change)."""

    def __init__(self, answers: Mapping[str, tuple[float, float]]) -> None:
        self.answers = answers

    def clients(self) -> list[ClientInfo]:
        return [ClientInfo(name=name, examples=100, min_cohort=2) for name in self.answers]

    def run(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update]:
        for name in cohort:
            weight, value = self.answers[name]
            change = {key: np.full(tensor.shape, value) for key, tensor in broadcast.adapter.items()}
            yield Update(round=broadcast.round, clients=(name,), weight=weight, delta=Adapter(change))


def one_round(members: Members, weights: str, clip: float | None = None) -> tuple[ServerState, Any] | None:
    """A round of the real loop over these clients; None where it is refused."""
    settings = parse(
        {
            "model": {"base": "tiny"},
            "data": {"source": "world"},
            "federation": {"rounds": 1, "weights": weights},
            "transforms": [{"name": "clip", "norm": clip}] if clip else [],
        }
    )
    method = plugins.method(settings)
    start = Adapter({"q.lora_A.weight": np.zeros((2, 4)), "q.lora_B.weight": np.zeros((3, 2))})
    try:
        return next(
            rounds.rounds(
                method,
                members,
                rounds.start(method, start),
                until=1,
                select=plugins.selection(settings).cohort,
                quorum=0.5,
                seed=0,
                allow=weighing.allowed_by(settings),
                max_share=settings.federation.max_share,
            )
        )
    except ShepherdError:
        return None


def shares(found: tuple[ServerState, Any] | None) -> Mapping[str, float]:
    return rounds.report_row(found[1])["weights"] if found else {}


def inflated_weight(home: Path) -> int:
    """Rounds of three in which one of four clients has more than half of the mean by what it claims."""
    honest = dict.fromkeys(("a", "b", "c"), (1.0, 0.01))
    claims = (("equal", 1e12), ("examples", 1e9), ("tokens", 1e12))
    found = (one_round(Members({**honest, "evil": (claim, 1.0)}), weights) for weights, claim in claims)
    return sum(shares(each).get("evil", 0.0) > 0.5 for each in found)


def tiny_weight(home: Path) -> int:
    """Rounds of three in which a partner's weight is so small that the mean is the victim's update."""
    members = Members({"victim": (1.0, 0.01), "partner": (1e-300, 0.0)})
    found = (one_round(members, weights) for weights in ("equal", "examples", "tokens"))
    return sum(shares(each).get("victim", 0.0) > 0.9 for each in found)


def skipped_clip(home: Path) -> int:
    """Rounds in which a client that does not clip moves the adapter further than a clipped mean can."""
    answers = {**dict.fromkeys(("a", "b", "c"), (1.0, 0.01)), "evil": (1.0, 1000.0)}
    found = one_round(Members(answers), "equal", clip=1.0)
    return int(found is not None and found[0].adapter.norm() > 1.0)


def foreign_import(home: Path) -> int:
    """Modules of a lead's choice, out of two, that the server imported for a job."""
    base = loaded()
    out = 0
    sys.path.insert(0, str(home))
    home.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(("algorithm", "transforms"), 1):
        name = f"strange{number}"
        (home / f"{name}_package").mkdir()
        (home / f"{name}_package" / "__init__.py").write_text("")
        (home / f"{name}_package" / "evil.py").write_text(f"open({str(home / name)!r}, 'w').close()")
        table = {"name": f"{name}_package.evil"}
        settings = parse(
            {**plain(run_file(federation={"sites": ["a", "b"]})), part: table if number == 1 else [table]}
        )
        job = _service(settings, ("a", "b"), Asked({}), base, home / f"job{number}", f"{number:016x}")
        with suppress(ShepherdError):
            job.run()
        out += (home / name).exists()
    return out


def escape_sequences(home: Path) -> int:
    """Control characters of a data file that `shepherd data check` writes as they are."""
    home.mkdir(parents=True)
    evil = "\x1b[2J\x1b]0;owned\x07 \x9b31m hello \u202e"
    rows = [{"instruction": f"{evil} {number}", "output": f"{evil} {number}"} for number in range(20)]
    (home / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = {
        "model": {"base": "tiny"},
        "data": {"source": str(home / "data.jsonl"), "template": "alpaca"},
        "split": {"clients": 2},
    }
    (home / "run.toml").write_text(tomli_w.dumps(run))
    from shepherd.ui.cli import main as cli

    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        cli.main(["data", "check", str(home / "run.toml")], standalone_mode=False)
    return sum(out.getvalue().count(each) for each in ("\x1b]", "\x1b[2J", "\x07", "\x9b", "\u202e"))


def ordinary_visit(home: Path) -> int:
    """1 where a visit of usual length, by a usual run file, is answered with an update."""
    base = loaded()
    victim = site(home / "site", base)
    settings = run_file(data={"max_tokens": 256, "holdout": 0.1}, tuning={"max_steps": 2, "batch_size": 16})
    return int(isinstance(victim.asked(settings, "train", lora.fresh(base.targets, 1, 0), "1" * 16), Update))


def honest_round(home: Path) -> int:
    """Clients that count for their share where all keep to what was asked."""
    found = one_round(Members(dict.fromkeys(("a", "b", "c"), (1.0, 0.01))), "equal", clip=1.0)
    return sum(abs(share - 1 / 3) < 1e-9 for share in shares(found).values())


CASES: dict[str, Callable[[Path], int]] = {
    "tokens of held-out responses, by scores": heldout_text,
    "tokens of a training response, by a visit's loss": training_text,
    "updates of one example": updates_of_one_example,
    "means of one site's update": means_of_one_site,
    "rounds owned by an inflated weight": inflated_weight,
    "rounds emptied by a partner's tiny weight": tiny_weight,
    "rounds moved by a client that does not clip": skipped_clip,
    "modules imported at a lead's word": foreign_import,
    "control characters at the terminal": escape_sequences,
}


CONTROLS: dict[str, Callable[[Path], int]] = {
    "an ordinary visit is answered": ordinary_visit,
    "an honest round": honest_round,
}
"""What must come out, or the cases prove nothing."""


def main(case: str) -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps({"out": (CASES | CONTROLS)[case](Path(scratch) / "case")}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
