"""How far work has come: by a clock of the test's own."""

import io
import types

import pytest

from maml_jax import progress
from maml_jax.progress import Meter, duration, say, track


class Stream(io.StringIO):
    """Standard error, a terminal or not."""

    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told to go on."""
    now = types.SimpleNamespace(time=100.0)
    now.perf_counter = lambda: now.time
    monkeypatch.setattr(progress, "time", now)

    def passes(seconds):
        now.time += seconds

    return passes


@pytest.fixture
def stderr(monkeypatch):
    """Replaces standard error."""

    def replaced(terminal):
        stream = Stream(terminal)
        monkeypatch.setattr(progress.sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        return stream

    return replaced


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (9.6, "0:10"), (75, "1:15"), (3599.4, "59:59"), (3661, "1:01:01")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_only_time_at_work_counts(clock):
    """Not that before the start, nor that of a pause."""
    meter = Meter("training", 100, "meta-steps")
    clock(50)
    assert meter.seconds == 0
    assert meter.left == ""
    meter.start()
    clock(10)
    meter.start()  # again, which changes nothing
    with meter.paused():
        clock(1000)
        assert meter.seconds == 10
    assert meter.seconds == 10
    clock(10)
    meter.advance(25)
    assert meter.seconds == 20
    assert meter.left == "1:00 left"  # 75 more, 25 of which took 20 s


def test_a_pause_before_the_start_does_not_start_it(clock):
    meter = Meter("training", 10, "meta-steps")
    with meter.paused():
        clock(5)
    clock(5)
    assert meter.seconds == 0


def test_what_was_done_before_says_nothing_about_the_rate(clock):
    """A run that goes on at 60 of 100 and takes 10 in 5 s has 15 s to go."""
    meter = Meter("training", 100, "meta-steps", done=60)
    meter.start()
    clock(5)
    assert meter.left == ""
    meter.advance(70)
    assert meter.left == "0:15 left"


def test_a_pause_ends_with_an_exception_too(clock):
    meter = Meter("training", 10, "meta-steps")
    meter.start()
    clock(1)

    def stopped():
        clock(7)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), meter.paused():
        stopped()
    clock(1)
    assert meter.seconds == 2


def test_lines_now_and_then_where_there_is_no_terminal(clock, stderr):
    out = stderr(terminal=False)
    with Meter("evaluating", 40, "tasks") as meter:
        meter.start()
        for done in range(1, 41):
            clock(1)
            meter.advance(done)
    lines = out.getvalue().splitlines()
    assert lines[0] == "evaluating, 6 of 40 tasks, 0:34 left"
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("terminal", "how"), [(False, {"lines": False}), (False, {"show": False}), (True, {"show": False})]
)
def test_nothing_where_nothing_is_wanted(clock, stderr, terminal, how):
    out = stderr(terminal)
    with Meter("training", 40, "meta-steps", **how) as meter:
        meter.start()
        clock(60)
        meter.advance(20)
    assert out.getvalue() == ""


def test_a_bar_in_a_terminal(clock, stderr):
    """Messages come above it, and it goes when the work is done."""
    out = stderr(terminal=True)
    with Meter("training", 40, "meta-steps", lines=False) as meter:
        meter.start()
        clock(60)
        meter.advance(20)
        say("step 20  loss [0.5]")
        meter._bar.refresh()
    shown = out.getvalue()
    assert "training" in shown
    assert "20 of 40" in shown
    assert "1:00 left" in shown
    assert "step 20  loss [0.5]\n" in shown, "as it is, without markup"
    assert progress._bar is None
    say("afterwards")
    assert out.getvalue().endswith("afterwards\n")


def test_one_bar_at_a_time(clock, stderr):
    """Within it, other work tells by nothing or by lines."""
    stderr(terminal=True)
    with Meter("training", 40, "meta-steps") as outer, Meter("validating", 10, "tasks") as inside:
        assert outer._bar is not None
        assert inside._bar is None
    with Meter("evaluating", 10, "tasks") as after:
        assert after._bar is not None


def test_other_processes_are_silent(clock, stderr, monkeypatch):
    out = stderr(terminal=True)
    monkeypatch.setattr(progress, "_silent", False)
    progress.silence()
    with Meter("training", 40, "meta-steps") as meter:
        meter.start()
        clock(60)
        meter.advance(20)
        say("hello")
    assert out.getvalue() == ""


def test_track(clock, stderr):
    """The items as they are, and how far it is."""
    out = stderr(terminal=False)
    seen = []
    for item in track("abc", "reading", "files"):
        seen.append(item)
        clock(6)
    assert seen == ["a", "b", "c"]
    assert out.getvalue().splitlines() == ["reading, 1 of 3 files, 0:12 left", "reading, 2 of 3 files, 0:06 left"]
