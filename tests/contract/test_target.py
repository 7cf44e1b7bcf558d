"""What plan and run rely on of a target; the fake one, the local one, and docker."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benches import TargetBench, wait_until

from orchestrator.core.launch import SECRET, InstanceState, Usage
from orchestrator.core.progress import silent
from orchestrator.errors import HostError


def test_an_ensured_instance_runs_and_is_supervised(bench: TargetBench) -> None:
    returned = bench.target.ensure("one", bench.launch, "label")
    assert (returned.name, returned.launch, returned.label) == ("one", bench.launch, "label")
    seen = bench.runs()
    assert (seen.supervised, seen.starts, seen.last_exit) == (True, 1, None)
    assert seen.pid is not None
    assert seen.url == f"http://{seen.host}:{seen.port}"


def test_ensuring_twice_changes_nothing(bench: TargetBench) -> None:
    first = bench.runs()
    assert bench.target.ensure("one", bench.launch, "label") == first
    assert bench.seen() == first


def test_ensuring_with_another_label_keeps_the_process(bench: TargetBench) -> None:
    first = bench.runs()
    bench.target.ensure("one", bench.launch, "another")
    assert bench.seen() == replace(first, label="another")


def test_a_running_instance_takes_no_other_launch(bench: TargetBench) -> None:
    first = bench.runs()
    with pytest.raises(HostError, match="other settings"):
        bench.target.ensure("one", replace(bench.launch, env=(("A", "1"),)), "label")
    assert bench.seen() == first


def test_two_instances_have_two_addresses(bench: TargetBench) -> None:
    assert bench.runs("two").url != bench.runs("one").url
    assert [instance.name for instance in bench.target.observe()] == ["one", "two"]


def test_a_relabelled_instance_says_so_and_keeps_its_process(bench: TargetBench) -> None:
    first = bench.runs()
    later = replace(bench.launch, env=(("A", "1"),))
    bench.target.relabel("one", later, "afterwards")
    assert bench.seen() == replace(first, label="afterwards", launch=later)
    # What it would be started with is what it is compared with from now on.
    assert bench.target.ensure("one", later, "afterwards").pid == first.pid


def test_a_secret_is_an_instances_own_and_stays_with_it(bench: TargetBench) -> None:
    bench.launch = replace(bench.launch, env=(("KEY", SECRET),))
    first, other = bench.runs(), bench.runs("two")
    assert first.secret
    assert first.secret != other.secret
    assert first.secret not in str(first)
    bench.target.stop("one", silent)
    assert bench.runs().secret == first.secret
    bench.target.stop("one", silent)
    bench.target.remove("one")
    bench.launch = replace(bench.launch, env=())
    assert bench.runs().secret == ""


def test_what_runs_takes_memory_and_what_does_not_tells_nothing(bench: TargetBench) -> None:
    usage = bench.target.usage(bench.runs())
    assert usage.memory is not None
    assert 1 << 19 < usage.memory < 1 << 32
    # Which processes are a container's is asked only where they may hold a GPU's memory.
    assert usage.pids in ((), (bench.seen().pid,))
    bench.target.stop("one", silent)
    assert bench.target.usage(bench.seen()) == Usage()


def test_what_is_unknown_cannot_be_relabelled(bench: TargetBench) -> None:
    with pytest.raises(HostError, match=r"no (local process|container) named one"):
        bench.target.relabel("one", bench.launch, "label")
    assert bench.target.observe() == ()


def test_stopping_is_idempotent_and_leaves_the_instance(bench: TargetBench) -> None:
    bench.runs()
    for _ in range(2):
        bench.target.stop("one", silent)
        seen = bench.seen()
        assert (seen.state, seen.supervised, seen.pid) == (InstanceState.STOPPED, False, None)
    bench.target.stop("nobody", silent)


def test_a_stopped_instance_starts_again_at_its_port(bench: TargetBench) -> None:
    first = bench.runs()
    bench.target.stop("one", silent)
    second = bench.runs(label="second")
    assert (second.port, second.label, second.starts) == (first.port, "second", 1)
    assert second.pid != first.pid


def test_a_stopped_instance_takes_another_launch(bench: TargetBench) -> None:
    bench.runs()
    bench.target.stop("one", silent)
    other = replace(bench.launch, env=(("A", "1"),))
    bench.target.ensure("one", other, "label")
    assert bench.seen().launch == other


def test_a_running_instance_is_not_removed(bench: TargetBench) -> None:
    first = bench.runs()
    with pytest.raises(HostError, match="still runs"):
        bench.target.remove("one")
    assert bench.seen() == first


def test_removing_is_idempotent_and_leaves_nothing(bench: TargetBench) -> None:
    bench.runs()
    bench.target.stop("one", silent)
    for _ in range(2):
        bench.target.remove("one")
    assert bench.target.observe() == ()


def test_files_alone_are_no_instance_and_can_be_removed(bench: TargetBench) -> None:
    bench.target.write_file("one", "serve.yaml", "text")
    assert bench.target.observe() == ()
    bench.target.stop("one", silent)
    bench.target.remove("one")
    assert bench.target.observe() == ()


def test_a_file_is_removed_and_need_not_be_there(bench: TargetBench) -> None:
    bench.target.write_file("one", "serve.yaml", "text")
    assert bench.has_file("one", "serve.yaml")
    bench.target.remove_file("one", "serve.yaml")
    bench.target.remove_file("one", "serve.yaml")
    bench.target.remove_file("nobody", "models/blobs/none")
    assert not bench.has_file("one", "serve.yaml")


def test_a_crash_is_seen_and_keeps_the_port(bench: TargetBench) -> None:
    first = bench.runs()
    bench.crash("one")
    crashed = wait_until(lambda: seen if (seen := bench.seen()).last_exit is not None else None)
    assert crashed.state in (InstanceState.BACKOFF, InstanceState.RUNNING)
    assert (crashed.supervised, crashed.port) == (True, first.port)


def test_what_crashed_is_not_removed_while_its_keeper_waits(bench: TargetBench) -> None:
    bench.runs()
    bench.crash("one")
    wait_until(lambda: bench.seen().last_exit is not None)
    with pytest.raises(HostError, match="still runs"):
        bench.target.remove("one")


def test_ensuring_what_crashed_brings_it_back(bench: TargetBench) -> None:
    first = bench.runs()
    bench.crash("one")
    wait_until(lambda: bench.seen().last_exit is not None)
    second = bench.runs()
    assert second.pid != first.pid
    assert (second.port, second.supervised) == (first.port, True)


def test_a_fixed_port_is_taken(bench: TargetBench) -> None:
    port = bench.runs().port
    bench.target.stop("one", silent)
    fixed = replace(bench.launch, port=port)
    assert bench.target.ensure("two", fixed, "label").port == port
    assert bench.seen("two").launch == fixed


def test_a_program_that_is_not_there(bench: TargetBench) -> None:
    launch, said = bench.cannot
    with pytest.raises(HostError, match=said):
        bench.target.ensure("one", launch, "label")
    assert [seen for seen in bench.target.observe() if seen.state is InstanceState.RUNNING] == []


def never() -> bool:
    """Nobody waits for more of a log."""
    return False


def test_a_damaged_record_is_seen_beside_sound_ones(bench: TargetBench) -> None:
    first = bench.runs()
    other = bench.runs("two")
    bench.damage("one")
    seen = bench.seen()
    assert seen.problem != ""
    assert (seen.state, seen.supervised, seen.pid) == (first.state, True, first.pid)
    assert (seen.launch.argv, seen.label) == ((), "")
    assert bench.seen("two") == other
    assert other.problem == ""


def test_what_runs_with_a_damaged_record_can_only_be_ended(bench: TargetBench) -> None:
    bench.runs()
    bench.damage("one")
    for use in (
        lambda: bench.target.ensure("one", bench.launch, "label"),
        lambda: bench.target.relabel("one", bench.launch, "label"),
    ):
        with pytest.raises(HostError, match="record of one is damaged"):
            use()
    bench.target.stop("one", silent)
    assert bench.seen().state is InstanceState.STOPPED
    again = bench.runs()
    assert (again.problem, again.label) == ("", "label")


def test_what_runs_with_a_damaged_record_can_be_removed(bench: TargetBench) -> None:
    bench.runs()
    bench.damage("one")
    bench.target.remove("one")
    assert bench.target.observe() == ()


def test_the_log_outlives_its_instance(bench: TargetBench) -> None:
    assert bench.target.log_tail("one", 10) == ""
    bench.runs()
    log = wait_until(lambda: bench.target.log_tail("one", 10))
    bench.target.stop("one", silent)
    bench.target.remove("one")
    assert log in bench.target.log_tail("one", 10)


def test_the_log_is_read_line_by_line_also_afterwards(bench: TargetBench) -> None:
    assert bench.target.log("nobody", 10, never) is None
    assert bench.target.logs() == ()
    bench.runs()
    said = wait_until(lambda: bench.target.log_tail("one", 10))
    assert said in list(bench.target.log("one", 10, never) or ())
    assert bench.target.logs() == ("one",)
    bench.target.stop("one", silent)
    assert said in list(bench.target.log("one", 10, never) or ())
