"""What a server may be started with, and from where it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfumato.errors import InvalidConfig
from sfumato.serve.security.api_keys import key_hash
from sfumato.serve.server_settings import ServerSettings, read_server_settings

KEY = "a key that nobody guesses"


def test_without_a_key_only_this_machine_is_let_in():
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        ServerSettings(host=host)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        with pytest.raises(InvalidConfig, match="no API key"):
            ServerSettings(host=host)
        ServerSettings(host=host, keys=(key_hash(KEY),))


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path):
    config = tmp_path / "serve.toml"
    config.write_text('port = 1\nmax_waiting = 1\nfolder = "one"\nmodels = ["pocket", "v1-4"]\n')
    environment = {"SFUMATO_SERVE_PORT": "2", "SFUMATO_SERVE_FOLDER": "two", "SFUMATO_SERVE_ALLOW_HOSTS": "a, b"}
    settings = read_server_settings({"port": 3, "host": None}, config=config, environment=environment)
    assert (settings.port, settings.folder, settings.max_waiting) == (3, "two", 1)
    assert settings.models == ("pocket", "v1-4")
    assert settings.allow_hosts == ("a", "b")


def test_a_port_of_zero_is_a_flag_too():
    assert read_server_settings({"port": 0}, environment={}).port == 0


def test_keys_are_kept_as_their_hash_only(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n\n{KEY} two\n")
    settings = read_server_settings({"host": "0.0.0.0"}, key_file=file, environment={"SFUMATO_API_KEY": KEY + " three"})
    assert settings.keys == tuple(map(key_hash, (KEY + " three", KEY, KEY + " two")))
    assert KEY not in repr(settings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = 'x'", "port"),
        ("port = 70000", "port"),
        ("prot = 1", "prot"),
        ("models = []", "models"),
        ("public_url = 'example.org'", "public_url"),
        ("public_url = 'https://example.org/path'", "public_url"),
        ("port = ", "TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str):
    config = tmp_path / "serve.toml"
    config.write_text(text)
    with pytest.raises(InvalidConfig, match=said):
        read_server_settings({}, config=config, environment={})


def test_wrong_words_in_the_environment_are_named():
    for name, value in (("PORT", "many"), ("LOG_PROMPTS", "perhaps")):
        with pytest.raises(InvalidConfig, match=f"SFUMATO_SERVE_{name}"):
            read_server_settings({}, environment={f"SFUMATO_SERVE_{name}": value})
    with pytest.raises(InvalidConfig, match="guessed"):
        read_server_settings({}, environment={"SFUMATO_API_KEY": "short"})
