"""The Inception extractors on randomly filled networks of the real architectures, against clean-fid's own functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from cdrl.errors import UserError
from experiments.data import ImageSet
from experiments.files import sha256
from experiments.metrics import Scorer, build, protocols, to_pixels
from experiments.metrics.extractors.inception import PORT, TORCHSCRIPT
from tests import sensitivity

MODES = ["clean", "legacy_pytorch", "legacy_tensorflow"]


class Graph(nn.Module):
    """What clean-fid expects of the TorchScript file: ``layers``, ``output``, and a call that resizes by itself."""

    def __init__(self, layers: nn.Sequential, output: nn.Linear) -> None:
        super().__init__()
        self.layers = layers
        self.output = output

    def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        x = F.interpolate(img, size=[299, 299], mode="bilinear", align_corners=False)
        features = self.layers((x - 128) / 128).reshape(-1, 2048)
        if return_features:
            return features
        logits = F.linear(features, self.output.weight) if no_output_bias else self.output(features)
        return logits.softmax(dim=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both weight files, under their own names."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    network = torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
    torch.save(network.state_dict(), folder / PORT.name)
    cleanfid = _clean_fids_port(folder / PORT.name)
    graph = Graph(nn.Sequential(*cleanfid.blocks), network.fc).eval()
    torch.jit.script(graph).save(folder / TORCHSCRIPT.name)
    return folder


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """As many as the extractor looks at together, so that others can do the very same."""
    return np.random.RandomState(0).randint(0, 256, (4, 32, 32, 3)).astype(np.uint8)


def _clean_fids_port(path: Path) -> nn.Module:
    from cleanfid import inception_pytorch

    state = torch.load(path, weights_only=True)
    with mock.patch.object(inception_pytorch, "load_state_dict_from_url", return_value=state):
        return inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False).eval()


def _file(folder: Path, mode: str) -> Path:
    return folder / (PORT if mode == "legacy_pytorch" else TORCHSCRIPT).name


def _build(folder: Path, mode: str) -> Callable:
    path = _file(folder, mode)
    return build("inception-" + mode.replace("_", "-"), folder, weights=folder, expected=sha256(path))


@pytest.mark.parametrize("mode", MODES)
def test_features_are_those_of_clean_fid(
    folder: Path, pixels: np.ndarray, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cleanfid import features, inception_pytorch
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    state = torch.load(folder / PORT.name, weights_only=True)
    monkeypatch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: state)
    monkeypatch.setattr(
        features, "InceptionV3W", lambda _, download, resize_inside: InceptionV3W(folder, False, resize_inside)
    )
    model = features.build_feature_extractor(mode, torch.device("cpu"), use_dataparallel=False)
    resized = np.stack([build_resizer(mode)(image) for image in pixels]).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        expected = model(torch.from_numpy(resized).float().contiguous())

    extracted = _build(folder, mode)(pixels)
    assert extracted.features.shape == (4, 2048)
    assert expected.std(dim=0).mean() > 0.01, "the random network tells the images apart"
    assert torch.equal(extracted.features, expected)


@pytest.mark.parametrize("mode", MODES)
def test_probabilities_come_from_the_same_network_without_its_output_bias(
    folder: Path, pixels: np.ndarray, mode: str
) -> None:
    weight = torch.load(folder / PORT.name, weights_only=True)["fc.weight"]
    extracted = _build(folder, mode)(pixels)

    def exact(features: Tensor) -> Tensor:
        return (features @ weight.double().T).softmax(dim=1)

    features = extracted.features.double()
    change = sensitivity.of(exact, features, roundings=100)
    assert sensitivity.distance(extracted.probabilities, exact(features)) < change
    if mode == "legacy_tensorflow":
        graph = torch.jit.load(folder / TORCHSCRIPT.name)
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().contiguous()
        assert torch.equal(extracted.probabilities, graph(x, no_output_bias=True))


def test_grey_images_are_seen_as_colour(folder: Path, pixels: np.ndarray) -> None:
    extractor, grey = _build(folder, "legacy_pytorch"), pixels[..., :1]
    assert torch.equal(extractor(grey).features, extractor(grey.repeat(3, axis=3)).features)


@pytest.mark.parametrize("name", ["fid-clean", "fid-released-5k"])
def test_a_protocol_end_to_end(folder: Path, pixels: np.ndarray, tmp_path: Path, name: str) -> None:
    from dataclasses import replace

    protocol = protocols.load(name)
    path = _file(folder, "legacy_pytorch" if name == "fid-released-5k" else "clean")
    small = replace(protocol, reference_samples=len(pixels), weights=str(path), weights_sha256=sha256(path))
    images = ImageSet(pixels, None, "noise", "train", "made up")
    scorer = Scorer(small, images, tmp_path)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    scorer.update(to_pixels(x, protocol.rounding))
    result = scorer.result()
    assert list(result) == list(protocol.metrics)
    scale = scorer._reference.moments.cov.trace().item()
    assert result["fd"] == pytest.approx(0, abs=1e-4 * scale)


@pytest.mark.parametrize("mode", MODES)
def test_other_weights_than_the_pinned_are_refused(folder: Path, mode: str) -> None:
    name = "inception-" + mode.replace("_", "-")
    with pytest.raises(UserError, match=r"has SHA-256 .* not .*get https://"):
        build(name, folder, weights=_file(folder, mode))
    with pytest.raises(UserError, match="has SHA-256"):
        build(name, folder, weights=folder, expected="0" * 64)


@pytest.mark.parametrize("mode", MODES)
def test_missing_weights_name_the_remedy(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "inception-" + mode.replace("_", "-")
    with pytest.raises(UserError, match=r"no weight file .*put .* there"):
        build(name, tmp_path, weights=tmp_path / "nothing.pt")
    monkeypatch.setenv("CDRL_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"no weight file .*put .* there"):
        build(name, tmp_path)


def test_a_failed_download_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.delenv("CDRL_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError, match=r"network is unreachable.*CDRL_WEIGHTS") as caught:
        build("inception-clean", tmp_path)
    assert TORCHSCRIPT.url in str(caught.value)


def test_a_folder_named_by_the_variable_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CDRL_WEIGHTS", str(folder))
    assert TORCHSCRIPT.place(tmp_path) == folder / TORCHSCRIPT.name
    assert TORCHSCRIPT.get(tmp_path, expected=sha256(folder / TORCHSCRIPT.name)) == folder / TORCHSCRIPT.name


def test_pinned_urls_are_clean_fids_own() -> None:
    from cleanfid import downloads_helper, inception_pytorch

    assert downloads_helper.inception_url == TORCHSCRIPT.url
    assert PORT.url == inception_pytorch.FID_WEIGHTS_URL


def test_unknown_extractors_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown feature extractor 'vgg'"):
        build("vgg", tmp_path)
