"""A small deep interest network (Zhou et al., arXiv 1706.06978): a usual recommender on the same interactions and
labels, with embeddings of its own in place of a language model.

An item is its id's embedding and the mean embedding of its title's tokens; an item that training never asked about has
the title alone. Each past interaction (item, label, how long ago) is weighted by how well it goes with the target.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dti_pipeline.evaluation import metrics
from dti_pipeline.evaluation.interactions import Array, Interactions
from dti_pipeline.packing.store import TokenStore


@dataclass(frozen=True)
class Settings:
    """Chosen on validation targets."""

    width: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    dropout: float = 0.2
    id_dropout: float = 0.2  # share of items whose id is hidden in training, so that titles are learnt too
    batch: int = 512
    epochs: int = 8  # at most: the best by validation AUC is kept, and two worse ones end it


class DIN(nn.Module):
    """Logits of targets (B,) from their item, the n items in its context, their labels (2: not known) and a mask of
    those that exist."""

    def __init__(self, items: int, titles: tuple[Tensor, Tensor], n: int, settings: Settings) -> None:
        super().__init__()
        width = settings.width
        self.settings = settings
        self.register_buffer("tokens", titles[0])
        self.register_buffer("offsets", titles[1])
        self.title = nn.EmbeddingBag(int(titles[0].max()) + 1, width, mode="mean")
        self.item = nn.Embedding(items + 1, width, padding_idx=0)  # 0: unknown
        self.label = nn.Embedding(3, width)
        self.back = nn.Embedding(n, width)
        for table in (self.title, self.item, self.label, self.back):
            nn.init.normal_(table.weight, std=0.05)
        self.weight = nn.Sequential(nn.Linear(4 * width, width), nn.ReLU(), nn.Linear(width, 1))
        self.out = nn.Sequential(
            nn.Linear(3 * width + 2, 2 * width), nn.ReLU(), nn.Dropout(settings.dropout), nn.Linear(2 * width, 1)
        )

    def forward(self, item: Tensor, text: Tensor, items: Tensor, texts: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        titles = self.title(self.tokens, self.offsets)  # every title once: fewer than a batch looks up
        target = self._id(item) + titles[text]  # (B, E)
        past = self._id(items) + titles[texts]  # (B, n, E)
        ahead = target[:, None].expand_as(past)
        fit = self.weight(torch.cat([ahead, past, ahead - past, ahead * past], dim=-1)).squeeze(-1)
        share = torch.softmax(fit.masked_fill(~mask, -1e4), dim=1) * mask
        seen = past + self.label(labels) + self.back.weight
        interest = (share[..., None] * seen).sum(1)
        told = mask & (labels < 2)
        rate = (((labels == 1) & mask).sum(1, keepdim=True) + 2.5) / (told.sum(1, keepdim=True) + 5)
        nearest = (share * told * (2.0 * labels - 1)).sum(1, keepdim=True)  # what goes with it: yes or no?
        return self.out(torch.cat([target, interest, target * interest, rate, nearest], dim=-1)).squeeze(-1)

    def _id(self, item: Tensor) -> Tensor:
        if self.training and self.settings.id_dropout:
            item = item * (torch.rand(item.shape) >= self.settings.id_dropout)
        return self.item(item)


@dataclass(frozen=True)
class Fitted:
    """A trained model's scores and cost."""

    probability: Array  # of the test targets
    validation_auc: float
    kept: int  # epochs, or trees, after which validation was best
    passes: int  # over the training targets, in the seconds
    seconds: float
    parameters: int


def fit(
    log: Interactions, store: TokenStore, targets: dict[str, Array], n: int, seed: int, settings: Settings = Settings()
) -> Fitted:
    """Train on ``targets["train"]`` (rows of the log), stop by ``validation``, score ``test``."""
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    known = np.bincount(log.item[log.train], minlength=log.item.max() + 1) > 0
    item = torch.from_numpy(np.where(known[log.item], log.item + 1, 0))
    text, label = torch.from_numpy(store.text.astype(np.int64)), torch.from_numpy(log.label.astype(np.int64))
    start = torch.from_numpy(log.history())
    seen, told = start + torch.from_numpy(store.seen.astype(np.int64)), start + torch.from_numpy(log.known)
    titles = (torch.from_numpy(store.tokens.astype(np.int64)), torch.from_numpy(store.offsets[:-1].copy()))
    model = DIN(int(log.item.max()) + 1, titles, n, settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    back = torch.arange(1, n + 1)

    def logits(rows: Array) -> Tensor:
        here = torch.from_numpy(rows)
        mask = (seen - start)[here][:, None] >= back
        past = (seen[here][:, None] - back) * mask
        labels = torch.where(past < told[here][:, None], label[past], 2)
        return model(item[here], text[here], item[past], text[past], labels, mask)

    @torch.no_grad()
    def score(rows: Array) -> Array:
        model.eval()
        parts = np.array_split(rows, len(rows) // 4096 + 1)
        return torch.cat([torch.sigmoid(logits(part).double()) for part in parts]).numpy()

    best, best_state, seconds, epoch, kept, worse = -1.0, model.state_dict(), 0.0, 0, 0, 0
    while epoch < settings.epochs and worse < 2:
        begun = time.perf_counter()
        model.train()
        rows = order.permutation(targets["train"])
        for part in np.array_split(rows, max(1, len(rows) // settings.batch)):
            loss = F.binary_cross_entropy_with_logits(logits(part), label[part].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds += time.perf_counter() - begun
        epoch += 1
        found = metrics.auc(log.label[targets["validation"]], score(targets["validation"])) or 0.0
        worse = worse + 1 if found <= best else 0
        if found > best:
            best, kept = found, epoch
            best_state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best_state)
    parameters = sum(p.numel() for p in model.parameters())
    return Fitted(score(targets["test"]), best, kept, epoch, seconds, parameters)
