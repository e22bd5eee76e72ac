"""Whatever stands in a file: what it says, or an error of one line, within time and memory. More: `make fuzz`."""

import hypothesis.strategies as st
import pytest
from fuzz_run import run
from fuzz_targets import TARGETS, picture, seeds
from hypothesis import HealthCheck, given, settings

MUTATIONS = 700

pytestmark = pytest.mark.filterwarnings("ignore")  # what Pillow says of damaged metadata


@pytest.mark.parametrize(("target", "share"), TARGETS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_damaged_files(target, share, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")

    @settings(max_examples=round(MUTATIONS * share), deadline=None, database=None, suppress_health_check=HealthCheck)
    @given(number=st.integers(0, 2**63))
    def hold(number):
        target(folder, number)

    hold()


def test_seeds_can_be_read(tmp_path, monkeypatch):
    """A fuzzer whose seeds are refused finds nothing."""
    monkeypatch.setattr("fuzz_targets.mutated", lambda content, choice: content)
    tried = 8 * len(seeds())
    read, _, findings = run(picture, tmp_path, range(tried))
    assert findings == []
    assert read == tried
