"""Items by number: a stream that goes on anywhere equals one that never stopped."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from torch.utils.data import DataLoader, TensorDataset

from exitkit.errors import ConfigError
from exitkit.training.batches import Example
from exitkit.training.streams import BatchStream, RolloutData, is_split, prepared
from exitkit.training.tasks import Noise
from tests.training.test_carried import make, rollouts

CPU = torch.device("cpu")
DATA = TensorDataset(torch.arange(10.0)[:, None].expand(10, 3).contiguous())


def stream(seed=0, **more):
    loader = DataLoader(DATA, batch_size=4, shuffle=True, drop_last=True)
    return BatchStream(loader, Noise(DDPMScheduler()), seed, CPU, **more)


def taken(source, numbers):
    return [torch.cat([e.args[0].flatten(), e.args[1].float()]) for e in map(source.next, numbers)]


def test_a_stream_goes_on_where_another_stood():
    whole = stream()
    every, places = [], []
    for number in range(7):
        places.append(whole.place())
        every += taken(whole, [number])
    for at in (1, 2, 5):
        later = stream()
        later.seek(places[at])
        for got, want in zip(taken(later, range(at, 7)), every[at:], strict=True):
            assert torch.equal(got, want)
    assert [p["epoch"] for p in places] == [0, 0, 0, 1, 1, 2, 2]  # two batches an epoch
    other = taken(stream(seed=1), range(7))
    assert not any(torch.equal(a, b) for a, b in zip(every, other, strict=True))


def test_processes_share_batches_one_by_one():
    data = [Example((torch.tensor([float(i)]),)) for i in range(6)]
    for rank in (0, 1):
        source = BatchStream(data, None, 0, CPU, rank, share=2)
        assert [int(source.next(n).args[0]) for n in range(3)] == [rank, 2 + rank, 4 + rank]


def test_data_that_end_say_so():
    with pytest.raises(ConfigError, match="yield no batch"):
        BatchStream([], None, 0, CPU).next(0)
    once = BatchStream(iter([Example(())]), None, 0, CPU)
    once.next(0)
    with pytest.raises(ConfigError, match="ran out after 1 passes"):
        once.next(1)
    with pytest.raises(ConfigError, match="yield Tensor, and no task says"):
        BatchStream([torch.zeros(2, 2)], None, 0, CPU).next(0)


def test_points_of_rollouts_depend_on_their_number_alone():
    model = make("relative")
    source, again = (RolloutData(rollouts(model), None, 0) for _ in range(2))
    source.next(0)
    a, b = source.next(3), again.next(3)
    assert a.kwargs.keys() == {"x", "t"} and len(a.kwargs["x"]) == 4 and a.target is None
    assert torch.equal(a.kwargs["x"], b.kwargs["x"]) and torch.equal(a.kwargs["t"], b.kwargs["t"])
    assert not torch.equal(a.kwargs["x"], source.next(4).kwargs["x"])
    assert source.place() == {}


def test_only_loaders_are_split_and_only_among_several():
    loader, batches = DataLoader(DATA), [torch.zeros(1)]
    alone, both = (
        SimpleNamespace(num_processes=n, prepare_data_loader=lambda data, **_: ("part", data))
        for n in (1, 2)
    )
    assert prepared(loader, alone) is loader and prepared(batches, both) is batches
    assert prepared(loader, both) == ("part", loader) and not is_split(loader)
