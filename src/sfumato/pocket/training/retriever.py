"""The retriever that judges `pocket`: a small CLIP of the emoji set, which shares no weights with what it judges."""

from __future__ import annotations

from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.clip_vision import ClipVisionConfig
from sfumato.pocket.dataset.scenes import SceneMix
from sfumato.pocket.training.pocket_recipes import EPOCH
from sfumato.train.inputs.training_data import DataConfig
from sfumato.train.run_config import OptimizerConfig, RunConfig
from sfumato.train.tasks.clip_task import ClipTraining

# Mostly single subjects: what a picture shows is asked first, and there are thousands of answers.
MIX = SceneMix(single=0.6, place=0.1, count=0.05, pair=0.2, on=0.025, riding=0.025, plain=0.4)

RETRIEVER = ClipTraining(
    zoom=0.85,
    hard_negatives=0.3,
    data=DataConfig(scenes=EPOCH, mix=MIX),
    # the vocabulary is that of pocket's tokenizer
    text_encoder=ClipTextConfig(vocab_size=4000, positions=24, width=128, hidden=512, layers=2, heads=4),
    vision=ClipVisionConfig(image_size=64, patch_size=8, width=128, hidden=512, layers=4, heads=4, projection_dim=128),
    run=RunConfig(
        seed=20,
        steps=2400,
        batch=128,
        precision="bfloat16",
        ema_decay=0.98,
        validate_every=50,
        log_every=10,
        checkpoint_minutes=2.0,
        optimizer=OptimizerConfig(
            learning_rate=2e-3, betas=(0.9, 0.98), weight_decay=0.1, warmup_steps=50, schedule="cosine"
        ),
    ),
)
