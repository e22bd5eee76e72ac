"""Pages change when they like: ask until they have."""

import time


def until(condition, *, seconds: float = 60):
    """What `condition` returns once it is true; AssertionError after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds} s: {condition}")
