"""Threads that wait, sleep and wake, and programs of several callers."""

import gc
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from dspark_kernels.cpu.matrix import multiply_op, multiply_reference
from dspark_kernels.cpu.pool import MAX_KEPT
from dspark_kernels.cpu.processor import variants
from dspark_kernels.cpu.rounded import empty_rounded, round_rows, round_rows_reference
from dspark_kernels.cpu.runtime import Op, Program, Runtime, using
from tests.kernels.cpu.random_weights import random_weight


@pytest.fixture
def runtime(tmp_path_factory):
    if not variants():
        pytest.skip("no kernels for this processor")
    made = Runtime(next(iter(variants().values())), 3, tmp_path_factory.getbasetemp() / "pool")
    yield made
    made.close()


def sleepers(runtime: Runtime) -> int:
    return runtime.pool._sleepers


def wait_until(is_so) -> None:
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_threads_sleep_and_wake(runtime):
    x = torch.randn(40, 96)
    expected = round_rows_reference(x).data
    for _ in range(3):
        wait_until(lambda: sleepers(runtime) == 2)
        with using(runtime):
            for _ in range(50):  # awake in between
                assert torch.equal(round_rows(x).data, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are moved on Linux alone")
def test_threads_leave_the_callers_processor(runtime):
    """Where the system put both, it may leave them for long, and one waits for the other."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor")
    round_rows_of(runtime)
    here = {runtime.pool._field("caller").value}
    helpers = [thread.native_id for thread in runtime.pool._threads]
    for helper in helpers:
        os.sched_setaffinity(helper, here)

    def have_left() -> bool:
        round_rows_of(runtime)
        caller = runtime.pool._field("caller").value
        return all(caller not in os.sched_getaffinity(helper) for helper in helpers)

    wait_until(have_left)


def round_rows_of(runtime: Runtime) -> None:
    with using(runtime):
        round_rows(torch.randn(40, 96))


def test_operations_follow_one_another(runtime):
    """Each reads what all threads wrote in the one before."""
    generator = torch.Generator().manual_seed(2)
    weights = [random_weight("q8_0", 64, 64, generator) for _ in range(30)]
    values = [torch.empty(48, 64) for _ in range(31)]
    rounded = [empty_rounded(48, 64).data for _ in weights]
    ops = []
    for index, weight in enumerate(weights):
        ops.append(Op("round_rows", 0, 1, (values[index], rounded[index], 2)))
        ops.append(multiply_op(weight, None, rounded[index], values[index + 1]))
    program, step = Program(runtime, ops), torch.tensor([48])
    for _ in range(5):
        values[0].copy_(torch.randn(48, 64, generator=generator))
        expected = values[0].clone()
        for weight in weights:
            expected = multiply_reference(round_rows_reference(expected), weight)
        for _ in range(10):
            values[-1].zero_()
            program(step)
            assert torch.equal(values[-1], expected)
        values[-1].zero_()
        parts = [Program(runtime, ops[at : at + 7]) for at in range(0, len(ops), 7)]
        runtime.run_jobs(*(part.job(step.data_ptr()) for part in parts))  # in one call
        assert torch.equal(values[-1], expected)


def test_nobody_waits_for_a_thread_that_does_nothing(tmp_path, monkeypatch):
    """As when the system runs something else, or in a process that forked."""
    if not variants():
        pytest.skip("no kernels for this processor")
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    made = Runtime(next(iter(variants().values())), 3, tmp_path)
    monkeypatch.setattr(threading.Thread, "join", lambda self: None)
    x = torch.randn(40, 96)
    with using(made):
        for _ in range(40):  # tables of more programs than are kept
            assert torch.equal(round_rows(x).data, round_rows_reference(x).data)
    assert len(made.pool._kept) <= MAX_KEPT + 1
    made.close()


def test_callers_on_several_threads_do_not_meet(runtime):
    failures = []

    def work(seed: int) -> None:
        x = torch.randn(20, 64, generator=torch.Generator().manual_seed(seed))
        expected = round_rows_reference(x).data
        with using(runtime):
            failures.extend(1 for _ in range(100) if not torch.equal(round_rows(x).data, expected))

    callers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures


@pytest.mark.parametrize("end", ["close", "forget"])
def test_threads_end_before_their_code(tmp_path, end):
    if not variants():
        pytest.skip("no kernels for this processor")
    made = Runtime(next(iter(variants().values())), 3, tmp_path)
    threads = made.pool._threads
    with using(made):
        round_rows(torch.randn(4, 32))
    assert len(threads) == 2
    if end == "close":
        made.close()
    else:
        del made
        gc.collect()
    assert not any(thread.is_alive() for thread in threads)


def test_a_process_ends_with_its_threads_and_brings_llvm_only_if_asked():
    code = (
        "import sys, torch, dspark_kernels.cpu.decoder_pass as _;"
        "assert 'llvmlite' not in sys.modules;"
        "from dspark_kernels.cpu.rounded import round_rows; torch.set_num_threads(2);"
        "[round_rows(torch.randn(4, 32)) for _ in range(20)]; print('done')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert (ended.returncode, ended.stdout.split()) == (0, [b"done"]), ended.stderr


def test_no_rows_are_no_work(runtime):
    with using(runtime):
        assert round_rows(torch.empty(0, 64)).data.numel() == 0
