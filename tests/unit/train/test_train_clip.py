"""The contrastive task: its loss beside transformers', what it learns, and how retrieval is counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

import sfumato
from sfumato.caption_retrieval import retrieval
from sfumato.data.samples import Sample
from sfumato.errors import DataError, InvalidConfig, InvalidRequest
from sfumato.models.clip import Clip
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.clip_vision import ClipVisionConfig
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.train.inputs.draws import Draws
from sfumato.train.run_config import OptimizerConfig, RunConfig
from sfumato.train.tasks.clip_task import ClipTask, ClipTraining, contrast
from sfumato.train.tasks.hard_negatives import hard_negative
from sfumato.train.trainer import train
from support.train_pictures import COLOURS, Shapes

TOKENIZER = Tokenizer.from_folder(Path(sfumato.__file__).parent / "assets" / "pocket" / "tokenizer")


def configured(**options: object) -> ClipTraining:
    optimizer = OptimizerConfig(learning_rate=3e-3, betas=(0.9, 0.98), warmup_steps=10)
    run = RunConfig(steps=120, batch=8, ema_decay=0.9, validate_every=120, optimizer=optimizer)
    fields = {
        "run": run,
        "text_encoder": ClipTextConfig(vocab_size=4000, positions=12, width=32, hidden=64, layers=1, heads=2),
        "vision": ClipVisionConfig(
            image_size=16, patch_size=8, width=32, hidden=64, layers=1, heads=2, projection_dim=16
        ),
    }
    return ClipTraining(**{**fields, **options})


def embeddings(count: int, seed: int) -> torch.Tensor:
    numbers = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(numbers, dim=1)


def test_the_loss_is_transformers() -> None:
    images, texts = embeddings(5, 1), embeddings(5, 2)
    none = torch.empty(0, 6)
    loss, logits = contrast(images, texts, torch.tensor(7.0), torch.eye(5, dtype=torch.bool), none)
    torch.testing.assert_close(loss, image_text_contrastive_loss(7.0 * texts @ images.T))
    torch.testing.assert_close(logits, 7.0 * images @ texts.T)


def test_wrong_captions_join_the_images_side_only() -> None:
    images, texts, wrong = embeddings(4, 1), embeddings(4, 2), embeddings(3, 3)
    loss, _ = contrast(images, texts, torch.tensor(5.0), torch.eye(4, dtype=torch.bool), wrong)
    rows = 5.0 * images @ torch.cat([texts, wrong]).T
    expected = torch.nn.functional.cross_entropy(rows, torch.arange(4))
    expected = (expected + torch.nn.functional.cross_entropy(rows[:, :4].T, torch.arange(4))) / 2
    torch.testing.assert_close(loss, expected)


def test_equal_captions_are_no_negatives_of_each_other() -> None:
    """Two pictures of one caption, both perfectly placed: nothing is left to pull apart."""
    images = torch.eye(3)[[0, 0, 1]]
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    loss, _ = contrast(images, images, torch.tensor(100.0), same, torch.empty(0, 3))
    torch.testing.assert_close(loss, torch.log(torch.tensor(2.0)) * 2 / 3)  # the targets' own entropy


def test_hard_negatives_change_a_side_or_the_background() -> None:
    def drawn(caption: str) -> set[str | None]:
        return {hard_negative(caption, torch.Generator().manual_seed(seed)) for seed in range(40)}

    assert drawn("a cat left of a dog") == {"a cat right of a dog"}
    assert drawn("a cat above a dog, flat style") == {"a cat below a dog, flat style"}
    assert drawn("a cat") == {None}
    assert drawn("a cat on top of a box") == {None}
    assert drawn("an orange") == {None}
    others = drawn("a cat on a light blue background")
    assert len(others) > 5
    assert "a cat on a light blue background" not in others
    assert all(other and other.endswith("background") for other in others)
    both = drawn("a cat on the left on a red background")
    assert "a cat on the right on a red background" in both
    assert "a cat on the left on a blue background" in both


def test_retrieval_is_the_rank_among_the_candidates() -> None:
    captions = torch.eye(10)
    assert retrieval(captions, captions).top1 == 1.0
    shifted = retrieval(captions.roll(1, 0), captions)
    assert (shifted.top1, shifted.top5, shifted.candidates) == (0.0, 0.0, 10)
    equal = retrieval(torch.ones(8, 3), torch.ones(8, 3))
    assert (equal.top1, equal.top5) == (0.0, 0.0)  # a model that tells nothing apart is never right
    generator = torch.Generator().manual_seed(0)
    many = retrieval(torch.randn(2000, 8, generator=generator), torch.randn(2000, 8, generator=generator))
    assert many.top1 == pytest.approx(0.01, abs=0.01)
    assert many.top5 == pytest.approx(0.05, abs=0.02)
    with pytest.raises(InvalidRequest, match="as many captions"):
        retrieval(captions, captions[:3])


def test_it_learns_to_name_colours(tmp_path: Path) -> None:
    shapes = Shapes(64, 24)
    held_out = [shapes.sample(index) for index in range(64, 64 + len(COLOURS))]
    config = configured()
    task = ClipTask(config, shapes, TOKENIZER, held_out)
    outcome = train(task, config, tmp_path)
    measured = task.validate(outcome.state.ema.module, tmp_path / "sheet.png")
    assert measured["top1"] >= 0.75
    assert measured["top1_shuffled"] <= 0.25
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_a_batch_is_the_same_however_it_is_split() -> None:
    task = ClipTask(configured(hard_negatives=0.5), Shapes(16, 24), TOKENIZER)
    whole = task.load(Draws(0, 0, range(8)))
    parts = [task.load(Draws(0, 0, range(i, i + 4))) for i in (0, 4)]
    for name, tensor in whole.items():
        assert torch.equal(tensor, torch.cat([part[name] for part in parts]))


def test_every_weight_has_a_gradient() -> None:
    task = ClipTask(configured(), Shapes(16, 24), TOKENIZER)
    module = task.build()
    assert isinstance(module, Clip)
    draws = Draws(0, 0, range(8))
    loss, _ = task.loss(module, task.load(draws), draws)
    loss.backward()
    assert [name for name, weight in module.named_parameters() if weight.grad is None] == []


class Silent(Shapes):
    def sample(self, index: int) -> Sample:
        return dataclasses.replace(super().sample(index), captions=())


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="vocab_size"):
        ClipTask(configured(text_encoder=ClipTextConfig(vocab_size=3999, positions=12)), Shapes(16, 24), TOKENIZER)
    with pytest.raises(InvalidConfig, match="compare"):
        configured(run=RunConfig(batch=4, accumulate=4))
    with pytest.raises(InvalidConfig, match="zoom"):
        configured(zoom=0.0)
    with pytest.raises(DataError, match="no caption"):
        ClipTask(configured(), Silent(16, 24), TOKENIZER).load(Draws(0, 0, range(2)))
