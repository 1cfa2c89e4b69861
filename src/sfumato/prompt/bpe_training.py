"""A vocabulary of one's own in CLIP's layout, learned from texts: byte-pair encoding (Sennrich et al. 2016, alg. 1).

Of pairs that are equally frequent the one that sorts first is merged, so that the same texts make the same files on
every machine; the library's own trainer leaves that to chance.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise

from tokenizers import pre_tokenizers

from sfumato.errors import InvalidRequest
from sfumato.prompt.tokenizer import CLIP_MAX_LENGTH, ROLES, normalizer, splitter

_END = "</w>"
_BEGIN_OF_TEXT, _END_OF_TEXT = ROLES["bos_token"], ROLES["eos_token"]

Pair = tuple[str, str]


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int = CLIP_MAX_LENGTH) -> dict[str, str]:
    """The files of a tokenizer by name, as `Tokenizer.from_files` reads them and a model folder holds them.

    The vocabulary: every byte, every byte that ends a word, the merges in order, begin and end of text, which is the
    padding too. It is smaller than `vocab_size` where the texts have nothing more to merge. `InvalidRequest` for a
    size that leaves no room for a merge.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = 2 * len(alphabet) + 3
    if vocab_size < smallest:
        raise InvalidRequest(f"vocab_size = {vocab_size} must be at least {smallest}: two for each byte, and merges")
    merges = _merges(_words(texts), vocab_size - smallest + 1)
    tokens = [*alphabet, *[byte + _END for byte in alphabet], *[a + b for a, b in merges], _BEGIN_OF_TEXT, _END_OF_TEXT]
    lines = ["#version: 0.2", *[f"{a} {b}" for a, b in merges]]
    return {
        "vocab.json": _json({token: number for number, token in enumerate(tokens)}),
        "merges.txt": "\n".join(lines) + "\n",
        "special_tokens_map.json": _json(ROLES),
        "tokenizer_config.json": _json(
            {**ROLES, "add_prefix_space": False, "model_max_length": max_length, "tokenizer_class": "CLIPTokenizer"}
        ),
    }


def _json(values: Mapping[str, object]) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _words(texts: Iterable[str]) -> Counter[str]:
    """How often each word stands in the texts, in the bytes' own alphabet."""
    normal, split = normalizer(), splitter()
    return Counter(word for text in texts for word, _ in split.pre_tokenize_str(normal.normalize_str(text)))


def _merges(words: Counter[str], most: int) -> list[Pair]:
    """Up to `most` merges, the most frequent pair first; pairs seen once are left alone."""
    parts = {word: [*word[:-1], word[-1] + _END] for word in words}
    counts: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[str]] = defaultdict(set)
    for word, symbols in parts.items():
        for pair in pairwise(symbols):
            counts[pair] += words[word]
            where[pair].add(word)
    merges: list[Pair] = []
    while counts and len(merges) < most:
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        if counts[best] < 2:
            break
        merges.append(best)
        for word in where.pop(best):
            symbols = parts[word]
            for pair in pairwise(symbols):
                counts[pair] -= words[word]
            symbols = parts[word] = _merged(symbols, best)
            for pair in pairwise(symbols):
                counts[pair] += words[word]
                where[pair].add(word)
        counts = +counts  # drops what is no longer there
    return merges


def _merged(symbols: list[str], pair: Pair) -> list[str]:
    """The word's symbols with every occurrence of the pair as one."""
    out: list[str] = []
    i = 0
    while i < len(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            out.append(pair[0] + pair[1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return out
