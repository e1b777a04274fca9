"""The text-guided PixArt as a diffusers pipeline: MiniLM reads the prompt, and latents are the pictures."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, DPMSolverMultistepScheduler, ModelMixin, PixArtAlphaPipeline
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .captions import TOKENS, embedded, has_text_encoder, text_encoder
from .models import load_pixart, scheduler

CALL: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 1.5, "clean_caption": False}
"""Keywords of every call: PixArt's own number of steps, the guidance of the tables, captions as they are."""


class Pixels(ModelMixin, ConfigMixin):
    """Stands where a pipeline has its autoencoder: latents are pictures already, and become larger ones.

    Arguments:
        block_out_channels: Read by the pipeline: each entry but one doubles the size. Eight times is
            usual, and what the pipeline's table of sizes asks for.
        scaling_factor: Read by the pipeline, which divides latents by it.
    """

    @register_to_config
    def __init__(
        self, block_out_channels: tuple[int, ...] = (1, 1, 1, 1), scaling_factor: float = 1.0
    ) -> None:
        super().__init__()
        self.enlarge = nn.Upsample(scale_factor=2 ** (len(block_out_channels) - 1))
        # A pipeline asks its networks where they are, and only a tensor can tell.
        self.register_buffer("scale", torch.tensor(scaling_factor))

    def decode(self, latents: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        """Pictures, (B, C, 8 H, 8 W), of latents (B, C, H, W)."""
        return (self.enlarge(latents * self.scale),)


def pixart_pipeline() -> PixArtAlphaPipeline:
    """The pipeline, ready to run, with the solver that PixArt itself is used with.

    Without the extra `text` it has no text encoder and takes embeddings, as `request` gives them.

    Returns:
        The pipeline; its parts are in eval mode.

    Example:
        `pixart_pipeline()("a bold handwritten seven", **CALL).images[0]`
    """
    tokenizer, encoder = text_encoder() if has_text_encoder() else (None, None)
    pipe = PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=Pixels().eval(),
        transformer=load_pixart(),
        scheduler=DPMSolverMultistepScheduler.from_config(scheduler().config),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def request(prompt: str) -> dict[str, Any]:
    """The keywords of a prompt in the pipeline's call.

    Arguments:
        prompt: Up to eight words or so (`TOKENS`), as the network was trained with.

    Returns:
        The prompt; without the extra `text` the embeddings that stand in for it.

    Raises:
        ImportError: If there is no text encoder, and the prompt is none of the captions of the training.
    """
    if has_text_encoder():
        return {"prompt": prompt, "max_sequence_length": TOKENS}
    found: dict[str, Any] = {"negative_prompt": None}
    for sign, text in (("", prompt), ("negative_", "")):
        features, mask = embedded([text])
        found |= {f"{sign}prompt_embeds": features, f"{sign}prompt_attention_mask": mask}
    return found
