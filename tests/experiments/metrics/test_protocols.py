"""Protocols: one file each, no two alike, and nothing misspelt gets through."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cdrl.errors import UserError
from experiments.metrics import Protocol, protocols


def test_every_file_is_a_protocol_of_that_name_and_no_two_are_alike() -> None:
    known = [protocols.load(name) for name in protocols.names()]
    assert [protocol.name for protocol in known] == protocols.names()
    assert {"fd-digits", "fid-clean", "fid-legacy-pytorch", "fid-legacy-tensorflow", "fid-released-5k"} <= set(
        protocols.names()
    )
    unnamed = {replace(protocol, name="") for protocol in known}
    assert len(unnamed) == len(known)


@pytest.mark.parametrize(
    ("name", "channels", "size", "fitting"),
    [
        ("fd-digits", 3, 32, "fd-efficientnet-lite0, fd-efficientnet-lite0-96, fid-clean"),
        ("fd-digits", 3, 8, "fd-efficientnet-lite0"),
        ("fd-digits", 1, 28, "fd-efficientnet-lite0"),
        ("fid-clean", 2, 1, "none"),
        ("fd-cifar10-16", 3, 32, "fd-efficientnet-lite0"),
        ("fd-cifar10-16", 1, 16, "fd-efficientnet-lite0"),
        ("fd-digits", 3, 16, "fd-cifar10-16, fd-efficientnet-lite0"),
    ],
)
def test_a_protocol_that_does_not_fit_names_those_that_do(name: str, channels: int, size: int, fitting: str) -> None:
    with pytest.raises(UserError, match=f"{name} cannot look at {size}x{size} .* can: {fitting}"):
        protocols.load(name).check_fits(channels, size)


def test_protocols_fit_what_their_extractors_take() -> None:
    protocols.load("fd-digits").check_fits(1, 8)
    protocols.load("fd-cifar10-16").check_fits(3, 16)
    for channels in (1, 3):
        protocols.load("fd-efficientnet-lite0").check_fits(channels, 32)


def test_only_inception_is_called_fid() -> None:
    for protocol in map(protocols.load, protocols.names()):
        assert protocol.name.startswith("fid-") == protocol.extractor.startswith("inception-")


def test_the_released_protocol_is_that_of_the_scripts() -> None:
    released = protocols.load("fid-released-5k")
    assert (released.samples, released.reference_samples, released.reference_split) == (5000, 5000, "train")
    assert not released.rounding
    assert released.extractor == "inception-legacy-pytorch"


def test_the_place_of_the_weights_makes_no_other_protocol_but_their_hash_does() -> None:
    protocol = protocols.load("fid-clean")
    assert replace(protocol, weights="elsewhere") == protocol
    assert replace(protocol, weights_sha256="0" * 64) != protocol


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": 10}, "no setting sample"),
        ({"metrics": ["fd", "fdi"]}, "unknown metrics"),
        ({"metrics": []}, "unknown metrics"),
        ({"extractor": "resnet"}, "no extractor 'resnet'"),
        ({"samples": 0}, "at least 2"),
        ({"samples": -3}, "at least 2"),
        ({"reference_samples": 1}, "at least 2"),
    ],
)
def test_a_bad_setting_gets_one_clear_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Protocol.from_config({"name": "x", "extractor": "digits", "samples": 10, **change})
    assert "\n" not in str(caught.value)


def test_missing_settings_and_unknown_names_are_named() -> None:
    with pytest.raises(UserError, match="lacks samples"):
        Protocol.from_config({"name": "x", "extractor": "digits"})
    with pytest.raises(UserError, match=r"unknown protocol 'fid'.*fid-clean"):
        protocols.load("fid")
