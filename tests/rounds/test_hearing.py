"""What a selection by loss hears of the clients, and that a resumed run hears the same."""

from dataclasses import replace

import numpy as np
import pytest
from tests.quadratic import Quadratic, chosen, drawn, method

from shepherd.algorithms import fedavg
from shepherd.core import ClientInfo, Failure, Payload, Seeded
from shepherd.errors import FederationError
from shepherd.rounds import hearing, rounds, start
from shepherd.rounds.report import MAX_NATS
from shepherd.run.checkpoint import Checkpoint, load, save
from shepherd.transforms import gaussian

CLIENTS = [ClientInfo(name=name, examples=3) for name in ("a", "b", "c")]


def known(infos):
    return {info.name: (info.asked, info.loss) for info in infos}


def test_a_clients_last_visit_is_what_is_known_of_it():
    reports = hearing.heard(Payload(), 4, ("a", "b"), {"a": {"loss": 1.5, "steps": 2.0}, "b": {"steps": 2.0}})
    assert known(hearing.informed(CLIENTS, reports)) == {"a": (4, 1.5), "b": (4, None), "c": (None, None)}
    after = hearing.heard(reports, 5, ("a", "c"), {"c": {"loss": 0.5}})  # a failed
    assert known(hearing.informed(CLIENTS, after)) == {"a": (5, None), "b": (4, None), "c": (5, 0.5)}
    assert known(CLIENTS) == dict.fromkeys("abc", (None, None))


@pytest.mark.parametrize(("said", "counts"), [(1e9, MAX_NATS), (-3.0, 0.0), (2.0, 2.0)])
def test_a_loss_that_no_model_has_counts_as_the_nearest_that_one_can_have(said, counts):
    reports = hearing.heard(Payload(), 0, ("a",), {"a": {"loss": said}})
    assert known(hearing.informed(CLIENTS, reports))["a"] == (0, counts)


def test_clients_that_left_are_passed_over():
    reports = hearing.heard(Payload(), 0, ("gone",), {"gone": {"loss": 1.0}})
    assert hearing.informed(CLIENTS, reports) == CLIENTS


def loop(federation, select, state=None, *, until=6, by_loss=True, transform=None, **more):
    asked = method(transform=transform)
    return rounds(
        asked,
        federation,
        state or start(asked, drawn(0)),
        until=until,
        select=select,
        quorum=0.1,
        seed=5,
        by_loss=by_loss,
        **more,
    )


class Losses(Quadratic):
    """Clients whose loss is their number; c1 never releases it, and c2 fails."""

    def run(self, broadcast, cohort):
        for update in super().run(broadcast, cohort):
            if update.client == "c1":
                yield replace(update, metrics={})
            elif update.client == "c2":
                yield Failure(client="c2", reason="it is away")
            else:
                yield replace(update, metrics={"loss": float(update.client[1:])})


def test_the_loop_gives_the_selection_what_was_released_and_the_state_keeps_it():
    seen = []

    def select(clients, round, seed):
        seen.append(known(clients))
        return tuple(info.name for info in clients)[: 4 if round else 3]

    states = [state for state, _ in loop(Losses(fedavg.ALGORITHM), select, until=2)]
    assert seen == [
        dict.fromkeys(("c0", "c1", "c2", "c3"), (None, None)),
        {"c0": (0, 0.0), "c1": (0, None), "c2": (0, None), "c3": (None, None)},
    ]
    assert states[-1].reports["c3"].tolist() == [1.0, 3.0]
    assert np.isnan(states[-1].reports["c2"][1])


def test_without_a_selection_by_loss_nothing_is_kept():
    states = loop(Losses(fedavg.ALGORITHM), chosen("all"), until=2, by_loss=False)
    assert [dict(state.reports) for state, _ in states] == [{}, {}]


@pytest.mark.parametrize("name", ["power_of_choice", "oort"])
@pytest.mark.parametrize("at", [1, 3])
def test_a_resumed_run_asks_the_same_clients(name, at, tmp_path):
    select = chosen(name, share=0.3)
    whole = [report.cohort for _, report in loop(Losses(fedavg.ALGORITHM, clients=9), select)]
    federation = Losses(fedavg.ALGORITHM, clients=9)
    *_, (state, _) = loop(federation, select, until=at)
    saved = load(save(tmp_path, Checkpoint(state=state), keep=1)).state
    assert saved.reports == state.reports
    again = [report.cohort for _, report in loop(federation, select, saved)]
    assert whole[at:] == again
    assert len(set(whole)) > 1


def test_a_checkpoint_of_an_earlier_version_knows_of_nobody(tmp_path):
    path = save(tmp_path, Checkpoint(state=start(method(), drawn(0))), keep=1)
    assert load(path).state.reports == Payload()


def test_hidden_losses_are_an_error_before_anybody_is_asked():
    class Merging(Losses):
        merges = True

    noisy = gaussian.build(gaussian.Config())
    for federation, more in (
        (Merging(fedavg.ALGORITHM), {}),
        (Losses(fedavg.ALGORITHM, noisy), {"transform": noisy, "noise": Seeded(0)}),
    ):
        with pytest.raises(FederationError, match=r'hide these; set \[selection\] name = "uniform"'):
            next(loop(federation, chosen("oort"), **more))
