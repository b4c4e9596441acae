"""Items that training hardly shows: what becomes of their names, and how a model learns to do without names.

A catalogue grows: many items that a model is asked about were rare, or absent, in what it learnt from. The words that
name them then stand at embeddings that are noise, or that belong to another item. Here such words become one learnt
vector, the unknown word; and training hides names at random, so that the model has seen what it must then do: judge
by the words that many items share (genres, years) and by the user's other answers. The second is DropoutNet's idea
(Volkovs et al., NeurIPS 2017), the first the usual treatment of rare words.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dti_pipeline.config import ModelConfig
from dti_pipeline.modeling.masks import TEXT
from dti_pipeline.packing.store import TokenStore


class UnknownWords(nn.Module):
    """Replaces tokens of item texts by ``unknown``, one token that no text holds; the same for every paradigm.

    Always those that ``rare`` (V,) marks. In training also those that ``naming`` (V,) marks, all of an interaction's
    at once, in a share ``rate`` of the interactions: a prompt's context and its targets alike.
    """

    rare: Tensor
    naming: Tensor

    def __init__(self, rare: NDArray[np.bool_], naming: NDArray[np.bool_], rate: float, unknown: int) -> None:
        super().__init__()
        self.rate, self.unknown = rate, unknown
        self.register_buffer("rare", torch.from_numpy(rare), persistent=False)
        self.register_buffer("naming", torch.from_numpy(naming), persistent=False)

    @classmethod
    def of(cls, config: ModelConfig, store: TokenStore) -> UnknownWords | None:
        """As configured for the texts of ``store``; None where nothing is ever replaced. The unknown word is [PAD],
        whose embedding has no other use."""
        if config.name_or_path is not None or not (config.name_dropout or config.min_token_count):
            return None
        rare = store.training_counts() < config.min_token_count
        rare[[*store.special.values(), *store.prefix]] = False
        return cls(
            rare,
            store.text_counts() < config.name_texts,
            config.name_dropout,
            store.special["pad"],
        )

    def forward(self, token: Tensor, kind: Tensor) -> Tensor:
        """(B, L) tokens, some of the texts' replaced. Draws one number a token from the global generator."""
        hidden = self.rare[token]
        if self.training and self.rate:
            draw = _one_for_each_text(torch.rand(token.shape, device=token.device), kind)
            hidden = hidden | (self.naming[token] & (draw < self.rate))
        return torch.where(hidden & (kind == TEXT), self.unknown, token)

    @torch.no_grad()
    def fold(self, embeddings: Tensor) -> None:
        """Write the unknown word's vector into the rows of rare words of ``embeddings`` (V, E): without this module the
        model then says the same, so that what is published needs to know nothing of it."""
        embeddings[self.rare.to(embeddings.device)] = embeddings[self.unknown].clone()


def _one_for_each_text(draw: Tensor, kind: Tensor) -> Tensor:
    """(B, L): the first value of each run of text tokens, in all of the run."""
    text = (kind == TEXT).reshape(-1)
    begins = text & ~torch.cat([text.new_zeros(1), text[:-1]])
    here = torch.arange(len(text), device=text.device)
    start = torch.where(begins, here, 0).cummax(0).values
    return draw.reshape(-1)[start].view(kind.shape)
