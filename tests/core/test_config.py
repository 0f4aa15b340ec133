"""madtp.json: read back as written, checked once, unknown keys and names are errors."""

import pytest

from madtp_core.config import AlignmentConfig, MadtpConfig, PruningConfig
from madtp_core.errors import CheckpointError, ConfigError, UnknownNameError

FULL = MadtpConfig(
    encoder_first_token="enc",
    max_text_tokens=40,
    alignment=AlignmentConfig(num_tokens=7, dim=32),
    pruning=PruningConfig(branches=("vision",), prune_temperature=0.5, flops_ratio=0.4, batch_size=16),
)


@pytest.mark.parametrize("config", [MadtpConfig(), FULL])
def test_what_is_written_is_read_back(config):
    assert MadtpConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("part", [None, "alignment", "pruning"])
def test_an_unknown_key_is_named(part):
    data = FULL.to_dict()
    (data[part] if part else data)["surprise"] = 1
    with pytest.raises(UnknownNameError, match="surprise"):
        MadtpConfig.from_dict(data)


def test_another_schema_version_is_refused():
    with pytest.raises(CheckpointError, match="schema version 99"):
        MadtpConfig.from_dict({**FULL.to_dict(), "schema_version": 99})


@pytest.mark.parametrize(
    "make",
    [
        lambda: MadtpConfig(task="cooking"),
        lambda: MadtpConfig(encoder_first_token="dec"),
        lambda: MadtpConfig(max_text_tokens=2),
        lambda: AlignmentConfig(num_tokens=0),
        lambda: PruningConfig(method="guessing"),
        lambda: PruningConfig(branches=("audio",)),
        lambda: PruningConfig(keep_mode="some"),
        lambda: PruningConfig(prune_temperature=-1.0),
    ],
)
def test_a_value_out_of_range_is_refused(make):
    with pytest.raises(ConfigError):
        make()
