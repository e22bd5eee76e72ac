"""Times per stage: sums, shares, and that nothing is read before somebody looks."""

import pickle
import time

import pytest

from s2clip.stopwatch import Stopwatch, Timings


def test_stages_add_up_in_order():
    watch = Stopwatch()
    for stage, seconds in (("b", 0.01), ("a", 0.0), ("b", 0.02)):
        with watch(stage):
            time.sleep(seconds)
    times = watch.milliseconds()
    assert list(times) == ["b", "a"]
    assert 30 <= times["b"] < 1000
    assert times["a"] < 10


class FakeEvent:
    """A CUDA event on a device that computes only when it is waited for."""

    def __init__(self, moment, log):
        self.moment, self.log, self.done = moment, log, False

    def synchronize(self):
        self.log.append(self.moment)
        self.done = True

    def elapsed_time(self, end):
        assert end.done  # CUDA raises for an event that has not happened
        return end.moment - self.moment


def test_gpu_events_are_waited_for_when_they_are_read(monkeypatch):
    log, moments = [], iter(range(10, 100, 10))
    watch = Stopwatch("cuda")
    monkeypatch.setattr(watch, "_now", lambda: FakeEvent(next(moments), log))
    with watch("clip"):
        pass
    with watch("vfm"):
        pass
    timings = Timings((watch, 0.5), ({"read": 3.0, "clip": 1.0}, 1.0))
    assert log == []
    assert dict(timings) == {"clip": 6.0, "vfm": 5.0, "read": 3.0}
    assert log == [20, 40]
    assert timings["read"] == 3.0
    assert log == [20, 40]  # read once


def test_timings_are_a_mapping():
    timings = Timings(({"read": 2.0}, 1.0))
    assert {**timings} == {"read": 2.0}
    assert len(timings) == 1
    assert timings == {"read": 2.0}
    assert "clip" not in timings
    assert pickle.loads(pickle.dumps(timings)) == {"read": 2.0}
    assert repr(timings) == "Timings({'read': 2.0})"
    with pytest.raises(KeyError):
        timings["clip"]
