"""Tiny random diffusers pipelines: images, video, audio, and a prior that draws embeddings.

No text encoders: embeddings of the prompt go straight into the call. Denoisers are perturbed, because
zero-initialised gates would hide a wrongly skipped block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers as d
import torch
from torch import Generator, Tensor, nn

from tests.backbones import perturb, sd3
from tests.backbones import unet_conditional as unet_of_sd

Keywords = dict[str, Any]

STEPS = 4
WIDTH = 12  # of a prompt's embeddings
NOISE = {"num_train_timesteps": 1000, "clip_sample": False, "steps_offset": 1}


@dataclass(frozen=True)
class PipelineCase:
    """One pipeline and how it is called.

    Attributes:
        id: Name in the test report.
        build: Makes the pipeline, the same weights every time.
        call: Keywords for a number of samples, but for the generator.
        components: Names of the denoisers.
        copies: Copies of a sample stacked along the batch under guidance.
        calls: Calls of a denoiser in each of its steps.
        callback: Whether it takes `callback_on_step_end`.
        other: Another scheduler that fits.
        steps: Steps that each denoiser takes part in.
        draws: Whether the call takes a generator.
    """

    id: str
    build: Callable[[], Any]
    call: Callable[[int], Keywords]
    components: tuple[str, ...]
    copies: int = 2
    calls: int = 1
    callback: bool = True
    other: type = d.EulerDiscreteScheduler
    steps: int = STEPS

    @property
    def rows(self) -> Callable[[int], int]:
        """Rows of a call of the denoiser for a number of samples."""
        return lambda count: count * self.copies

    def make(self) -> Any:
        """Builds the pipeline, perturbed and quiet."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = self.build()
        pipe.set_progress_bar_config(disable=True)
        for component in pipe.components.values():
            if isinstance(component, nn.Module):
                component.eval()
        for name in self.components:
            perturb(getattr(pipe, name))
        return pipe

    def run(self, pipe: Any, count: int = 2, seed: int = 0, **more: Any) -> Tensor:
        """Images, videos or sounds of one call, with shape (count, ...)."""
        generator = Generator().manual_seed(seed)
        made = pipe(**{**self.call(count), **more}, generator=generator)[0]
        return torch.as_tensor(made)


def _randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed))


def prompts(count: int, length: int = 5) -> Keywords:
    """Embeddings with and without the prompt."""
    return {
        "prompt_embeds": _randn(1, count, length, WIDTH),
        "negative_prompt_embeds": _randn(2, count, length, WIDTH),
        "num_inference_steps": STEPS,
    }


def pooled(count: int) -> Keywords:
    """Pooled embeddings with and without the prompt."""
    return {
        "pooled_prompt_embeds": _randn(3, count, WIDTH),
        "negative_pooled_prompt_embeds": _randn(4, count, WIDTH),
    }


def masks(count: int) -> Keywords:
    """Masks of the prompts' tokens."""
    ones = torch.ones(count, 5, dtype=torch.long)
    return {"prompt_attention_mask": ones, "negative_prompt_attention_mask": ones.clone()}


def square(**more: Any) -> Keywords:
    """An image of 64 x 64, left in the latent space of 8 x 8."""
    return {"height": 64, "width": 64, "guidance_scale": 4.0, "output_type": "latent", **more}


def vae(channels: int = 4) -> nn.Module:
    """Decodes latents without changing their size."""
    return d.AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=1, layers_per_block=1, latent_channels=channels
    )


# ------------------------------------------------------------------------------------------ images


def _unconditional(pipeline: type, scheduler: type) -> Any:
    unet = d.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    )
    return pipeline(unet, scheduler())


def _unconditional_call(count: int) -> Keywords:
    return {"batch_size": count, "num_inference_steps": STEPS, "output_type": "np"}


def _dit() -> Any:
    transformer = d.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    return d.DiTPipeline(transformer, vae(), d.DDIMScheduler(**NOISE))


def _dit_call(count: int) -> Keywords:
    labels = list(range(1, count + 1))
    steps = {"guidance_scale": 4.0, "num_inference_steps": STEPS, "output_type": "np"}
    return {"class_labels": labels, **steps}


def _sd() -> Any:
    scheduler = d.DDIMScheduler(**NOISE)
    rest = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return d.StableDiffusionPipeline(vae(), None, None, unet_of_sd(), scheduler, **rest)


def _sd_call(count: int) -> Keywords:
    return {**prompts(count), "height": 8, "width": 8, "guidance_scale": 4.0, "output_type": "np"}


def _sdxl() -> Any:
    unet = d.UNet2DConditionModel(
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
    nothing = (None,) * 4
    scheduler = d.EulerDiscreteScheduler(timestep_spacing="leading")
    return d.StableDiffusionXLPipeline(None, *nothing, unet, scheduler)


def _sdxl_call(count: int) -> Keywords:
    return {**prompts(count), **pooled(count), **square()}


def _sd3() -> Any:
    scheduler = d.FlowMatchEulerDiscreteScheduler()
    return d.StableDiffusion3Pipeline(sd3(), scheduler, None, *(None,) * 6)


def _flux() -> Any:
    transformer = d.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
    )
    return d.FluxPipeline(
        d.FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, transformer
    )


def _flux_call(count: int) -> Keywords:
    return {**prompts(count), **pooled(count), **square(true_cfg_scale=3.0)}


def _pixart() -> Any:
    transformer = d.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=16,
        sample_size=8,
        norm_num_groups=4,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    return d.PixArtSigmaPipeline(None, None, None, transformer, d.DDIMScheduler(**NOISE))


def _pixart_call(count: int) -> Keywords:
    rest = {"negative_prompt": None, "use_resolution_binning": False}
    return {**prompts(count), **masks(count), **square(**rest)}


# --------------------------------------------------------------------------- video, sound and priors


def _wan() -> Any:
    def transformer() -> nn.Module:
        return d.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=WIDTH,
            freq_dim=16,
            ffn_dim=24,
            num_layers=3,
            rope_max_seq_len=16,
        )

    scheduler = d.FlowMatchEulerDiscreteScheduler()
    return d.WanPipeline(
        None, None, None, scheduler, transformer(), transformer(), boundary_ratio=0.5
    )


def _wan_call(count: int) -> Keywords:
    return {**prompts(count), **square(height=32, width=32, num_frames=5)}


def _ltx() -> Any:
    transformer = d.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=3,
        caption_channels=WIDTH,
    )
    return d.LTXPipeline(d.FlowMatchEulerDiscreteScheduler(), None, None, None, transformer)


def _ltx_call(count: int) -> Keywords:
    return {**prompts(count), **masks(count), **square(num_frames=9)}


def _audio() -> Any:
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    transformer = d.StableAudioDiTModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        cross_attention_dim=WIDTH,
        time_proj_dim=8,
        global_states_input_dim=2 * WIDTH,
        cross_attention_input_dim=WIDTH,
    )
    decoder = d.AutoencoderOobleck(4, (2,), (1,), 4, 1, 2, 100)
    projection = StableAudioProjectionModel(WIDTH, WIDTH, 0, 100)
    scheduler = d.EDMDPMSolverMultistepScheduler()
    return d.StableAudioPipeline(decoder, None, projection, None, transformer, scheduler)


def _audio_call(count: int) -> Keywords:
    return {**prompts(count), "guidance_scale": 4.0, "output_type": "latent"}


def _prior() -> Any:
    from diffusers.models import StableCascadeUNet

    block = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")
    prior = StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        timestep_ratio_embedding_dim=8,
        conditioning_dim=16,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        block_types_per_layer=(block, block),
        clip_text_in_channels=WIDTH,
        clip_text_pooled_in_channels=WIDTH,
        clip_image_in_channels=WIDTH,
        switch_level=(False,),
    )
    return d.StableCascadePriorPipeline(None, None, prior, d.DDPMWuerstchenScheduler())


def _prior_call(count: int) -> Keywords:
    more = {"prompt_embeds_pooled": _randn(3, count, 1, WIDTH)}
    more["negative_prompt_embeds_pooled"] = _randn(4, count, 1, WIDTH)
    return {**prompts(count), **more, **square(height=256, width=256, output_type="pt")}


FLOW = d.FlowMatchHeunDiscreteScheduler
CASES: tuple[PipelineCase, ...] = (
)
