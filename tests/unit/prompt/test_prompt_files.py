"""A tokenizer from texts is the one from a folder, and says where they are from when they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

import sfumato
from sfumato.errors import InvalidConfig
from sfumato.prompt.tokenizer import TOKENIZER_FILES, Tokenizer

FOLDER = Path(sfumato.__file__).parent / "assets" / "v1" / "tokenizer"
FILES = {name: (FOLDER / name).read_text(encoding="utf-8") for name in TOKENIZER_FILES if (FOLDER / name).is_file()}


def test_texts_make_the_same_tokenizer_as_the_folder() -> None:
    ours, theirs = Tokenizer.from_files(FILES, folder="anywhere"), Tokenizer.from_folder(FOLDER)
    assert ours.backend.to_str() == theirs.backend.to_str()
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.max_length) == (49406, 49407, 49407, 77)


def test_messages_name_the_place() -> None:
    with pytest.raises(InvalidConfig, match=r"model\.safetensors: needs vocab\.json"):
        Tokenizer.from_files({"vocab.json": "{}"}, folder="model.safetensors")
    with pytest.raises(InvalidConfig, match=r"here/vocab\.json is not JSON"):
        Tokenizer.from_files(FILES | {"vocab.json": "{"}, folder="here")
    with pytest.raises(InvalidConfig, match=r"here/merges\.txt has more than"):
        Tokenizer.from_files(FILES | {"merges.txt": "\n" * 500_000}, folder="here")
    with pytest.raises(InvalidConfig, match="id of its vocabulary is above"):
        Tokenizer.from_files(FILES | {"vocab.json": FILES["vocab.json"].replace("49405", "2000000000")}, folder="here")
