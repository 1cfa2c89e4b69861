"""The caption head against an SVD, and the text task on captions that decide their pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sfumato
from sfumato.errors import InvalidConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.train.inputs.draws import Draws
from sfumato.train.inputs.encoded_latents import LatentSample
from sfumato.train.run_config import OptimizerConfig, RunConfig
from sfumato.train.tasks.caption_head import CaptionHead, seen_positions
from sfumato.train.tasks.text_task import TextTask, TextTraining
from sfumato.train.trainer import train

TOKENIZER = Tokenizer.from_folder(Path(sfumato.__file__).parent / "assets" / "v1" / "tokenizer")
WORDS = ("circle", "square", "star", "heart", "dog", "cat", "tree", "boat")


class Pictures:
    """Latents that the caption decides, up to a little noise of each sample's own."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self.ideas = torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 3.0

    def __len__(self) -> int:
        return self.count

    def latents(self, index: int) -> LatentSample:
        noise = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(self.seed * 1000 + index))
        mean = self.ideas[index % 8] + 0.3 * noise
        return LatentSample(mean=mean, logvar=torch.full_like(mean, -6.0), captions=(WORDS[index % 8],))


def test_components_are_those_of_the_singular_value_decomposition() -> None:
    latents = torch.randn(50, 2, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 4.0)
    head = CaptionHead(width=5, components=4, elements=18)
    head.fit(latents)
    flat = latents.flatten(1) - latents.flatten(1).mean(dim=0)
    u, s, _ = torch.linalg.svd(flat, full_matrices=False)
    expected = (u * s)[:, :4]
    expected = expected / expected.square().mean().sqrt()
    found = head.components(latents)
    signs = (found * expected).sum(dim=0).sign()
    torch.testing.assert_close(found * signs, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(InvalidConfig, match="4 components"):
        head.fit(latents[:3])


def test_the_prediction_is_of_the_mean_over_the_positions_seen() -> None:
    head = CaptionHead(width=5, components=4, elements=18)
    states = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    seen = torch.tensor([[1.0, 0, 1, 0, 0, 1], [1.0, 1, 0, 0, 0, 0]])
    means = torch.stack([states[0, [0, 2, 5]].mean(dim=0), states[1, :2].mean(dim=0)])
    torch.testing.assert_close(head(states, seen), head.linear(means))
    drawn = seen_positions(Draws(0, 0, range(500)), 77)
    assert torch.equal(drawn[:, 0], torch.ones(500))
    assert float(drawn[:, 1:].mean()) == pytest.approx(0.3, abs=0.01)


def test_the_text_encoder_learns_which_picture_a_caption_means(tmp_path: Path) -> None:
    optimizer = OptimizerConfig(learning_rate=3e-3, warmup_steps=10)
    config = TextTraining(
        components=7,
        fitted_on=64,
        text_encoder=ClipTextConfig(width=32, hidden=64, layers=1, heads=2),
        run=RunConfig(steps=120, batch=16, ema_decay=0.9, validate_every=120, optimizer=optimizer),
    )
    task = TextTask(config, Pictures(64, 1), TOKENIZER, Pictures(16, 2))
    outcome = train(task, config, tmp_path)
    measured = task.validate(outcome.state.ema.module, tmp_path / "none.png")
    assert measured["unexplained"] < 0.2  # 1 knows nothing; the samples' own noise leaves 0.01
