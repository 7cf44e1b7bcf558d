"""Turns as they are decided: an engine in a simulation, with a clock of its own."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.gateway.turns import MOST_WAITING, Pace, Place, Turns

BATCHES = Pace(least_s=2.0, most_s=2.0)
PROCESSES = Pace(least_s=2.0, most_s=30.0, changes=5.0, change_s=2.0, lingers=0.25)


@dataclass(frozen=True)
class Asked:
    """A request: when it comes, under what, how long its answer takes, and when its client leaves (None: never), or how
    often it asks the same again, `thinks` seconds after an answer."""

    at: float
    adapters: str
    takes: float
    leaves: float | None = None
    more: int = 0
    thinks: float = 0.02


@dataclass
class Seen:
    """What came of it. `before` of its own adapters waited or were inside when it came."""

    asked: Asked
    place: Place
    before: int
    let_in: float | None = None
    ended: float | None = None


@dataclass
class Simulation:
    """Requests at an engine that takes `change` seconds more for the first answers after a change."""

    turns: Turns
    change: float = 0.0
    seen: list[Seen] = field(default_factory=list)
    order: list[Seen] = field(default_factory=list)
    changes: int = 0
    _loaded: str | None = None
    _ready: float = 0.0

    def run(self, requests: Iterable[Asked]) -> Simulation:
        """All of them to their ends."""
        number = itertools.count()
        events: list[tuple[float, int, str, Seen | Asked | None]] = []

        def at(when: float, what: str, of: Seen | Asked | None) -> None:
            heapq.heappush(events, (when, next(number), what, of))

        for asked in sorted(requests, key=lambda asked: asked.at):
            at(asked.at, "comes", asked)
        inside: set[Place] = set()
        by_place: dict[Place, Seen] = {}
        while events:
            now, _, what, of = heapq.heappop(events)
            if what == "comes":
                assert isinstance(of, Asked)
                seen = Seen(of, Place(of.adapters, now), sum(self._open(one, of.adapters) for one in self.seen))
                self.seen.append(seen)
                by_place[seen.place] = seen
                self.turns.come(seen.place)
                if of.leaves is not None:
                    at(max(now, of.leaves), "leaves", seen)
            elif isinstance(of, Seen) and of.ended is None:
                if what == "answers":
                    self.turns.answered(now)
                    continue
                of.ended = now
                inside.discard(of.place)
                self.turns.go(of.place, now)
                if of.asked.more:
                    then = now + of.asked.thinks
                    at(then, "comes", replace(of.asked, at=then, more=of.asked.more - 1))
            for place in self.turns.let_in(now):
                seen = by_place[place]
                seen.let_in = now
                inside.add(place)
                self.order.append(seen)
                if self._loaded != place.adapters:
                    self.changes += 1
                    self._loaded, self._ready = place.adapters, now + self.change
                at(max(now, self._ready), "answers", seen)
                at(max(now, self._ready) + seen.asked.takes, "ends", seen)
            self._look(inside, now)
            if self.turns.due is not None:
                assert self.turns.due > now
                at(self.turns.due, "looks", None)
        return self

    def _open(self, seen: Seen, adapters: str) -> bool:
        return seen.ended is None and seen.asked.adapters == adapters

    def _look(self, inside: set[Place], now: float) -> None:
        """What is so at every moment."""
        assert len({place.adapters for place in inside}) <= 1, "two sets of adapters at once"
        assert len(inside) == self.turns.inside
        assert not self.turns.at_once or len(inside) <= self.turns.at_once
        waiting = [seen for seen in self.seen if seen.let_in is None and seen.ended is None]
        if waiting and not inside:
            assert self.turns.due is not None, "the engine idles, and nobody will be let in"
            assert self.turns.due - now <= self.turns.pace.lingers * self.turns.change_s + 1e-9

    def waits(self) -> list[float]:
        return [seen.let_in - seen.asked.at for seen in self.order]


seconds = st.floats(0, 20).map(lambda value: round(value, 2))


@st.composite
def requests(draw: st.DrawFn) -> list[Asked]:
    found = []
    for _ in range(draw(st.integers(1, 40))):
        at = draw(seconds)
        leaves = draw(st.none() | st.floats(0, 5).map(lambda more, at=at: at + more))
        found.append(Asked(at, draw(st.sampled_from("abcd")), draw(st.floats(0.01, 5)), leaves))
    return found


@settings(deadline=None, max_examples=200)
@given(requests(), st.sampled_from([BATCHES, PROCESSES]), st.integers(0, 4), st.sampled_from([0.0, 1.0]))
def test_everybody_has_a_turn_in_order_and_in_time(asked: list[Asked], pace: Pace, at_once: int, change: float) -> None:
    done = Simulation(Turns(pace, at_once), change).run(asked)
    assert len(done.seen) == len(asked)
    for seen in done.seen:
        assert seen.ended is not None
        assert seen.let_in is not None or seen.asked.leaves is not None, "one was lost"
    for adapters in "abcd":
        own = [seen for seen in done.order if seen.asked.adapters == adapters]
        assert own == sorted(own, key=lambda seen: (seen.asked.at, done.seen.index(seen))), (
            "not first come first served"
        )
    names = len({seen.asked.adapters for seen in done.seen})
    longest = max(seen.asked.takes for seen in done.seen) + change
    turn = done.turns.pace.most_s if done.turns.pace.changes else done.turns.pace.least_s
    for seen in done.order:
        rounds = (seen.before // at_once if at_once else 0) + 1
        assert seen.let_in - seen.asked.at <= names * rounds * (turn + longest) + 1e-6
    assert done.turns.inside == 0


def flood(adapters: str, clients: int, takes: float, until: float) -> list[Asked]:
    """So many requests as keep an engine busy for longer than that, all there at once."""
    return [Asked(0.0, adapters, takes) for _ in range(int(clients * until / takes))]


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_full_steady_load_keeps_another_name_waiting_for_one_turn(at_once: int) -> None:
    one = Asked(7.0, "b", 0.5)
    done = Simulation(Turns(BATCHES, at_once)).run([*flood("a", at_once, 1.0, 60.0), one])
    (other,) = (seen for seen in done.seen if seen.asked is one)
    # The turn has been longer than its length: what is inside ends.
    assert other.let_in - one.at <= 1.0


def test_a_name_with_a_backlog_does_not_go_before_one_that_came_later() -> None:
    later = [Asked(1.0 + number, "c", 0.1) for number in range(3)]
    done = Simulation(Turns(BATCHES, 2)).run([*flood("a", 2, 1.0, 60.0), *flood("b", 2, 1.0, 60.0), *later])
    waited = [seen.let_in - seen.asked.at for seen in done.seen if seen.asked.adapters == "c"]
    assert max(waited) <= 2 * (2.0 + 1.0)


def test_a_long_answer_is_not_joined_by_short_ones_for_ever() -> None:
    short = [Asked(at / 10, "a", 0.2) for at in range(600)]
    one = Asked(1.0, "b", 0.1)
    done = Simulation(Turns(BATCHES, 4)).run([Asked(0.0, "a", 20.0), *short, one])
    (other,) = (seen for seen in done.seen if seen.asked is one)
    assert other.let_in == 20.0
    joined = [seen for seen in done.seen if seen.asked.adapters == "a" and 2.0 < seen.let_in < 20.0]
    assert joined == []


def test_who_is_alone_has_no_end_of_a_turn() -> None:
    done = Simulation(Turns(BATCHES, 0)).run([Asked(at / 10, "a", 0.5) for at in range(1000)])
    assert set(done.waits()) == {0.0}


def test_an_idle_turn_goes_at_once_where_a_change_costs_nothing() -> None:
    done = Simulation(Turns(BATCHES, 4)).run([Asked(0.0, "a", 0.1), Asked(0.5, "b", 0.1), Asked(1.0, "a", 0.1)])
    assert done.waits() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("lingers", "changes"), [(0.25, 2), (0.0, 20)])
def test_two_clients_that_ask_again_at_once_do_not_have_a_model_loaded_for_each_answer(
    lingers: float, changes: int
) -> None:
    turns = Turns(replace(PROCESSES, lingers=lingers), 4)
    done = Simulation(turns, change=1.5).run([Asked(0.0, "a", 0.1, more=9), Asked(0.01, "b", 0.1, more=9)])
    assert len(done.order) == 20
    assert done.changes == changes


def test_under_two_full_loads_a_fifth_of_the_time_goes_into_changes() -> None:
    done = Simulation(Turns(PROCESSES, 4), change=2.0).run(
        [Asked(0.0, adapters, 0.5, more=200) for adapters in "ab" for _ in range(4)]
    )
    busy = sum(seen.asked.takes for seen in done.order) / 4
    assert busy / max(seen.ended for seen in done.seen) > 0.75


def test_the_length_of_a_turn_is_what_changes_have_shown() -> None:
    turns = Turns(PROCESSES, 1)
    assert turns.length_s == 10.0
    now = 0.0
    for number, cost in enumerate((4.0, 4.0, 0.1, 300.0, 4.0)):
        place = Place("ab"[number % 2], now)
        turns.come(place)
        while not turns.let_in(now):
            now = turns.due
        turns.answered(now + cost)
        # Only the first answer after a change tells.
        turns.answered(now + 1000)
        now += 1000
        turns.go(place, now)
        now += 1000
    assert turns.change_s == 4.0
    assert turns.length_s == 20.0
    turns = Turns(PROCESSES, 1)
    for number, cost in enumerate((0.0, 0.3, 0.3)):
        place = Place("ab"[number % 2], now)
        turns.come(place)
        while not turns.let_in(now):
            now = turns.due
        turns.answered(now + cost)
        turns.go(place, now + cost)
        now += 1000
    assert turns.change_s == pytest.approx(0.3)
    assert turns.length_s == 2.0


def test_what_is_tried_again_goes_in_front_and_into_a_turn_that_is_over() -> None:
    turns = Turns(BATCHES, 2)
    first, second, waits, other = Place("a", 0.0), Place("a", 0.1), Place("a", 0.2), Place("b", 0.3)
    for place in (first, second, waits, other):
        turns.come(place)
    assert turns.let_in(0.3) == [first, second]
    turns.go(first, 5.0)
    assert turns.let_in(5.0) == []
    again = Place("a", 0.0, again=True)
    turns.come(again)
    assert turns.let_in(5.1) == [again]
    turns.go(again, 6.0)
    turns.go(second, 6.0)
    assert turns.let_in(6.0) == [other]
    turns.go(other, 7.0)
    assert turns.let_in(7.0) == [waits]


def test_who_was_inside_before_there_were_turns_is_waited_for() -> None:
    turns = Turns(BATCHES, 2)
    before, other = Place("a", 0.0), Place("b", 5.0)
    turns.adopt(before)
    turns.come(other)
    assert turns.let_in(5.0) == []
    turns.go(before, 6.0)
    assert turns.let_in(6.0) == [other]
    stranger = Place("c", 0.0)
    turns.adopt(stranger)
    turns.go(stranger, 7.0)
    assert turns.inside == 1


def test_how_many_may_wait() -> None:
    turns = Turns(BATCHES, 1)
    places = [Place("a", float(number)) for number in range(MOST_WAITING + 1)]
    for place in places:
        assert not turns.crowded("a")
        turns.come(place)
        turns.let_in(0.0)
    assert turns.crowded("a")
    assert not turns.crowded("b")
    turns.go(places[-1], 0.0)
    assert not turns.crowded("a")
    # Left already.
    turns.go(places[-1], 0.0)
