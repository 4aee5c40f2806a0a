"""LPIPS and rFID by what is known of their networks and formulas; nothing is downloaded."""

import pytest
import torch
from torch import nn

from hqvae.errors import InputError
from hqvae.metrics.inception import InceptionV3
from hqvae.metrics.perceptual import INCEPTION_WEIGHTS, VGG_WEIGHTS, Lpips, Perceptual
from hqvae.metrics.vgg import Vgg16


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_networks_are_the_published_ones():
    """Weights counted in the literature: VGG-16's convolutions, Inception-v3's features."""
    with torch.device("meta"):
        vgg, inception = Vgg16(), InceptionV3()
        assert count(vgg) == 14_714_688 and count(inception) == 21_785_568
        convolutions = [
            int(name.split(".")[1]) for name in vgg.state_dict() if name.endswith("weight")
        ]
        assert convolutions == [
            0,
            2,
            5,
            7,
            10,
            12,
            14,
            17,
            19,
            21,
            24,
            26,
            28,
        ]  # torchvision's places
        assert [tuple(f.shape[1:]) for f in vgg(torch.zeros(1, 3, 64, 64))] == [
            (64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8), (512, 4, 4)]  # fmt: skip
        assert inception(torch.zeros(2, 3, 32, 32)).shape == (2, 2048)
        names = set(inception.state_dict())
    assert {
        "Conv2d_1a_3x3.conv.weight",
        "Mixed_6b.branch7x7dbl_5.bn.running_var",
        "Mixed_7c.branch3x3dbl_3b.conv.weight",
    } <= names


def test_sides_inside_inception_are_the_published_ones():
    with torch.device("meta"):
        net, x, sides = InceptionV3(), torch.zeros(1, 3, 299, 299), {}
        for name, step in net.named_children():
            x = step(x)
            sides[name] = tuple(x.shape[1:])
    assert (
        sides["pool2"] == (192, 35, 35)
        and sides["Mixed_5d"] == (288, 35, 35)
        and sides["Mixed_6e"] == (768, 17, 17)
    )
    assert sides["Mixed_7a"] == (1280, 8, 8) and sides["Mixed_7c"] == (2048, 8, 8)


def test_lpips_is_the_formula():
    torch.manual_seed(0)
    lpips = Lpips()
    nn.init.uniform_(lpips.channel_weights[2])
    x, y = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    expected = torch.zeros(2)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x_, y_ = ((s - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for s in (x, y))
    for weights, one, other in zip(lpips.channel_weights, lpips.net(x_), lpips.net(y_)):
        for b in range(2):
            for h in range(one.shape[2]):
                for w in range(one.shape[3]):
                    p, q = one[b, :, h, w], other[b, :, h, w]
                    apart = (p / p.norm().clamp(min=1e-4) - q / q.norm().clamp(min=1e-4)).square()
                    expected[b] += (weights.flatten() * apart).sum() / (one.shape[2] * one.shape[3])
    assert torch.allclose(lpips(x, y), expected, rtol=1e-3)
    assert torch.equal(lpips(x, x), torch.zeros(2)) and torch.allclose(lpips(x, y), lpips(y, x))


def test_an_empty_cache_measures_nothing(tmp_path):
    perceptual = Perceptual.from_cache(folder=tmp_path)
    perceptual.add(torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 32, 32))
    assert perceptual.values() == {}


@pytest.mark.parametrize("name", [VGG_WEIGHTS, INCEPTION_WEIGHTS])
def test_weights_that_cannot_be_read_are_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"half a file")
    with pytest.raises(InputError, match=f"weights '.*{name}' cannot be read"):
        Perceptual.from_cache(folder=tmp_path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of the right layout and random content, the classifiers among them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hub")
    torch.save(
        {**Vgg16().state_dict(), "classifier.0.weight": torch.zeros(2)}, folder / VGG_WEIGHTS
    )
    torch.save(
        {**InceptionV3().state_dict(), "fc.weight": torch.zeros(2)}, folder / INCEPTION_WEIGHTS
    )
    return folder


def colour(images):
    return images.expand(-1, 3, -1, -1)


class SmallFeatures(nn.Module):
    """Stands for Inception, whose 2,048 features make a square root of 2,048² entries."""

    num_features = 4

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x, 2)[:, 0].flatten(1)


def test_weights_in_the_cache_are_those_of_the_networks(weights):
    perceptual = Perceptual.from_cache(folder=weights)
    for module, name in (
        (perceptual.lpips.net, VGG_WEIGHTS),
        (perceptual.frechet.inception, INCEPTION_WEIGHTS),
    ):
        saved = torch.load(weights / name, weights_only=True)
        loaded = module.state_dict()
        assert saved.keys() > loaded.keys()
        assert all(torch.equal(values, saved[name]) for name, values in loaded.items())


def test_both_figures_are_their_formulas_over_all_batches(weights):
    torch.manual_seed(1)
    x = torch.rand(6, 1, 32, 32) * 2 - 1  # grey
    noisy = (x + torch.randn_like(x)).clamp(-1, 1)
    perceptual = Perceptual(Perceptual.from_cache(folder=weights).lpips, SmallFeatures())
    for batch in (slice(0, 4), slice(4, 6)):
        perceptual.add(x[batch], noisy[batch])
    figures = perceptual.values()
    expected = float(perceptual.lpips(colour(x), colour(noisy)).mean())
    assert figures["lpips"] == pytest.approx(expected)

    features, features_hat = (SmallFeatures()(colour(images)).double() for images in (x, noisy))
    covariance, covariance_hat = features.T.cov(), features_hat.T.cov()
    root = torch.linalg.eigvals(covariance @ covariance_hat).sqrt().real.sum()
    frechet = (features.mean(0) - features_hat.mean(0)).square().sum()
    frechet += covariance.trace() + covariance_hat.trace() - 2 * root
    assert figures["rfid"] == pytest.approx(float(frechet), rel=1e-2, abs=1e-6)


def test_what_is_equal_has_no_distance(weights):
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    perceptual = Perceptual(Perceptual.from_cache(folder=weights).lpips, SmallFeatures())
    perceptual.add(x, x.clone())
    figures = perceptual.values()
    assert figures["lpips"] == 0 and figures["rfid"] == pytest.approx(0, abs=1e-4)


def test_one_image_has_no_frechet_distance():
    perceptual = Perceptual(None, SmallFeatures())
    perceptual.add(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16))
    assert perceptual.values() == {}
    perceptual.add(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16))
    assert perceptual.values()["rfid"] > 0


def test_a_report_has_the_figures_whose_weights_are_at_hand(weights, tmp_path, monkeypatch):
    import json

    import numpy as np

    from hqvae.cli import main

    np.savez(
        tmp_path / "toy.npz",
        x_train=np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8),
        x_test=np.zeros((4, 16, 16, 3), np.uint8),
    )
    settings = [
        "model.net.widths=[8]",
        "model.net.blocks=0",
        "train.steps=1",
        "train.batch_size=4",
        "train.precision=32-true",
    ]
    assert (
        main(
            [
                "train",
                "vqvae",
                "--data",
                str(tmp_path / "toy.npz"),
                "--out",
                str(tmp_path / "run"),
                *settings,
            ]
        )
        == 0
    )
    found = []
    for home in (tmp_path / "nothing", weights.parent):
        monkeypatch.setattr(torch.hub, "get_dir", lambda home=home: str(home))
        if home == weights.parent:
            (home / "checkpoints").symlink_to(weights)
        assert main(["evaluate", str(tmp_path / "run"), "--accelerator", "cpu"]) == 0
        measures = json.loads((tmp_path / "run" / "report" / "report.json").read_text())["measures"]
        found.append((measures.get("lpips"), measures.get("rfid")))
    assert found[0] == (None, None) and found[1][0] > 0 and found[1][1] >= 0
