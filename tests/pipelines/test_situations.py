"""Situations of pipelines: pictures to begin with, adapters, attention, changes in the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers as d
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, IPAdapterAttnProcessor
from diffusers.models.embeddings import ImageProjection
from torch import Tensor

import exitkit as ek
from exitkit.policies import FixedExit, Interval, NeverExit
from tests.backbones import perturb
from tests.tiny_pipelines import STEPS, WIDTH, case

Call = Callable[[Any], Tensor]
when = pytest.mark.parametrize("when", ["before", "after"])


def checked(
    make: Callable[[], Any],
    call: Call,
    example: dict[str, Any],
    change: Callable[[Any], None] = lambda pipe: None,
    when: str = "before",
) -> ek.ExitModel:
    """Wraps a pipeline before or after a change: the bits of the bare one, an exit, and back."""
    plain, pipe = make(), make()
    before = call(plain)
    change(plain)
    bare = call(plain)
    if when == "before":
        change(pipe)
    model = ek.wrap(pipe, "carried", example_inputs=example)
    model.heads.mark_fitted(uncertainty=False)
    model.policy = NeverExit()
    if when == "after":
        assert torch.equal(call(pipe), before)
        change(pipe)
    assert torch.equal(call(pipe), bare), "without exits, the bits of the bare call"
    model.policy = Interval(2)
    early = call(pipe)
    assert bool(early.isfinite().all()) and not torch.equal(early, bare), "nobody left early"
    assert model.trace.cost < 1
    assert torch.equal(call(pipe), early), "something was left from the call before"
    ek.unwrap(pipe)
    assert torch.equal(call(pipe), bare)
    return model


# ----------------------------------------------------------------------------- pictures to begin with


def of_parts(kind: Any, channels: int = 4) -> Callable[[], Any]:
    """A pipeline of another kind over the parts of the tiny Stable Diffusion."""

    def make() -> Any:
        sd = case("sd").make()
        unet = sd.unet
        if channels != 4:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                config = {**unet.config, "in_channels": channels}
                unet = perturb(type(unet).from_config(config).eval())
        parts = {**sd.components, "unet": unet}
        pipe = kind(**parts, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


def picture(channels: int, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.rand(1, channels, 8, 8, generator=source)


@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting(channels: int) -> None:
    """What is kept is noised anew at each step, or comes in as further channels."""
    mask = (picture(1, 1) > 0.5).float()
    given = {**case("sd").call(1), "image": picture(3, 0), "mask_image": mask}
    given |= {"num_inference_steps": 6, "strength": 0.7, "output_type": "latent"}

    def call(pipe: Any) -> Tensor:
        return pipe(**given, generator=torch.Generator().manual_seed(0))[0]

    model = checked(of_parts(d.StableDiffusionInpaintPipeline, channels), call, given)
    assert len({c.step for c in model.trace.calls}) == 4, "0.7 of six steps"


def test_pictures_to_pictures() -> None:
    given = {**case("sd").call(1), "image": picture(3, 0), "strength": 0.7}
    given |= {"num_inference_steps": 6, "output_type": "latent"}
    for name in ("height", "width"):
        del given[name]

    def call(pipe: Any) -> Tensor:
        return pipe(**given, generator=torch.Generator().manual_seed(0))[0]

    model = checked(of_parts(d.StableDiffusionImg2ImgPipeline), call, given)
    assert len({c.step for c in model.trace.calls}) == 4


# ------------------------------------------------------------------------------ adapters and attention


def ip_adapter(pipe: Any) -> None:
    """A random IP-Adapter, as `load_ip_adapter` puts its weights into the UNet."""
    unet, weights = pipe.unet, {}
    source = torch.Generator().manual_seed(3)
    for number, name in enumerate(unet.attn_processors):
        if not name.endswith("attn2.processor"):
            continue
        attention = unet.get_submodule(name.removesuffix(".processor"))
        width = attention.to_q.in_features
        own = IPAdapterAttnProcessor(width, unet.config.cross_attention_dim)
        for part in ("to_k_ip", "to_v_ip"):
            like = own.state_dict()[f"{part}.0.weight"]
            weights[f"{number}.{part}.weight"] = torch.randn(like.shape, generator=source)
    projection = ImageProjection(unet.config.cross_attention_dim, WIDTH, 4)
    weights_of = {
        "proj.weight": projection.image_embeds.weight,
        "proj.bias": projection.image_embeds.bias,
        "norm.weight": projection.norm.weight,
        "norm.bias": projection.norm.bias,
    }
    drawn = {k: torch.randn(v.shape, generator=source) for k, v in weights_of.items()}
    unet._load_ip_adapter_weights([{"image_proj": drawn, "ip_adapter": weights}])


@when
def test_ip_adapter(when: str) -> None:
    one = case("sd")
    source = torch.Generator().manual_seed(4)
    embeds = torch.randn(2, 1, WIDTH, generator=source)  # without and with the picture
    given = one.call(1)
    shown = {**given, "ip_adapter_image_embeds": [embeds]}

    def make() -> Any:
        pipe = one.make()
        if when == "before":
            ip_adapter(pipe)
        return pipe

    def call(pipe: Any) -> Tensor:
        keywords = given if pipe.unet.encoder_hid_proj is None else shown
        return torch.as_tensor(pipe(**keywords, generator=torch.Generator().manual_seed(0))[0])

    plain = one.make()
    ip_adapter(plain)
    seen = call(plain)
    shown["ip_adapter_image_embeds"] = [embeds.flip(1) * 2]
    assert not torch.equal(call(plain), seen), "the control: the picture is not looked at"
    if when == "before":
        checked(make, call, shown)
    else:
        checked(make, call, given, ip_adapter, when)


def native(pipe: Any) -> None:
    pipe.transformer.set_attention_backend("native")


class Scaled(AttnProcessor):
    """Attention of somebody's own, which shows in the output."""

    def __call__(self, attn: Attention, *args: Any, **kwargs: Any) -> Tensor:
        return super().__call__(attn, *args, **kwargs) * 1.5


def processors(pipe: Any) -> None:
    pipe.unet.set_attn_processor(Scaled())


@pytest.mark.parametrize(
    ("name", "change", "when"),
    [
        pytest.param(name, change, when, id=f"{change.__name__}-{when}", marks=marks)
        for name, change, when, marks in (
            ("sd3", native, "after", []),
            ("sd", processors, "before", []),
            ("sd3", native, "before", pytest.mark.slow),
            ("sd", processors, "after", pytest.mark.slow),
        )
    ],
)
def test_attention_back_ends(name: str, change: Callable[[Any], None], when: str) -> None:
    one = case(name)
    checked(one.make, one.run, one.call(1), change, when)


# ------------------------------------------------------------------------------------------ quantised


@when
def test_weights_quantised_by_torchao(when: str) -> None:
    quantisation = pytest.importorskip("torchao.quantization")
    one = case("sd3")

    def int8(pipe: Any) -> None:
        quantisation.quantize_(pipe.transformer, quantisation.Int8WeightOnlyConfig())

    plain, changed = one.make(), one.make()
    int8(changed)
    assert not torch.equal(one.run(changed), one.run(plain)), "the control: nothing was quantised"
    checked(one.make, one.run, one.call(1), int8, when)


# ------------------------------------------------------------------------------------ during the loop


def test_guidance_that_ends_in_a_callback() -> None:
    """diffusers' own recipe: the batch halves, so that state of the copies must not be mixed."""
    one = case("sd")

    def end(pipe: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        return tensors

    rows: list[int] = []

    def call(pipe: Any) -> Tensor:
        rows.clear()
        hook = pipe.unet.register_forward_pre_hook(
            lambda _, args, kwargs: rows.append(len(kwargs.get("sample", args[0] if args else ()))),
            with_kwargs=True,
        )
        try:
            made = pipe(
                **{**one.call(2), "num_inference_steps": 8},
                callback_on_step_end=end,
                callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
                generator=torch.Generator().manual_seed(0),
            )
        finally:
            hook.remove()
        return torch.as_tensor(made[0])

    model = checked(one.make, call, one.call(1))
    assert rows == [4] * 4 + [2] * 4
    depths = [(c.step, int(c.depth.min())) for c in model.trace.calls]
    full = len(model.exits) + 1
    assert [step for step, depth in depths if depth == full] == [0, 2, 4, 6]


@pytest.mark.parametrize("name", [pytest.param("sd", marks=pytest.mark.slow), "sd3"])
def test_interruption(name: str) -> None:
    """The loop runs on without the denoiser; the next call is as if nothing had happened."""
    one = case(name)
    pipe, plain = one.make(), one.make()

    def stop(own: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        own._interrupt = step >= 1
        return tensors

    model = one.wrap(pipe)
    model.policy = NeverExit()
    stopped, whole = one.run(plain, callback_on_step_end=stop), one.run(plain)
    assert not torch.equal(stopped, whole), "the control: it was not interrupted"
    assert torch.equal(one.run(pipe, callback_on_step_end=stop), stopped)
    assert len({c.step for c in model.trace.calls}) == 2 < STEPS
    model.policy = Interval(2)
    early = one.run(pipe)
    one.run(pipe, seed=1, callback_on_step_end=stop)
    assert torch.equal(one.run(pipe), early)
    model.policy = FixedExit(1)
    assert bool(one.run(pipe, callback_on_step_end=stop).isfinite().all())
