"""CLIP's byte-level BPE, read from a model folder: text to token ids, and where in the text each token starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from sfumato.errors import InvalidConfig, InvalidRequest
from sfumato.json_files import MAX_VALUES, parse_object, read_text

TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
MAX_ID = 1_000_000  # far above CLIP's 49,407
MAX_ADDED = 10_000

# What CLIP's own position embedding holds. Only for folders whose files don't say (`model_max_length`).
CLIP_MAX_LENGTH = 77

# The order matters: where two roles name the same token, the later role's flags hold, as in transformers.
ROLES = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}

# CLIP's split into words (openai/CLIP, simple_tokenizer.py). The text is lower-cased before.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


_ID = re.compile(r"[0-9]{1,9}", re.ASCII)
_HALF = re.compile("[\\ud800-\\udfff]")  # half of a character: no text for the library


def tokenizer_files(folder: Path) -> dict[str, str]:
    """Read the texts of a tokenizer's files by name, those that are there. Raises `InvalidConfig`."""
    return {name: read_text(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The ids of a text, without begin, end or padding, and for each the index of the character it starts at."""

    ids: tuple[int, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """CLIP's tokenizer with the ids that frame a window of `max_length` tokens: begin, text, end, padding.

    Equal to transformers' `CLIPTokenizer` (version 5): Unicode NFC, runs of whitespace become one space, lower case,
    nothing else. A special token spelled out in the text, as `<|endoftext|>`, becomes its id. Safe to share between
    threads.
    """

    backend: tokenizers.Tokenizer = field(repr=False)
    bos_id: int
    eos_id: int
    pad_id: int
    max_length: int
    vocab_size: int

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Read `vocab.json` and `merges.txt`, or else `tokenizer.json`, with the settings in the files beside them.

        Raises `InvalidConfig` naming the file that is missing, damaged, or names a token the vocabulary lacks.
        """
        folder = Path(folder)
        return cls.from_files(tokenizer_files(folder), folder=folder)

    @classmethod
    def from_files(cls, files: Mapping[str, str], *, folder: str | Path) -> Self:
        """Make a tokenizer of its files' texts by name; `folder` is what messages call the place they are from. Raises
        `InvalidConfig` where they don't fit each other."""
        folder = Path(folder)
        objects = {
            name: parse_object(text, where=str(folder / name)) for name, text in files.items() if name.endswith(".json")
        }
        vocab, merges, serialized = _read_vocabulary(folder, files, objects)
        config = objects.get("tokenizer_config.json", {})
        roles, added = _special_tokens(folder, config, objects.get("special_tokens_map.json"), serialized)
        for role, token in roles.items():
            if token.content not in vocab:
                raise InvalidConfig(f"tokenizer {folder}: the {role} {token.content!r} is not in its vocabulary")
        try:
            model = models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", unk_token=str(roles["unk_token"]))
        except (
            Exception
        ) as error:  # the library raises bare Exception for a merge whose parts are not in the vocabulary
            raise InvalidConfig(f"tokenizer {folder}: vocabulary and merges don't fit each other: {error}") from error
        backend = tokenizers.Tokenizer(model)
        backend.normalizer, backend.pre_tokenizer = normalizer(), splitter()
        backend.add_tokens(added)
        for token in roles.values():
            backend.add_special_tokens([token])
        if max(backend.get_vocab().values()) > MAX_ID:
            raise InvalidConfig(f"tokenizer {folder}: an id of its vocabulary is above {MAX_ID}")
        return cls(
            backend=backend,
            bos_id=vocab[roles["bos_token"].content],
            eos_id=vocab[roles["eos_token"].content],
            pad_id=vocab[roles["pad_token"].content],
            max_length=_max_length(folder, config),
            vocab_size=backend.get_vocab_size(),
        )

    def encode(self, text: str) -> Tokens:
        """The whole text's tokens, however many. Raises `InvalidRequest` for text that is not valid Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            broken = f"U+{ord(text[error.start]):04X} at character {error.start}"
            raise InvalidRequest(f"the prompt holds half of a character, {broken}: type it again as UTF-8") from error
        encoding = self.backend.encode(text, add_special_tokens=False)
        return Tokens(ids=tuple(encoding.ids), starts=tuple(start for start, _ in encoding.offsets))

    def window(self, text: str) -> tuple[int, ...]:
        """Begin, the text's tokens as far as they fit, end, padding: `max_length` ids, as an ordinary program has them.

        Raises as `encode` does.
        """
        ids = self.encode(text).ids[: self.max_length - 2]
        return (self.bos_id, *ids, self.eos_id, *(self.pad_id,) * (self.max_length - 2 - len(ids)))


def normalizer() -> normalizers.Normalizer:
    """Unicode NFC, runs of whitespace as one space, lower case."""
    return normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])


def splitter() -> pre_tokenizers.PreTokenizer:
    """Normalised text to words, in an alphabet that has one letter a byte."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _read_vocabulary(
    folder: Path, files: Mapping[str, str], objects: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, Any] | None]:
    """Token → id, the merges in order, and the `tokenizer.json` object where there is one."""
    serialized = objects.get("tokenizer.json")
    if "vocab.json" in objects and "merges.txt" in files:
        vocab = objects["vocab.json"]
        if files["merges.txt"].count("\n") > MAX_VALUES:
            raise InvalidConfig(f"{folder / 'merges.txt'} has more than {MAX_VALUES} lines")
        lines = files["merges.txt"].split("\n")
        # As the format's readers do: a "#version" line is no merge, nor is what an editor leaves at the end.
        merges: list[Any] = [line.split(" ", 2) for line in lines if line.strip() and not line.startswith("#version")]
        source = folder / "merges.txt"
    elif serialized is not None:
        model = serialized.get("model")
        vocab, merges = (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)  # type: ignore[assignment]
        if not isinstance(merges, list):
            raise InvalidConfig(f"{folder / 'tokenizer.json'}: its model's merges are not a list")
        merges = [pair.split(" ", 2) if isinstance(pair, str) else pair for pair in merges]
        source = folder / "tokenizer.json"
    else:
        raise InvalidConfig(f"tokenizer {folder}: needs vocab.json and merges.txt, or tokenizer.json")
    if not isinstance(vocab, dict) or not vocab or not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise InvalidConfig(f"tokenizer {folder}: its vocabulary is not an object of token names and ids")
    for pair in merges:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise InvalidConfig(f"{source}: {_shown(pair)} is not a merge of two tokens")
    return vocab, [(left, right) for left, right in merges], serialized


def _special_tokens(
    folder: Path, config: dict[str, Any], roles_map: dict[str, Any] | None, serialized: dict[str, Any] | None
) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    """The token of each role, and any other added tokens in the order of their ids.

    Precedence as in transformers: `special_tokens_map.json` over `tokenizer_config.json`, unless the latter lists
    `added_tokens_decoder`; a token's flags come from that list, else from `tokenizer.json`, else from its role.
    """
    listed = config.get("added_tokens_decoder")
    names = {role: config.get(role) or default for role, default in ROLES.items()}
    if listed is None:
        names |= {role: roles_map[role] for role in ROLES if roles_map.get(role)} if roles_map else {}
        listed = _listed_by_id(folder, serialized)
    if not isinstance(listed, dict) or not all(map(_ID.fullmatch, listed)) or len(listed) > MAX_ADDED:
        raise InvalidConfig(f"tokenizer {folder}: added_tokens_decoder must map up to {MAX_ADDED} ids to tokens")
    added = {}
    for _, entry in sorted(listed.items(), key=lambda item: int(item[0])):
        token = _added_token(folder, entry)
        added[token.content] = token
    roles = {role: _added_token(folder, name) for role, name in names.items()}
    roles = {role: added.get(token.content, token) for role, token in roles.items()}
    in_roles = {token.content for token in roles.values()}
    return roles, [token for content, token in added.items() if content not in in_roles]


def _listed_by_id(folder: Path, serialized: dict[str, Any] | None) -> dict[str, Any]:
    tokens = (serialized or {}).get("added_tokens") or []
    if not isinstance(tokens, list) or not all(isinstance(token, dict) and "id" in token for token in tokens):
        raise InvalidConfig(f"{folder / 'tokenizer.json'}: added_tokens must be a list of tokens with ids")
    return {str(token["id"]): token for token in tokens}


def _added_token(folder: Path, entry: Any) -> AddedToken:
    """A special token from how the files write it: its text alone, or an object with flags."""
    if isinstance(entry, str):
        entry = {"content": entry}
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(content, str) or not content or _HALF.search(content):
        raise InvalidConfig(f"tokenizer {folder}: {_shown(entry)} is not a special token")
    flags = {name: bool(entry.get(name, False)) for name in ("single_word", "lstrip", "rstrip")}
    special = bool(entry.get("special", True))
    return AddedToken(content, special=special, normalized=bool(entry.get("normalized", not special)), **flags)


def _max_length(folder: Path, config: dict[str, Any]) -> int:
    length = config.get("model_max_length")
    # transformers writes 1e30 for "not known"
    if length is None or (isinstance(length, (int, float)) and length > 2**31):
        return CLIP_MAX_LENGTH
    if isinstance(length, bool) or not isinstance(length, int) or length < 3:
        raise InvalidConfig(
            f"tokenizer {folder}: model_max_length {_shown(length)} must be a whole number of at least 3"
        )
    return length


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
