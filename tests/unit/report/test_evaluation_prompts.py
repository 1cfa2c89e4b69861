"""Lists of prompts: what is read from COCO's captions, JSON lines and texts, and what pins them."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfumato.errors import InvalidConfig, InvalidRequest
from sfumato.pocket.dataset.scenes import is_held_out
from sfumato.report.evaluation.data_prompts import (
    caption_prompts,
    dataset_at,
    held_out_scenes,
    label_prompts,
    save_pictures,
)
from sfumato.report.evaluation.prompt_list import drawn, read_prompts, write_prompts
from sfumato.report.evaluation.protocols import protocol_names, read_protocol
from sfumato.report.evaluation.published_curves import published_curves
from support.made_data import emoji_set


def coco(path: Path, order: list[int]) -> Path:
    annotations = [{"id": i, "image_id": i // 2, "caption": f" A cat\nnumber {i}. "} for i in order]
    path.write_text(json.dumps({"info": {}, "images": [], "annotations": annotations}))
    return path


def test_cocos_captions_are_the_same_in_any_order_of_the_file(tmp_path: Path) -> None:
    first = read_prompts(coco(tmp_path / "a.json", [3, 1, 2, 0]))
    second = read_prompts(coco(tmp_path / "b.json", [0, 1, 2, 3]))
    assert first == second
    assert first.texts == [f"A cat number {i}." for i in range(4)]
    assert first.prompts[3].fields == {"image_id": 1, "caption_id": 3}


def test_the_hash_is_of_the_bytes_that_are_written(tmp_path: Path) -> None:
    prompts = drawn(read_prompts(coco(tmp_path / "a.json", list(range(50)))), 20, seed=4)
    write_prompts(prompts, tmp_path / "list.jsonl")
    assert hashlib.sha256((tmp_path / "list.jsonl").read_bytes()).hexdigest() == prompts.sha256
    assert read_prompts(tmp_path / "list.jsonl") == prompts
    assert len(set(prompts.texts)) == 20
    other = drawn(read_prompts(tmp_path / "a.json"), 20, seed=5)
    assert other.sha256 != prompts.sha256


def test_blank_and_repeated_lines_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "list.txt").write_text("a cat\n\n  \na dog\na cat\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING, "sfumato"):
        prompts = read_prompts(tmp_path / "list.txt")
    assert prompts.texts == ["a cat", "a dog", "a cat"]
    assert ["2 blank" in caplog.messages[0], "1 prompt(s) come a second time" in caplog.messages[1]] == [True, True]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", "{}", "needs a list 'annotations'"),
        ("a.json", '{"annotations": [{"caption": 3}]}', "annotation 0 has no id"),
        ("a.jsonl", '{"prompt": "x"}\n{"x": 1}\n', "line 2: not an object with a prompt"),
        ("a.jsonl", "[1]\n", "line 1: not an object"),
        ("a.txt", "\n\n", "has no prompts"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_what_is_no_list_is_refused_in_a_line(tmp_path: Path, name: str, content: Any, message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidRequest, match=message):
        read_prompts(tmp_path / name)


def test_a_data_sets_captions_and_pictures(tmp_path: Path) -> None:
    emoji_set(tmp_path / "shards")
    dataset = dataset_at(tmp_path / "shards")
    prompts, chosen = caption_prompts(dataset, 6, seed=2)
    assert all(
        prompt.text in dataset.record(index).captions for prompt, index in zip(prompts.prompts, chosen, strict=True)
    )
    save_pictures(dataset, chosen, tmp_path / "real", side=32)
    assert len(list((tmp_path / "real").glob("*.png"))) == 6
    with pytest.raises(InvalidRequest, match="the data set has"):
        caption_prompts(dataset, len(dataset) + 1, seed=0)


def test_labels_are_spread_over_what_the_embedded_model_was_taught(tmp_path: Path) -> None:
    emoji = emoji_set(tmp_path / "shards", ["twemoji"])
    taught = {s.noun.single: s for s in emoji.split("train", ["twemoji"])}
    names = sorted(taught)
    for count in (3, 7):
        prompts, _, indices = label_prompts(tmp_path / "shards", count)
        assert prompts.texts == sorted(set(prompts.texts)) and len(prompts.texts) == count
        assert indices == [taught[text].index for text in prompts.texts]
        places = [names.index(text) for text in prompts.texts]
        gaps = np.diff([*places, places[0] + len(names)])  # the last one goes on at the first
        assert gaps.max() - gaps.min() <= 1
    everything, _, _ = label_prompts(tmp_path / "shards", 10_000)
    assert everything.texts == names


def test_scenes_are_held_out_ones(tmp_path: Path) -> None:
    emoji_set(tmp_path / "shards", ("twemoji", "noto"))
    scenes = held_out_scenes(tmp_path / "shards", 12, 0)
    prompts, _ = caption_prompts(scenes, 12, seed=0)
    for prompt in prompts.prompts:
        labels = [thing["label"] for thing in prompt.fields["objects"]]
        assert is_held_out(prompt.fields["background"], labels) and prompt.fields["style"] == "twemoji"


def test_the_cards_protocol_is_the_cards() -> None:
    card = read_protocol("card")
    assert card.guidance_scales == (1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
    assert (card.prompts, card.steps, card.samplers, card.side) == (10_000, (50,), ("plms",), 512)
    assert protocol_names() == ("card", "pocket")
    with pytest.raises(InvalidRequest, match="use card, pocket"):
        read_protocol("cards")


def test_a_protocol_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\nsteps = [10, 20]\n')
    assert read_protocol(str(tmp_path / "mine.toml")).steps == (10, 20)
    (tmp_path / "wrong.toml").write_text('name = "mine"\nstep = [10]\n')
    with pytest.raises(InvalidConfig, match="'step' is no option"):
        read_protocol(str(tmp_path / "wrong.toml"))


def test_the_published_curves_turn_where_the_paper_says() -> None:
    """Four checkpoints at the card's scales: FID is best at 3, while the CLIP score only rises."""
    curves = published_curves()
    assert list(curves) == ["v1-1", "v1-2", "v1-3", "v1-4"]
    for points in curves.values():
        assert tuple(point.guidance_scale for point in points) == read_protocol("card").guidance_scales
        assert min(points, key=lambda point: point.fid).guidance_scale == 3.0
        scores = [point.clip_score for point in points]
        assert scores == sorted(scores)
