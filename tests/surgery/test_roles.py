"""Which argument is the noisy input: names propose, the form of the output decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import TracingError
from exitkit.surgery.inputs import bind, signature_of
from exitkit.surgery.probe import probe
from exitkit.surgery.roles import noisy_candidates, time_candidates, time_scale
from tests.backbones import CASES, Case

X, T = torch.randn(2, 3, 8, 8), torch.tensor([900.0, 20.0])


def candidates(forward: Any, *args: Any, given: str | None = None, **kwargs: Any) -> list[str]:
    return noisy_candidates(bind(signature_of(forward), args, kwargs), nn.Identity(), given)


@pytest.mark.parametrize("backbone", CASES, ids=lambda c: c.id)
def test_the_first_guess_is_right_where_names_are_usual(backbone: Case) -> None:
    net = backbone.make()
    args, kwargs = backbone.inputs(2)
    assert candidates(net.forward, *args, **kwargs)[0] == backbone.noisy


def test_declarations_go_before_names_and_names_before_order() -> None:
    def named(mask: Tensor, image: Tensor, t: Tensor, ids: Tensor) -> None: ...

    def nameless(t: Tensor, ids: Tensor, a: Tensor) -> None: ...

    ids = torch.arange(2)
    assert candidates(named, X, X, T, ids) == ["image", "mask"]
    assert candidates(named, X, X, T, ids, given="mask") == ["mask"]
    with pytest.raises(TracingError, match="noisy='masks' is not among.*mask, image, t, ids"):
        candidates(named, X, X, T, ids, given="masks")
    assert candidates(nameless, X, ids, T) == ["a"]
    with pytest.raises(TracingError, match="no floating-point tensor and no ids.*found ids"):
        candidates(nameless, t=1, ids=ids, a=None)


def test_ids_come_behind_data_and_before_masks() -> None:
    def forward(mask: Tensor, words: Tensor, sigma: Tensor, x: Tensor | None = None) -> None: ...

    words, mask = torch.randint(0, 40, (2, 8)), torch.ones(2, 8, dtype=torch.long)
    assert candidates(forward, mask, words, T) == ["words", "mask"]
    assert candidates(forward, mask, words, T, X) == ["x", "words", "mask"]
    assert candidates(forward, mask > 0, words, T) == ["words"], "booleans are no ids"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class Vocoder(nn.Module):
    """`forward(audio, diffusion_step, spectrogram)`: the condition has more axes than the audio."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.condition, self.out = nn.Linear(1, 16), nn.Linear(20, 16), nn.Linear(16, 1)
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, audio: Tensor, diffusion_step: Tensor, spectrogram: Tensor) -> Tensor:
        h = self.stem(audio[..., None]) + self.condition(spectrogram)
        h = h + diffusion_step[:, None, None] / 1000
        for block in self.blocks:
            h = block(h)
        return self.out(h)[..., 0]


class Upscaler(nn.Module):
    """The condition comes first, has as many axes and more channels; the last argument is denoised."""

    def __init__(self, rows: bool = True) -> None:
        super().__init__()
        self.rows = rows
        self.stem, self.condition, self.out = nn.Linear(6, 16), nn.Linear(9, 16), nn.Linear(16, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, low: Tensor, level: Tensor, high: Tensor) -> Tensor:
        low = self.condition(low if self.rows else low[None])
        h = self.stem(high) + low + level[:, None, None]
        for block in self.blocks:
            h = block(h)
        return self.out(h)


def built(kind: Any, *args: Any) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = kind(*args).eval()
    return net


def test_audio_is_told_from_its_spectrogram() -> None:
    example = (torch.randn(3, 8), torch.tensor([700.0, 400.0, 90.0]), torch.randn(3, 8, 20))
    plan = ek.inspect(built(Vocoder), example_inputs=example)
    assert (plan.noisy, plan.timestep, plan.doubts) == ("audio", "diffusion_step", ())
    assert candidates(Vocoder().forward, *example)[0] == "spectrogram", "the control: by form alone"


@pytest.mark.parametrize("rows", [True, False])
def test_what_has_the_form_of_the_output_is_denoised(rows: bool) -> None:
    # Without rows the first guess cannot even be cut.
    low = torch.randn(3, 5, 9) if rows else torch.randn(5, 9)
    example = (low, torch.rand(3), torch.randn(3, 5, 6))
    seen = probe(built(Upscaler, rows), example)
    assert (seen.batch.noisy, seen.timestep, seen.timestep_scale) == ("high", "level", 1000.0)
    assert seen.doubts == ()


def test_a_name_decides_between_equal_forms() -> None:
    class Masked(Upscaler):
        def forward(self, mask: Tensor, t: Tensor, x: Tensor) -> Tensor:
            return super().forward(torch.cat([mask, mask[..., :3]], -1), t, x)

    x = torch.randn(3, 5, 6)
    assert probe(built(Masked), (x.clone(), torch.rand(3), x)).batch.noisy == "x"
    assert probe(built(Upscaler), (torch.randn(3, 5, 9), torch.rand(3), x)).batch.noisy == "high"


def test_arguments_that_may_be_times() -> None:
    def forward(
        x: Tensor, sigma: Tensor, w: Tensor, scale: float, y: Tensor, table: Tensor
    ) -> None: ...

    labels, table = torch.arange(2), torch.randn(2, 5)
    bound = bind(signature_of(forward), (X, T, T, 2.0, labels, table), {})
    assert time_candidates(bound, "x", None) == (["sigma"], ["w", "scale"])
    assert time_candidates(bound, "x", "w") == (["w"], [])


@pytest.mark.parametrize(
    ("value", "scale", "sure"),
    [
        (torch.tensor([900.0, 20.0]), 1.0, True),
        (torch.tensor([0.9, 0.02]), 1000.0, True),
        (torch.tensor([1.0, 0.5]), 1000.0, True),
        (torch.tensor([1, 1]), 1.0, True),
        (1, 1.0, True),
        (0.3, 1000.0, True),
        (torch.tensor([1.0, 1.0]), 1.0, False),
        (1.0, 1.0, False),
        (torch.zeros(2), 1.0, False),
    ],
)
def test_the_scale_is_never_told_from_a_one(value: Any, scale: float, sure: bool) -> None:
    found, doubt = time_scale(value)
    assert found == scale and (not doubt) == sure
    assert sure or "timestep_range" in doubt
