"""Signals that wait until nothing can be torn."""

from __future__ import annotations

import os
import signal

import pytest

from irlhf.signals import catching, held


@pytest.fixture(autouse=True)
def _heard():
    """Ctrl-C as in a terminal: a shell in the background has switched it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def tell(number):
    os.kill(os.getpid(), number)


def test_ctrl_c_waits_for_the_end():
    done = []

    def work():
        with held() as waiting:
            tell(signal.SIGINT)
            done.append(list(waiting.told))

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [[signal.SIGINT]]
    with pytest.raises(KeyboardInterrupt):
        tell(signal.SIGINT)


def test_a_second_one_does_not_wait():
    done = []

    def work():
        with held():
            tell(signal.SIGINT)
            tell(signal.SIGINT)
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not done


def test_sigterm_that_nobody_handles_ends_the_program_with_143():
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(SystemExit) as end, held():
        tell(signal.SIGTERM)
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_who_handles_sigterm_gets_it():
    with pytest.raises(KeyboardInterrupt), catching() as caught, held():
        tell(signal.SIGTERM)
    assert caught == [signal.SIGTERM]


def test_delivered_once():
    with held() as waiting:
        tell(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            waiting.deliver()
