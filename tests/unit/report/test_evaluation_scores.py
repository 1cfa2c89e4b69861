"""From painted pictures to scores, curves and a page; comparing two ways; probes. The networks are random and small."""

from __future__ import annotations

import html.parser
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sfumato.errors import InvalidRequest, MissingExtra
from sfumato.modelfiles.load_options import LoadOptions
from sfumato.pictures.pixels import Pixels
from sfumato.pocket.dataset.scenes import BACKGROUNDS
from sfumato.report.evaluation.comparing import compare, parse_side, summary
from sfumato.report.evaluation.curves import choose_distance, curves, drawable, table
from sfumato.report.evaluation.evaluation_plan import make_plan, read_run, start
from sfumato.report.evaluation.feature_cache import cached_features
from sfumato.report.evaluation.page import report_page
from sfumato.report.evaluation.plotting import plot
from sfumato.report.evaluation.prompt_list import Prompt, pinned
from sfumato.report.evaluation.protocols import Protocol
from sfumato.report.evaluation.reference import Reference, read_folder, read_moments
from sfumato.report.evaluation.run_pictures import picture_path
from sfumato.report.evaluation.scoring import (
    References,
    Settings,
    check_reference,
    pictures_seen,
    preferences,
    read_scores,
    reference_features,
    score,
    score_run,
)
from sfumato.report.features.network import Identity
from sfumato.report.features.pickscore_hps import Preference
from sfumato.report.metrics.fid import Gaussian, frechet_distance
from sfumato.report.metrics.kid_cmmd import kid
from sfumato.report.probes.bias import counted
from sfumato.report.probes.categories import by_category
from sfumato.report.probes.following import followed, patches
from sfumato.report.probes.lists import Neutral, probe_names, probe_prompts, read_neutral
from sfumato.report.probes.nearest_pictures import nearest
from support.evaluation_inputs import feature_rows

EVIL = '<script>alert(1)</script>"&'
PROMPTS = pinned([Prompt(text=text, fields={"kind": text[-1]}) for text in (f"a {EVIL}", "a cat", "one b", "two b")])
SETTINGS = Settings(resamples=20)


class MeanColours:
    """A `Network` whose three features are a picture's mean colour. Counts how often it is asked."""

    identity = Identity(name="colours", file="none", sha256="0" * 64, resize="none")

    def __init__(self) -> None:
        self.seen = 0

    def features(self, pictures: Sequence[Pixels]) -> dict[str, NDArray[np.float32]]:
        self.seen += len(pictures)
        return {"colours": np.stack([p.reshape(-1, 3).mean(axis=0) for p in pictures]).astype(np.float32)}


def coloured(count: int, seed: int) -> list[Pixels]:
    random = np.random.RandomState(seed)
    return [np.full((16, 16, 3), random.randint(0, 256, 3), np.uint8) for _ in range(count)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose pictures are there, by whatever program."""
    protocol = Protocol(name="test", guidance_scales=(2.0, 1.0), steps=(5,), notes=(f"note {EVIL}",))
    plan = make_plan(protocol, [("m", "pocket")], PROMPTS)
    start(tmp_path, plan, PROMPTS)
    for number, cell in enumerate(plan.cells):
        for index, pixels in enumerate(coloured(4, number)):
            path = picture_path(tmp_path, cell, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return tmp_path


def test_scores_are_the_metrics_of_the_features(run: Path) -> None:
    network, reference = MeanColours(), Reference(pictures=tuple(coloured(30, 9)))
    document = score_run(run, [network], reference, SETTINGS)
    assert document == read_scores(run)
    real = network.features(reference.pictures)["colours"]
    for number, cell in enumerate(document["cells"]):
        rows = network.features(coloured(4, number))["colours"]
        expected = frechet_distance(Gaussian.of(rows), Gaussian.of(real))
        assert cell["scores"]["frechet/colours"]["value"] == pytest.approx(expected)
        assert cell["scores"]["kid/colours"]["value"] == pytest.approx(kid(rows, real).mean)
        assert cell["scores"]["kid/colours"]["low"] < cell["scores"]["kid/colours"]["high"]
    assert document["run"]["prompts_sha256"] == PROMPTS.sha256


def test_features_are_computed_once_and_again_when_a_picture_changes(run: Path) -> None:
    network, reference = MeanColours(), Reference(pictures=tuple(coloured(30, 9)))
    score_run(run, [network], reference, SETTINGS)
    assert network.seen == 38
    score_run(run, [network], reference, SETTINGS)
    assert network.seen == 38
    Image.fromarray(coloured(1, 77)[0]).save(next((run / "pictures").rglob("000002.png")))
    score_run(run, [network], reference, SETTINGS)
    assert network.seen == 42


def test_the_pictures_told_are_those_counted_before(run: Path) -> None:
    networks, reference, told = [MeanColours()], Reference(pictures=tuple(coloured(30, 9))), list[int]()
    score_run(run, networks, reference, SETTINGS, on_pictures=told.append)
    plan, _ = read_run(run)
    assert sum(told) == pictures_seen(plan, networks, reference) == 38
    liking = object.__new__(Preference)  # unloaded: only its kind counts
    assert pictures_seen(plan, [*networks, liking], reference) == 38 + 8


def test_preferred_is_the_share_of_pairs_won() -> None:
    liked = np.array([[3.0, 1.0, 2.0], [1.0, 2.0, 2.0], [2.0, 3.0, 5.0]])
    found = [preferences("x", liked, number, SETTINGS) for number in range(3)]
    assert [cell["preference/x"].value for cell in found] == pytest.approx(liked.mean(axis=1))
    # two pairs a prompt: won 2, 0, half of one; 0, 1, half of one; 1, 2, 2
    assert [cell["preferred/x"].value for cell in found] == pytest.approx([2.5 / 6, 1.5 / 6, 5 / 6])
    assert found[0]["preferred/x"].low is not None
    assert list(preferences("x", liked[:1], 0, SETTINGS)) == ["preference/x"]  # nothing to be preferred to


def test_few_pictures_for_many_features_are_told(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    rows, real = feature_rows(10, 16, 1), feature_rows(50, 16, 2)
    references = References(features={"x": real}, gaussians={"x": Gaussian.of(real)})
    with caplog.at_level(logging.WARNING, "sfumato"):
        score({"x": rows}, references, None, SETTINGS)
    assert "10 pictures are no more than the 16 features" in caplog.text
    with pytest.raises(InvalidRequest, match="nothing could be scored"):
        score({"x": rows}, References(features={}, gaussians={}), None, SETTINGS)
    with pytest.raises(InvalidRequest, match="give two or more"):
        score({"x": rows[:1]}, references, None, SETTINGS)
    with pytest.raises(InvalidRequest, match="no network here has features 'x': there are colours"):
        check_reference([MeanColours()], ["x"], pictures=False)
    with pytest.raises(InvalidRequest, match="preference scores have no reference"):
        check_reference([object.__new__(Preference)], [], pictures=True)
    with pytest.raises(InvalidRequest, match="the reference is one picture"):
        reference_features(tmp_path, [MeanColours()], Reference(pictures=tuple(coloured(1, 9))))


def test_a_network_that_answers_nan_is_named(tmp_path: Path) -> None:
    network = MeanColours()
    network.features = lambda pictures: {"colours": np.full((len(pictures), 3), np.nan, np.float32)}
    with pytest.raises(InvalidRequest, match="gives colours features that are not numbers"):
        cached_features(tmp_path, coloured(2, 0), network)


def test_published_statistics_are_read_and_nothing_in_them_is_run(tmp_path: Path) -> None:
    rows = feature_rows(200, 6, 1)
    np.savez(tmp_path / "coco.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    other = Gaussian.of(feature_rows(100, 6, 2))
    found = frechet_distance(read_moments(tmp_path / "coco.npz"), other)
    assert found == pytest.approx(frechet_distance(Gaussian.of(rows), other))
    np.savez(tmp_path / "evil.npz", mu=np.array([print], dtype=object), sigma=np.eye(1))
    with pytest.raises(InvalidRequest, match="holds no statistics"):
        read_moments(tmp_path / "evil.npz")
    np.savez(tmp_path / "nan.npz", mu=np.full(2, np.nan), sigma=np.eye(2))
    with pytest.raises(InvalidRequest, match=r"nan\.npz: .* not finite"):
        read_moments(tmp_path / "nan.npz")
    np.savez(tmp_path / "other.npz", mean=rows.mean(0))
    with pytest.raises(InvalidRequest, match="holds no statistics"):
        read_moments(tmp_path / "other.npz")


def test_reference_pictures_are_cut_square(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    (square,) = read_folder(tmp_path, side=10)
    assert square.shape == (10, 10, 3)
    assert square.min() > 200
    with pytest.raises(InvalidRequest, match="holds no pictures"):
        read_folder(tmp_path / "nowhere")


DOCUMENT: dict[str, Any] = {
    "protocol": "test",
    "notes": [],
    "cells": [
        {
            "label": "m", "guidance_scale": scale, "sampler": "plms", "steps": 5, "pictures": 4, "seconds": 1.0,
            "scores": {
                "frechet/inception/pytorch-fid": {"value": fid, "low": fid - 1, "high": fid + 1},
                "clip-score": {"value": clip, "low": None, "high": None},
            },
        }
        for scale, fid, clip in ((3.0, 15.0, 0.25), (1.5, 20.0, 0.24))
    ],
}  # fmt: skip


def test_curves_go_by_growing_guidance() -> None:
    (points,) = curves(DOCUMENT, "clip-score", "frechet/inception/pytorch-fid").values()
    assert [point.guidance_scale for point in points] == [1.5, 3.0]
    assert points[0].y == (20.0, 19.0, 21.0)
    assert points[0].x == (0.24, 0.24, 0.24)
    with pytest.raises(InvalidRequest, match="there are frechet/inception/pytorch-fid, clip-score"):
        curves(DOCUMENT, "clip-score", "fid")


def with_scores(*names: str) -> dict[str, Any]:
    value = {"value": 1.0, "low": None, "high": None}
    return DOCUMENT | {"cells": [cell | {"scores": dict.fromkeys(names, value)} for cell in DOCUMENT["cells"]]}


def test_a_curve_needs_the_clip_score_and_a_distance() -> None:
    assert drawable(DOCUMENT) and drawable(with_scores("cmmd", "clip-score"))
    for names in (("clip-score",), ("cmmd", "preference/x"), ("clip-score", "preference/x", "preferred/x")):
        assert not drawable(with_scores(*names))
    with pytest.raises(InvalidRequest, match="no distance to a reference"):
        choose_distance(with_scores("clip-score", "preference/x"))


def test_the_page_of_likings_alone_has_no_curve(run: Path) -> None:
    score_run(run, [MeanColours()], Reference(pictures=tuple(coloured(30, 9))), SETTINGS)
    document = read_scores(run)
    for cell in document["cells"]:
        cell["scores"] = with_scores("clip-score", "preference/x")["cells"][0]["scores"]
    (run / "scores.json").write_text(json.dumps(document))
    page = report_page(run, examples=1)
    assert "Preference score (x)" in page and 'class="curves"' not in page


def test_the_table_leaves_out_what_all_cells_share() -> None:
    heads, rows, shared = table(DOCUMENT)
    assert heads == ["guidance", "FID (pytorch-fid)", "CLIP score"]
    assert rows == [["3", "15 [14, 16]", "0.25"], ["1.5", "20 [19, 21]", "0.24"]]
    assert shared == {"model": "m", "sampler": "plms", "steps": "5", "pictures": "4"}
    alone = table(DOCUMENT | {"cells": DOCUMENT["cells"][:1]})
    assert alone[0][:5] == ["model", "guidance", "sampler", "steps", "pictures"]
    assert not alone[2]


def test_the_same_scores_give_the_same_drawing() -> None:
    svg = plot(DOCUMENT, ".svg").decode()
    assert plot(DOCUMENT, ".svg").decode() == svg
    assert "v1-4, published" in svg
    assert "v1-4, published" not in plot(DOCUMENT, ".svg", published=False).decode()
    assert Image.open(io.BytesIO(plot(DOCUMENT, ".png"))).width > 500
    with pytest.raises(InvalidRequest, match="can't be drawn as"):
        plot(DOCUMENT, ".bmp")
    with (
        mock.patch.dict("sys.modules", {"matplotlib": None}),
        pytest.raises(MissingExtra, match=r"sfumato\[evaluate\]"),
    ):
        plot(DOCUMENT, ".svg")


class Reader(html.parser.HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_no_other_file_and_runs_nothing(run: Path) -> None:
    score_run(run, [MeanColours()], Reference(pictures=tuple(coloured(30, 9))), SETTINGS)
    reader = Reader()
    reader.feed(report_page(run, examples=3))
    assert not [tag for tag, _ in reader.tags if tag in ("script", "link", "iframe", "object")]
    sources = [attributes["src"] or "" for tag, attributes in reader.tags if tag == "img"]
    assert len(sources) == 3 * 2  # no CLIP score, no curves
    assert all(source.startswith("data:image/") for source in sources)
    assert f"a {EVIL}" in reader.text
    assert f"note {EVIL}" in reader.text
    assert PROMPTS.sha256 in reader.text
    assert "0" * 64 in reader.text


def test_pairs_are_compared() -> None:
    a = coloured(3, 1)
    b = [a[0], a[1], np.clip(a[2].astype(int) + 3, 0, 255).astype(np.uint8)]
    found = compare(a, b)
    assert found["psnr"][:2] == [np.inf, np.inf]
    assert found["ssim"][:2] == [1.0, 1.0]
    assert 35 < found["psnr"][2] < 50
    assert summary(found)["psnr"]["mean"] is None
    assert summary(found)["psnr"]["least"] == found["psnr"][2]
    with pytest.raises(InvalidRequest, match="3 and 2 pictures don't pair up"):
        compare(a, b[:2])
    with pytest.raises(InvalidRequest, match="give two of one size"):
        compare(a[:1], [np.zeros((8, 8, 3), np.uint8)])


def test_what_a_side_changes(tmp_path: Path) -> None:
    side = parse_side("pocket", ["steps=20", "dtype=bfloat16", "ema=false", "guidance-scale=3"])
    assert side.fields == {"steps": 20, "guidance_scale": 3.0}
    assert side.loading == LoadOptions(dtype="bfloat16", ema=False)
    assert side.folder is None
    assert parse_side(str(tmp_path), []).folder == tmp_path
    for wrong in ("steps", "prompt=x", "nothing=3", "batch_size=0", "ema=perhaps"):
        with pytest.raises(InvalidRequest, match=r"change|must be"):
            parse_side("pocket", [wrong])


def test_scores_by_category() -> None:
    prompts = [Prompt(text="", fields={"kind": k, "tags": t}) for k, t in (("a", ["x"]), ("b", ["x", "y"]), ("a", []))]
    values = np.array([1.0, 2.0, 4.0])
    kinds = by_category(prompts, values, "kind", SETTINGS)
    assert {name: (value.value, count) for name, (value, count) in kinds.items()} == {"a": (2.5, 2), "b": (2.0, 1)}
    assert {name: v.value for name, (v, _) in by_category(prompts, values, "tags", SETTINGS).items()} == {
        "x": 1.5,
        "y": 2,
    }
    with pytest.raises(InvalidRequest, match="there are kind, tags"):
        by_category(prompts, values, "group", SETTINGS)


def test_a_copy_is_nearer_than_training_pictures_are_to_each_other() -> None:
    training = feature_rows(200, 24, 1)
    generated = np.concatenate([training[[17]] * 1.001, feature_rows(200, 24, 2)])
    found = nearest(generated, training, 3)
    assert found.indices[0, 0] == 17
    assert found.cosines[0, 0] == pytest.approx(1.0)
    assert found.copies[0]
    assert 0.01 < found.copies[1:].mean() < 0.1  # new ones of the same kind: as the 95 % promise
    brute = generated @ training.T / np.linalg.norm(generated, axis=1)[:, None] / np.linalg.norm(training, axis=1)
    np.testing.assert_allclose(found.cosines, -np.sort(-brute, axis=1)[:, :3])
    with pytest.raises(InvalidRequest, match="ask for fewer"):
        nearest(generated, training, 200)


class Words:
    """Texts are where their number says; stands for a CLIP model."""

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.eye(len(texts), 4, dtype=np.float32)


def test_what_a_classifier_sees_is_counted() -> None:
    probe = Neutral(prompts=("a", "b"), attributes={"colour": ("red", "blue")}, template="{}")
    embeddings = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0.2, 0.9, 0, 0]])
    found = counted(["a", "b", "b"], embeddings, Words(), probe)
    assert found == {"a": {"colour": {"red": 1, "blue": 0}}, "b": {"colour": {"red": 0, "blue": 2}}}


def test_the_lists_of_the_probes() -> None:
    assert probe_names() == ("languages", "people", "pocket")
    languages = probe_prompts("languages", 2)
    assert len({prompt.fields["language"] for prompt in languages.prompts}) == 5
    english = [prompt for prompt in languages.prompts if prompt.fields["language"] == "en"]
    assert all(prompt.text == prompt.fields["english"] for prompt in english)
    assert {len([p for p in languages.prompts if p.fields["language"] == name]) for name in ("en", "zh")} == {16}
    assert len(probe_prompts("people", 3).prompts) == 3 * len(read_neutral("people").prompts)
    with pytest.raises(InvalidRequest, match="there are languages, people, pocket"):
        probe_prompts("nobody", 1)


def scene(background: str, boxes: Sequence[tuple[int, int, int, int]]) -> Pixels:
    picture = np.full((64, 64, 3), BACKGROUNDS[background], np.uint8)
    for left, top, right, bottom in boxes:
        picture[top:bottom, left:right] = (10, 10, 10)
    return picture


def truth(background: str, kind: str, objects: int, place: str | None = None) -> dict[str, Any]:
    things = [{"label": f"thing {i}"} for i in range(objects)]
    return {"kind": kind, "background": background, "place": place, "relation": None, "objects": things}


def test_what_a_picture_shows_is_read_off_its_pixels() -> None:
    boxes = [(5, 5, 20, 25), (30, 30, 60, 60), (40, 8, 50, 16)]
    found = patches(scene("yellow", [*boxes, (62, 3, 63, 4)]))  # the last is a speck
    assert [patch.box for patch in found] == [boxes[1], boxes[0], boxes[2]]
    assert found[0].middle == (44.5, 44.5)
    answers = followed(
        [scene("yellow", boxes), scene("blue", boxes[:1]), scene("blue", boxes[:1])],
        [truth("yellow", "count", 3), truth("blue", "place", 1, "left"), truth("red", "place", 2, "bottom")],
        None,
    )
    shown = {name: (found.asked, found.shown) for name, found in answers.items()}
    assert shown == {"background": (3, 2), "count": (3, 2), "place": (2, 1), "relation": (0, 0)}


def test_scores_of_another_version_are_refused(run: Path) -> None:
    with pytest.raises(InvalidRequest, match="has no scores yet"):
        read_scores(run)
    (run / "scores.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(InvalidRequest, match="of another version"):
        read_scores(run)
