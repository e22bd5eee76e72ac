"""A device that says it is a GPU and computes on the CPU: for the lines that only a GPU's owner would run.

It finds misspelt names, wrong arguments, events that are read before they were waited for, and calls inside a capture
that a capture forbids. It says nothing of speed.
"""

import contextlib
import types

GIB = 1 << 30


class Stream:
    def __init__(self, device=None):
        self.device = device

    def wait_stream(self, other):
        assert isinstance(other, Stream)

    def synchronize(self):
        assert not Graph.capturing, "a capture may not wait"

    def record_event(self):
        event = Event()
        event.record(self)
        return event


class Event:
    def __init__(self, enable_timing=False):
        self.timing, self.recorded, self.waited_for = enable_timing, False, False

    def record(self, stream=None):
        assert stream is None or isinstance(stream, Stream)
        self.recorded, self.waited_for = True, False

    def synchronize(self):
        assert self.recorded, "waits for nothing"
        self.waited_for = True

    def elapsed_time(self, end):
        assert self.timing, "was not made for timing"
        assert end.timing, "was not made for timing"
        assert self.recorded, "never recorded"
        assert end.waited_for, "read before it was waited for"
        return 0.25


class Graph:
    capturing = False

    def __init__(self):
        self.captured = False

    def replay(self):
        assert self.captured, "nothing was captured"


@contextlib.contextmanager
def capture(graph, capture_error_mode="global"):
    assert capture_error_mode in ("global", "thread_local", "relaxed")
    Graph.capturing = True
    try:
        yield
    finally:
        Graph.capturing = False
    graph.captured = True


def pretend(monkeypatch, name="NVIDIA Pretended 1"):
    """`torch.cuda` of that device; what is not listed here is missing and fails."""
    current = Stream()
    properties = types.SimpleNamespace(L2_cache_size=1 << 20, total_memory=24 * GIB, multi_processor_count=128)
    nothing = {
        one: lambda *_: None
        for one in ("reset_peak_memory_stats", "empty_cache", "synchronize", "profiler.start", "profiler.stop")
    }
    answers = {
        "is_available": lambda: True,
        "get_device_name": lambda device=None: name,
        "get_device_capability": lambda device=None: (8, 9),
        "get_device_properties": lambda device=None: properties,
        "current_stream": lambda device=None: current,
        "stream": lambda stream: contextlib.nullcontext(),
        "mem_get_info": lambda device=None: (20 * GIB, 24 * GIB),
        "memory_reserved": lambda device=None: GIB,
        "memory_allocated": lambda device=None: GIB,
        "max_memory_allocated": lambda device=None: GIB + (1 << 20),
        "nvtx.range_push": lambda message: None,
        "nvtx.range_pop": lambda: None,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": capture,
    }
    for path, answer in (nothing | answers).items():
        monkeypatch.setattr(f"torch.cuda.{path}", answer)
