"""The tokenizer against transformers' CLIPTokenizer, on the two vocabularies in the package."""

from __future__ import annotations

import json
import random
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from sfumato.errors import InvalidConfig, InvalidRequest
from sfumato.prompt.tokenizer import Tokenizer

ASSETS = Path(str(files("sfumato") / "assets"))
VOCABULARIES = ("v1", "pocket")

WORDS = (ASSETS / "v1" / "tokenizer" / "merges.txt").read_text(encoding="utf-8").split()
LONG = " ".join(random.Random(0).choices([word.removesuffix("</w>") for word in WORDS], k=500))
CORPUS = [
    "",
    " ",
    " \t\n\u00a0\u2003\u3000 ",
    "a photograph of an astronaut riding a horse",
    "A  RED\tApple\n\n on   a TABLE ",
    "Crème brûlée, naïve façade, Ångström, señor, straße, STRASSE, ẞ",
    "Cre\u0300me bru\u0302le\u0301e, nai\u0308ve fac\u0327ade, A\u030angstro\u0308m",
    "\u1e69 s\u0323\u0307 s\u0307\u0323 \u212b \u2126 \ufb01 \u01c5 İstanbul ıIİi ΣΑΣ ς",
    "한국어 각 \u1100\u1161\u11a8",
    "日本語の猫、東京タワー。中文 标点！全角ＡＢＣ１２３",
    "مرحبا بالعالم שלום עולם \u200fabc\u200e \u202eabc",
    "हिन्दी ไทย ქართული Ελληνικά кириллица ЁЖ",
    "👩‍👩‍👧‍👦 👍🏽 🇯🇵 ❤️ 🏴‍☠️ 🧑🏿‍🚀 #️⃣ a👍b",
    "\x00 \x01a\x7fb\x1b[31m \x85 \u2028x\u2029 \ufeffbom \u200b\u200d \xad soft",
    "!!! ... ??? --- ___ *** !?!? (((a))) [[b]] {c} <d> @#$%^&*~`|\\/ \"q\" 'q' “q” ‘q’ … — –",
    "I'm you're he's they'll we've I'd don't DON'T o'clock 'tis rock'n'roll 's 'S l’été",
    "1 12 123 1,234.5 0x1F 3D 4k 1920x1080 ½ ² Ⅷ ٣ 五",
    "<|endoftext|>",
    "<|startoftext|>",
    "a <|endoftext|> b<|startoftext|>c <|ENDOFTEXT|> <|StartOfText|> <|endoftext| >",
    "  <|endoftext|>  <|endoftext|><|endoftext|>",
    "hello! a!!b !",
    "\U0010ffff \ue000 \ufffd \ufffe \u0378",
    "z̵͍͝a̷l̶g̸o",
    "word" * 200,
    "ABC" * 300 + " " + "é" * 100,
    "https://example.org/a?b=c&d=%20 user@example.org &amp; &lt;b&gt;",
    LONG,
]


@pytest.fixture(scope="module", params=VOCABULARIES)
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, CLIPTokenizer]:
    folder = ASSETS / request.param / "tokenizer"
    return Tokenizer.from_folder(folder), CLIPTokenizer.from_pretrained(folder)


def same(ours: Tokenizer, theirs: CLIPTokenizer, text: str) -> None:
    assert list(ours.encode(text).ids) == theirs(text, add_special_tokens=False).input_ids


def test_frame_matches_transformers(pair: tuple[Tokenizer, CLIPTokenizer]) -> None:
    ours, theirs = pair
    assert ours.bos_id == theirs.bos_token_id
    assert ours.eos_id == theirs.eos_token_id
    assert ours.pad_id == theirs.pad_token_id
    assert ours.max_length == theirs.model_max_length
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize("text", CORPUS, ids=range(len(CORPUS)))
def test_ids_match_transformers(pair: tuple[Tokenizer, CLIPTokenizer], text: str) -> None:
    same(*pair, text)


@settings(max_examples=400, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=80))
def test_any_text_matches_transformers(pair: tuple[Tokenizer, CLIPTokenizer], text: str) -> None:
    same(*pair, text)


@settings(max_examples=200, deadline=None)
@given(pieces=st.lists(st.sampled_from([*CORPUS[:-1], "a", " ", "'", "s", "́", "‍", "<|", "|>", "İ"]), max_size=6))
def test_glued_hard_pieces_match_transformers(pair: tuple[Tokenizer, CLIPTokenizer], pieces: list[str]) -> None:
    same(*pair, "".join(pieces))


@pytest.mark.parametrize(
    ("text", "where"), [("\ud800", 0), ("ab\udc80c", 2), ("\ud83d\ude00", 0), ("a red \udfff", 6)], ids=ascii
)
def test_half_characters_are_refused(pair: tuple[Tokenizer, CLIPTokenizer], text: str, where: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"U\+D[89A-F][0-9A-F]+ at character {where}"):
        pair[0].encode(text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_starts_rise_and_point_at_text(pair: tuple[Tokenizer, CLIPTokenizer], text: str) -> None:
    tokens = pair[0].encode(text)
    assert len(tokens.starts) == len(tokens.ids)
    assert list(tokens.starts) == sorted(tokens.starts)
    assert all(text[start] not in " \t\n\r" for start in tokens.starts)


def test_starts_are_the_offsets_of_the_typed_text(pair: tuple[Tokenizer, CLIPTokenizer]) -> None:
    text = "  Cafe\u0301\n\n THE 猫 <|endoftext|> x"
    starts = {text[start] for start in pair[0].encode(text).starts}
    assert {"C", "T", "猫", "<", "x"} <= starts


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def sd2_folder(folder: Path) -> None:
    """As Stable Diffusion 2's: the config names the end token as padding, the map overrides it with "!"."""
    special = json.loads((folder / "special_tokens_map.json").read_text(encoding="utf-8"))
    write(folder / "special_tokens_map.json", special | {"pad_token": "!"})


def no_map(folder: Path) -> None:
    (folder / "special_tokens_map.json").unlink()


def bare(folder: Path) -> None:
    (folder / "special_tokens_map.json").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    write(folder / "tokenizer_config.json", {"model_max_length": config["model_max_length"]})


def only_tokenizer_json(folder: Path) -> None:
    """As transformers 5 saves it."""
    theirs = CLIPTokenizer.from_pretrained(folder)
    for file in folder.iterdir():
        file.unlink()
    theirs.save_pretrained(folder)
    assert not (folder / "vocab.json").exists()


def sd2_tokenizer_json(folder: Path) -> None:
    sd2_folder(folder)
    only_tokenizer_json(folder)


def added_tokens_decoder(folder: Path) -> None:
    """As transformers 4 saves it: the list of added tokens makes the map irrelevant."""
    sd2_folder(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "special": True}
    tokens = {
        "3998": {"content": "<|startoftext|>", "normalized": True, **flags},
        "3999": {"content": "<|endoftext|>", "normalized": True, **flags},
    }
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    write(folder / "tokenizer_config.json", config | names | {"added_tokens_decoder": tokens})


LAYOUTS = [sd2_folder, no_map, bare, only_tokenizer_json, sd2_tokenizer_json, added_tokens_decoder]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_folder_layouts_match_transformers(tmp_path: Path, layout: object) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(ASSETS / "pocket" / "tokenizer", folder)
    layout(folder)
    ours, theirs = Tokenizer.from_folder(folder), CLIPTokenizer.from_pretrained(folder)
    test_frame_matches_transformers((ours, theirs))
    for text in CORPUS:
        same(ours, theirs, text)


def test_sd2_pads_with_id_0(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(ASSETS / "pocket" / "tokenizer", folder)
    sd2_folder(folder)
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.pad_id, tokenizer.eos_id) == (0, 3999)


def remove(name: str) -> object:
    return lambda folder: (folder / name).unlink()


def put(name: str, content: str) -> object:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


BROKEN = {
    "no vocabulary": (remove("vocab.json"), "needs vocab.json and merges.txt, or tokenizer.json"),
    "not JSON": (put("vocab.json", '{"a": 0'), "vocab.json is not JSON"),
    "a list": (put("vocab.json", "[1]"), "must hold a JSON object, not list"),
    "ids not numbers": (put("vocab.json", '{"a": "b"}'), "not an object of token names and ids"),
    "end token unknown": (put("vocab.json", '{"a": 0}'), "bos_token '<|startoftext|>' is not in its vocabulary"),
    "merge of three": (put("merges.txt", "#version: 0.2\na b c\n"), "is not a merge of two tokens"),
    "merge of strangers": (put("merges.txt", "#version: 0.2\nqqqq zzzz\n"), "don't fit each other"),
    "no length": (put("tokenizer_config.json", '{"model_max_length": "77"}'), "model_max_length '77'"),
    "odd special": (put("special_tokens_map.json", '{"pad_token": 3}'), "3 is not a special token"),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_folders_are_one_line_errors(tmp_path: Path, damage: object, message: str) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(ASSETS / "pocket" / "tokenizer", folder)
    damage(folder)
    with pytest.raises(InvalidConfig) as caught:
        Tokenizer.from_folder(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
