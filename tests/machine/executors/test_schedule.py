"""The schedule: the largest job first, none behind another at the end, a dead worker's jobs done again."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from shepherd.machine.executors.schedule import PREFETCH, Schedule


def of(sizes: list[int], workers: int, tries: int = 3) -> Schedule:
    made = Schedule(tries=tries)
    for job, size in enumerate(sizes):
        made.add(job, size)
    for worker in range(workers):
        made.join(worker)
    return made


def handed(schedule: Schedule) -> list[tuple[int, int]]:
    return list(iter(schedule.give, None))


def test_the_largest_go_first_and_each_worker_has_one_before_any_has_two() -> None:
    schedule = of([3, 9, 1, 7, 5, 2], workers=2)
    assert handed(schedule) == [(0, 1), (1, 3), (0, 4), (1, 0)]
    assert schedule.waiting == {2: 1, 5: 2}


def test_at_the_end_no_job_waits_behind_another() -> None:
    schedule = of([3, 9, 1], workers=2)
    assert handed(schedule) == [(0, 1), (1, 0)]
    schedule.finish(1, 0)
    assert handed(schedule) == [(1, 2)]  # and not behind the nine of worker 0
    assert handed(of([1, 2], workers=0)) == []


def test_a_dead_workers_jobs_go_first_again_and_only_the_one_under_way_is_charged() -> None:
    schedule = of([8, 7, 6, 5, 4, 3], workers=2)
    handed(schedule)  # worker 0 has the eight and the six
    assert schedule.leave(0) is None
    assert schedule.deaths == {0: 1}
    schedule.join(2)
    assert next(iter(handed(schedule))) == (2, 0)


def test_a_job_is_given_up_after_its_tries_and_the_one_behind_it_is_not() -> None:
    schedule = of([9, 5, 4], workers=0, tries=2)
    for worker, expected in ((0, None), (1, 0)):
        schedule.join(worker)
        assert handed(schedule)[0] == (worker, 0)
        assert schedule.leave(worker) == expected
    schedule.join(2)
    assert handed(schedule)[0] == (2, 1)
    assert schedule.deaths[1] == 0


def test_a_worker_that_dies_idle_costs_nothing() -> None:
    schedule = of([], workers=1)
    assert schedule.leave(0) is None
    assert schedule.leave(0) is None  # as one that died before it was ready


@given(
    sizes=st.lists(st.integers(0, 50), max_size=30),
    workers=st.integers(1, 4),
    tries=st.integers(1, 3),
    data=st.data(),
)
def test_every_job_is_done_once_or_given_up_after_its_tries(sizes, workers, tries, data) -> None:
    schedule, done, given_up, fresh = of(sizes, workers, tries), Counter(), [], workers
    under = Counter()  # deaths of workers while they were at a job
    while schedule.waiting or any(schedule.held.values()):
        handed(schedule)
        assert all(len(jobs) <= PREFETCH for jobs in schedule.held.values())
        assert all(schedule.held.values()) or not schedule.waiting  # nobody is idle while a job waits
        worker = data.draw(st.sampled_from([w for w, jobs in schedule.held.items() if jobs]))
        job = schedule.held[worker][0]
        if data.draw(st.booleans()):
            schedule.finish(worker, job)
            done[job] += 1
        else:
            under[job] += 1
            lost = schedule.leave(worker)
            assert (lost == job) == (under[job] == tries)
            given_up += [job] * (lost is not None)
            schedule.join(fresh)
            fresh += 1
    assert set(done.values()) <= {1}
    assert sorted([*done, *given_up]) == list(range(len(sizes)))
