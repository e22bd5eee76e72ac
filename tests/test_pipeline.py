"""Groups of pictures through a queue: order, how far ahead, and failures in their place."""

import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from s2clip.errors import ImageError
from s2clip.ops import Components
from s2clip.pictures.reading import Failure, Picture
from s2clip.pipeline import DeviceQueue, device_tensors, run
from s2clip.results.refined import Refined
from s2clip.results.result import Result

UNREADABLE = Failure("broken.png", ImageError("broken.png: empty file"))


def pictures(*numbers):
    return [Picture(torch.full((3, 1, 1), number, dtype=torch.uint8), f"{number}.png", 1.0) for number in numbers]


class FakeDevice:
    """Computes a picture's number plus 100; remembers what was queued and what was waited for, and when."""

    def __init__(self, ahead=0, bad=(), fails="queue"):
        self.ahead, self.bad, self.fails, self.log = ahead, bad, fails, []

    def __call__(self, compute, group):
        return compute(group)

    def compute(self, group):
        numbers = [int(picture.pixels.flatten()[0]) for picture in group]
        self.log.append(("queue", numbers))
        if self.fails == "queue":
            self.check(numbers)

        def finish():
            self.log.append(("finish", numbers))
            self.check(numbers)
            return [100 + number for number in numbers]

        return finish

    def check(self, numbers):
        if wrong := [number for number in numbers if number in self.bad]:
            raise RuntimeError(f"no memory for {wrong}")


def outcomes(device, batches, whole=True, record=False):
    def split(batch):
        return [len(batch)] if whole else [1] * len(batch)

    return run(iter(batches), device.compute, device, split=split, record=record)


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_groups_are_queued_ahead_of_the_reader(ahead):
    device = FakeDevice(ahead)
    stream = outcomes(device, [pictures(1, 2), pictures(3), pictures(4, 5), pictures(6)])
    assert device.log == []
    assert next(stream) == 101
    groups = [[1, 2], [3], [4, 5], [6]]
    assert device.log == [*(("queue", group) for group in groups[: ahead + 1]), ("finish", [1, 2])]
    assert list(stream) == [102, 103, 104, 105, 106]
    assert [group for what, group in device.log if what == "finish"] == groups


def test_pictures_that_do_not_mix_come_one_by_one():
    device = FakeDevice()
    stream = outcomes(device, [pictures(1, 2)], whole=False)
    assert next(stream) == 101
    assert device.log == [("queue", [1]), ("finish", [1])]
    assert next(stream) == 102


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("fails", ["queue", "finish"])
def test_recorded_failures(ahead, whole, fails):
    device = FakeDevice(ahead, bad=(2, 5), fails=fails)
    batches = [[*pictures(1, 2), UNREADABLE, *pictures(3)], [UNREADABLE], pictures(4, 5)]
    found = list(outcomes(device, batches, whole, record=True))
    kinds = [one.source if isinstance(one, Failure) else one for one in found]
    assert kinds == [101, "2.png", "broken.png", 103, "broken.png", 104, "5.png"]
    assert str(found[1].error) == "no memory for [2]"


@pytest.mark.parametrize("ahead", [0, 1])
def test_an_unreadable_picture_is_raised_after_those_before_it(ahead):
    stream = outcomes(FakeDevice(ahead), [pictures(1), [*pictures(2), UNREADABLE, *pictures(3)]])
    assert [next(stream), next(stream)] == [101, 102]
    with pytest.raises(ImageError, match="empty file"):
        next(stream)


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("fails", ["queue", "finish"])
def test_a_group_that_cannot_be_computed_is_raised_after_those_before_it(ahead, fails):
    stream = outcomes(FakeDevice(ahead, bad=(3,), fails=fails), [pictures(1, 2), pictures(3), pictures(4)])
    assert [next(stream), next(stream)] == [101, 102]
    with pytest.raises(RuntimeError, match="no memory for"):
        next(stream)


def test_whatever_one_picture_raises_is_recorded_or_raised():
    def compute(group):
        raise KeyError("bug")

    (failure,) = run([pictures(1)], compute, FakeDevice(), split=lambda batch: [1], record=True)
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, KeyError)
    with pytest.raises(KeyError, match="bug"):
        list(run([pictures(1)], compute, FakeDevice(), split=lambda batch: [1], record=False))


def test_the_cpu_has_nothing_to_queue():
    queue = DeviceQueue(torch.device("cpu"))
    assert queue.ahead == 0
    finish = types.SimpleNamespace()
    assert queue(lambda group: finish, pictures(1)) is finish


def test_every_tensor_of_a_result_is_kept_from_the_allocator_while_the_reader_uses_it():
    with FakeTensorMode():
        labels = torch.empty(2, 3, device="cuda")
        regions = Components(*(torch.empty(4, device="cuda") for _ in Components._fields))
        refined = Refined(labels, labels + 1, regions, torch.empty(4, device="cuda"), torch.empty(4, device="cuda"))
        picture = torch.empty(3, 2, 3)
        result = Result(segmentation=labels, confidence=labels + 2, classes=("a",), image=picture, refined=refined)
        found = list(device_tensors([result]))
    expected = [result.segmentation, result.confidence, refined.labels, refined.score, *regions, *refined[3:]]
    assert {id(tensor) for tensor in found} == {id(tensor) for tensor in expected}
