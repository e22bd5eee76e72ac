"""What a launcher would compile, for tests: `s2clip.kernels.recording` under the names that tests use."""

from s2clip.kernels import recording
from s2clip.kernels.calls import calls


def recorded(module, arch: int):
    """`recording.recorded`: kernels of all modules take part, those of `module` among them."""
    return recording.recorded(arch)


def compiled(operator: str, arch: int) -> set[recording.Launch]:
    """The keys that the compile gate compiles."""
    launches = set()
    for _, call in calls(operator):
        with recording.recorded(arch) as seen:
            call()
        launches |= set(seen)
    return launches
