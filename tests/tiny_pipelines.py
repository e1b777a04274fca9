"""Tiny random diffusers pipelines: images, video, sound, and a prior that draws embeddings.

Embeddings of the prompt go straight into the call, so there are no text encoders. Denoisers are
perturbed, because zero-initialised gates would hide a wrongly skipped block.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers as d
import torch
from torch import Generator, Tensor, nn

import exitkit as ek
from tests.backbones import flux, perturb, sd3, unet, unet_conditional

Keywords = dict[str, Any]
Part = Callable[[int], Keywords]

STEPS = 4
BY_ROW = {
    *(
        f"{sign}prompt_{what}"
        for sign in ("", "negative_")
        for what in ("embeds", "attention_mask")
    ),
    *(f"{sign}pooled_prompt_embeds" for sign in ("", "negative_")),
    *(f"{sign}prompt_embeds_pooled" for sign in ("", "negative_")),
    *(f"{sign}image_embeds" for sign in ("", "negative_")),
    "class_labels",
}
"""Keywords that have an entry a sample."""
WIDTH = 12  # of a prompt's embeddings
HEADS: Keywords = {"num_attention_heads": 2, "attention_head_dim": 8}
LATENTS: Keywords = {"in_channels": 4, "out_channels": 4, "num_layers": 3}


@dataclass(frozen=True)
class PipelineCase:
    """One pipeline and how it is called.

    Attributes:
        id: Name in the test report.
        build: Makes the pipeline.
        call: Keywords for a number of samples, but for the generator.
        components: Names of the denoisers.
        copies: Copies of a sample stacked along the batch under guidance.
        calls: Calls of a denoiser in each of its steps.
        callback: Whether it takes `callback_on_step_end`.
    """

    id: str
    build: Callable[[], Any]
    call: Part
    components: tuple[str, ...] = ("transformer",)
    copies: int = 2
    calls: int = 1
    callback: bool = True

    @property
    def steps(self) -> int:
        """Steps that each denoiser takes part in."""
        return STEPS // len(self.components)

    def make(self) -> Any:
        """Builds the pipeline in eval mode, perturbed and quiet; the same weights every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = self.build()
        pipe.set_progress_bar_config(disable=True)
        for component in pipe.components.values():
            if isinstance(component, nn.Module):
                component.eval()
        for network in self.networks(pipe):
            perturb(network)
        return pipe

    def run(self, pipe: Any, count: int = 2, seed: int = 0, **more: Any) -> Tensor:
        """Images, videos, sounds or embeddings of one call, with shape (count, ...)."""
        dtype = getattr(pipe, self.components[0]).dtype
        keywords = {k: v.to(dtype) if "embeds" in k else v for k, v in self.call(count).items()}
        made = pipe(**keywords, generator=Generator().manual_seed(seed), **more)
        return torch.as_tensor(made[0])

    def requests(self, count: int = 3) -> tuple[list[Keywords], Keywords]:
        """Keywords of single calls with prompts of their own, and those of every call."""
        given = self.call(count)
        rows = {k: v for k, v in given.items() if k in BY_ROW}
        shared = {k: v for k, v in given.items() if k not in {*rows, "output_type", "batch_size"}}
        if self.id == "prior":
            shared["output_type"] = "pt"  # it knows no latents
        calls = [{k: v[i : i + 1] for k, v in rows.items()} for i in range(count)]
        return calls if rows else [{}], shared

    def sampler(self, pipe: Any, rows: int = 1, decode: bool = False, **more: Any) -> Any:
        """The pipeline as a sampler of three prompts."""
        calls, shared = self.requests()
        return ek.PipelineSampler(pipe, calls, rows=rows, decode=decode, **{**shared, **more})

    def bare(self, pipe: Any) -> nn.Module:
        """The denoisers alone."""
        networks = dict(zip(self.components, self.networks(pipe), strict=True))
        return nn.ModuleDict(networks) if len(networks) > 1 else next(iter(networks.values()))

    def by_hand(self, pipe: Any, seed: int, **more: Any) -> Tensor:
        """Latents of one sample by a call of the pipeline itself: what it returns, or steps to last."""
        calls, shared = self.requests()
        given = {**shared, **calls[seed % len(calls)], **more}
        if self.id not in ("ddpm", "ddim", "dit", "prior"):
            return pipe(**given, output_type="latent", generator=Generator().manual_seed(seed))[0]
        last: list[Tensor] = []
        step = pipe.scheduler.step

        def watched(*args: Any, **options: Any) -> Any:
            made = step(*args, **options)
            last.append(made.prev_sample if hasattr(made, "prev_sample") else made[0])
            return made

        watched.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]
        pipe.scheduler.step = watched
        try:
            made = pipe(**given, generator=Generator().manual_seed(seed))[0]
        finally:
            del pipe.scheduler.step
        return made if self.id == "prior" else last[-1][:1]

    def wrap(self, pipe: Any, config: str = "carried", **more: Any) -> Any:
        """Gives the pipeline exits, which are used as they start: carried ones by plain reuse."""
        wrapped = ek.wrap(pipe, config, example_inputs=self.call(1), **more)
        for model in models(wrapped):
            model.heads.mark_fitted(uncertainty=False)
        return wrapped

    def networks(self, pipe: Any) -> list[nn.Module]:
        """The denoisers."""
        return [getattr(pipe, name) for name in self.components]

    def assert_bare(self, pipe: Any) -> None:
        """Fails where exits have left something on the pipeline."""
        assert "progress_bar" not in vars(pipe), "the progress bar is still watched"
        for network in self.networks(pipe):
            changed = [n for n, m in network.named_modules() if "forward" in vars(m)]
            assert not changed, changed


def models(wrapped: Any) -> list[ek.ExitModel]:
    """Wrapped denoisers of a pipeline with one or several."""
    return [wrapped] if isinstance(wrapped, ek.ExitModel) else list(wrapped.values())


# -------------------------------------------------------------------------------------------- calls


def call(*parts: Part, **fixed: Any) -> Part:
    """Keywords of several parts, and others."""
    return lambda count: {k: v for part in parts for k, v in part(count).items()} | fixed


def _randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed))


def prompts(count: int) -> Keywords:
    """Embeddings with and without the prompt."""
    return {
        "prompt_embeds": _randn(1, count, 5, WIDTH),
        "negative_prompt_embeds": _randn(2, count, 5, WIDTH),
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "output_type": "latent",
    }


def pooled(count: int) -> Keywords:
    """Pooled embeddings with and without the prompt."""
    drawn = {"": _randn(3, count, WIDTH), "negative_": _randn(4, count, WIDTH)}
    return {f"{which}pooled_prompt_embeds": v for which, v in drawn.items()}


def pooled_of_prior(count: int) -> Keywords:
    """As `pooled`, in the words of the prior."""
    return {k.replace("pooled_", "") + "_pooled": v[:, None] for k, v in pooled(count).items()}


def masks(count: int) -> Keywords:
    """Masks of the prompts' tokens."""
    ones = torch.ones(count, 5, dtype=torch.long)
    return {"prompt_attention_mask": ones, "negative_prompt_attention_mask": ones.clone()}


def labels(count: int) -> Keywords:
    """Classes instead of prompts."""
    return {"class_labels": list(range(1, count + 1)), "num_inference_steps": STEPS}


def samples(count: int) -> Keywords:
    """No condition at all."""
    return {"batch_size": count, "num_inference_steps": STEPS, "output_type": "np"}


# ----------------------------------------------------------------------------------------- pipelines


def vae() -> nn.Module:
    """Decodes latents without changing their size."""
    return d.AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, shift_factor=0.0)


def _noise() -> Any:
    return d.DDIMScheduler(clip_sample=False, steps_offset=1)


def _flow() -> Any:
    return d.FlowMatchEulerDiscreteScheduler()


def _dit() -> Any:
    transformer = d.DiTTransformer2DModel(
        in_channels=4, out_channels=8, num_layers=3, sample_size=8, **HEADS
    )
    return d.DiTPipeline(transformer, vae(), _noise())


def _sd() -> Any:
    return d.StableDiffusionPipeline(
        vae(), None, None, unet_conditional(), _noise(), None, None, requires_safety_checker=False
    )


def _sdxl() -> Any:
    network = d.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=WIDTH + 6 * 4,
        use_linear_projection=True,
    )
    scheduler = d.EulerDiscreteScheduler(timestep_spacing="leading")
    return d.StableDiffusionXLPipeline(None, None, None, None, None, network, scheduler)


def _sd3() -> Any:
    return d.StableDiffusion3Pipeline(sd3(), _flow(), vae(), None, None, None, None, None, None)


def _flux() -> Any:
    return d.FluxPipeline(_flow(), None, None, None, None, None, flux())


def _pixart() -> Any:
    transformer = d.PixArtTransformer2DModel(
        **HEADS,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=16,
        sample_size=8,
        norm_num_groups=4,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    return d.PixArtSigmaPipeline(None, None, None, transformer, _noise())


def _wan() -> Any:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "freq_dim": 16, "ffn_dim": 24}
    network = partial(d.WanTransformer3DModel, text_dim=WIDTH, rope_max_seq_len=16)
    both = (network(**sizes, **LATENTS) for _ in range(2))
    return d.WanPipeline(None, None, None, _flow(), *both, boundary_ratio=0.5)


def _ltx() -> Any:
    sizes = {"cross_attention_dim": 16, "caption_channels": WIDTH}
    transformer = d.LTXVideoTransformer3DModel(**sizes, **HEADS, **LATENTS)
    return d.LTXPipeline(_flow(), None, None, None, transformer)


def _audio() -> Any:
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    transformer = d.StableAudioDiTModel(
        sample_size=8,
        num_key_value_attention_heads=1,
        cross_attention_dim=WIDTH,
        time_proj_dim=8,
        global_states_input_dim=2 * WIDTH,
        cross_attention_input_dim=WIDTH,
        **HEADS,
        **LATENTS,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers calls the old weight_norm
        decoder = d.AutoencoderOobleck(4, [2], [1], 4, 1, 2, 100)
    projection = StableAudioProjectionModel(WIDTH, WIDTH, 0, 100)
    scheduler = d.EDMDPMSolverMultistepScheduler()
    return d.StableAudioPipeline(decoder, None, projection, None, transformer, scheduler)


def _prior() -> Any:
    from diffusers.models import StableCascadeUNet
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    network = StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        timestep_ratio_embedding_dim=8,
        conditioning_dim=16,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        switch_level=(False,),
        **dict.fromkeys(("down_num_layers_per_block", "up_num_layers_per_block"), (1, 1)),
        **{f"clip_{x}_in_channels": WIDTH for x in ("text", "text_pooled", "image")},
    )
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_attention_heads": 1}
    config = CLIPTextConfig(num_hidden_layers=1, **sizes)
    encoder = CLIPTextModelWithProjection(config)  # asked for its dtype only
    return d.StableCascadePriorPipeline(None, encoder, network, d.DDPMWuerstchenScheduler())


def _sana() -> Any:
    sizes = {"cross_attention_dim": 16, "caption_channels": WIDTH, "sample_size": 8}
    cross = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "patch_size": 1}
    transformer = d.SanaTransformer2DModel(**sizes, **cross, **HEADS, **LATENTS)
    return d.SanaPipeline(None, None, None, transformer, _flow())


def _kandinsky() -> Any:
    network = d.UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=16,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
    )
    return d.KandinskyV22Pipeline(
        network, _noise(), d.VQModel(block_out_channels=(8,), norm_num_groups=1, latent_channels=4)
    )


def _pictures(count: int) -> Keywords:
    """Embeddings of pictures instead of prompts."""
    drawn = {"": _randn(5, count, WIDTH), "negative_": _randn(6, count, WIDTH)}
    sizes = {"height": 8, "width": 8, "num_inference_steps": STEPS, "output_type": "latent"}
    return {f"{which}image_embeds": v for which, v in drawn.items()} | sizes


def _wan21() -> Any:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "freq_dim": 16, "ffn_dim": 24}
    network = d.WanTransformer3DModel(**sizes, **LATENTS, text_dim=WIDTH, rope_max_seq_len=16)
    return d.WanPipeline(None, None, None, _flow(), network)


_unet = ("unet",)
_alone: Keywords = {"call": samples, "components": _unet, "copies": 1, "callback": False}
_square = partial(call, prompts, height=64, width=64)
_pixart_call = _square(masks, negative_prompt=None, use_resolution_binning=False)
_video = partial(call, prompts, height=32, width=32, num_frames=5)
_small = partial(call, prompts, height=8, width=8, output_type="np")

CASES: tuple[PipelineCase, ...] = (
    PipelineCase("ddpm", lambda: d.DDPMPipeline(unet(), d.DDPMScheduler()), **_alone),
    PipelineCase("ddim", lambda: d.DDIMPipeline(unet(), d.DDIMScheduler()), **_alone),
    PipelineCase("dit", _dit, call(labels, output_type="np"), callback=False),
    PipelineCase("sd", _sd, _small(), _unet),
    PipelineCase("sdxl", _sdxl, _square(pooled), _unet),
    PipelineCase("sd3", _sd3, _small(pooled)),
    PipelineCase("flux", _flux, _square(pooled, true_cfg_scale=3.0), copies=1, calls=2),
    PipelineCase("pixart", _pixart, _pixart_call, callback=False),
    PipelineCase("wan", _wan, _video(), ("transformer", "transformer_2"), copies=1, calls=2),
    PipelineCase("ltx", _ltx, _square(masks, num_frames=9)),
    PipelineCase("audio", _audio, prompts, callback=False),
    PipelineCase("prior", _prior, _square(pooled_of_prior, output_type="pt"), ("prior",)),
)

MORE: tuple[PipelineCase, ...] = (
    PipelineCase("sana", _sana, _square(masks, negative_prompt=None, use_resolution_binning=False)),
    PipelineCase("kandinsky", _kandinsky, _pictures, _unet),
    PipelineCase("wan21", _wan21, _video(), copies=1, calls=2),
)
"""Further families, whose mechanisms the cases have: for what is tested with every family."""


def case(name: str) -> PipelineCase:
    """The case with this id."""
    return next(c for c in (*CASES, *MORE) if c.id == name)


def tiny_dit() -> Any:
    """A pipeline whose calls are plain values: {"class_labels": [1]}."""
    return case("dit").make()
