"""The refinement stage without SAM's networks, s2clip beside the published way: groups are pictures and scores.

CUDA: VOC's and Cityscapes' sizes. CPU: VOC's size. Regions and labels are compared before anything is timed;
`python bench/refinement.py` has the paired ratios of all sizes.
"""

import machine
import pytest
import refinement

ON_GPU = machine.device().type == "cuda"
CHOSEN = refinement.SETTINGS_OF_PICTURES if ON_GPU else refinement.SETTINGS_OF_PICTURES[:2]


@pytest.mark.parametrize("side", refinement.SIDES)
@pytest.mark.parametrize("setting", CHOSEN, ids=lambda setting: setting.name)
def test_stage(benchmark, setting, side):
    stage = refinement.build(setting, machine.device())
    assert stage.differing() < 2e-3
    benchmark.group, benchmark.name = f"refinement {stage.name}", side
    benchmark.extra_info |= {"device": machine.name(), "regions": stage.regions}

    def timed():
        stage.run(side)
        machine.finish()

    benchmark.pedantic(timed, rounds=20 if ON_GPU else 3, warmup_rounds=1)
    benchmark.extra_info["stages_ms"] = stage.run(side)[1]
