"""The life of an entry."""

from __future__ import annotations

from itertools import product

import pytest

from celery_delay.domain.states import (
    LEGAL,
    CancelOutcome,
    HoldOutcome,
    ReleaseOutcome,
    RescheduleOutcome,
    State,
)


def test_every_state_has_its_followers_and_a_rank() -> None:
    assert set(LEGAL) == set(State)
    assert all(isinstance(state.rank, int) for state in State)


def test_rank_grows_along_every_legal_move_between_workers_events() -> None:
    # SQL keeps the state of the highest rank, so no move may lead to a lower one; only what
    # an operator releases goes back to SCHEDULED
    back = {(State.HELD, State.SCHEDULED), (State.QUARANTINED, State.SCHEDULED)}

    for state, following in product(State, State):
        if state.may_become(following) and (state, following) not in back:
            assert following.rank > state.rank or following is state, (state, following)


def test_final_is_what_nothing_follows() -> None:
    assert {state for state in State if state.is_final} == {
        State.RETRIED,
        State.SUCCEEDED,
        State.FAILED,
        State.REVOKED,
        State.REJECTED,
        State.CANCELLED,
        State.EXPIRED,
        State.LOST,
    }


def test_no_worker_sees_an_entry_that_ended_before_dispatch() -> None:
    for state in State:
        if state.ended_before_dispatch:
            assert state.is_final
            assert not State.DISPATCHED.may_become(state)
            assert not State.STARTED.may_become(state)


@pytest.mark.parametrize("state", list(State))
def test_every_state_can_be_reached(state: State) -> None:
    seen, ahead = set(), {State.SCHEDULED}
    while ahead:
        one = ahead.pop()
        seen.add(one)
        ahead |= LEGAL[one] - seen

    assert state in seen


def test_a_redelivered_message_starts_again() -> None:
    assert State.STARTED.may_become(State.STARTED)


def test_an_answer_is_true_only_for_success() -> None:
    assert {one.name for one in CancelOutcome if one} == {"CANCELLED"}
    assert {one.name for one in RescheduleOutcome if one} == {"RESCHEDULED"}
    assert {one.name for one in HoldOutcome if one} == {"HELD"}
    assert {one.name for one in ReleaseOutcome if one} == {"RELEASED"}
    assert CancelOutcome.TOO_LATE == "TOO_LATE"
