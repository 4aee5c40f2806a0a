"""Facts about signals from outside: what `encode` takes, and the way from files and back."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import SMALL, build, signals
from hqvae.data import AudioConfig, ImageConfig, MelConfig, WaveConfig, open_data
from hqvae.model import HQVAE, HQVAEConfig, LevelConfig
from hqvae.nets import WaveConvConfig
from hqvae.tiling import encode_chunked, encode_padded

LEVELS = (LevelConfig(stride=4, codebook_size=8, dim=4),)
RATE = 8000


def image_model(channels=3, size=16):
    config = HQVAEConfig(levels=LEVELS, net=SMALL, channels=channels)
    return HQVAE(config, data=ImageConfig(source="pictures", size=size)).eval()


def sound_model(frontend=WaveConfig(), rate=RATE):
    mel = isinstance(frontend, MelConfig)
    nets = {"net": SMALL, "axes": 2} if mel else {"net": WaveConvConfig(widths=(8,)), "axes": 1}
    data = AudioConfig(source="speech", rate=rate, frontend=frontend)
    return HQVAE(HQVAEConfig(levels=LEVELS, channels=1, **nets), data=data).eval()


def picture(width=40, height=24):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def same(codes, other):
    return all(torch.equal(a, b) for a, b in zip(codes, other, strict=True))


# ------------------------------------------------------------------------------------- encode


def test_uint8_pictures_and_arrays_have_the_codes_of_their_floats():
    model = build("ema", "one").eval()
    stored = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    codes = model.encode(stored / 127.5 - 1)
    assert same(codes, model.encode(stored))
    assert same(codes, model.encode(stored.numpy()))
    assert same(codes, model.encode((stored / 127.5 - 1).double()))
    assert same(codes, model.encode((stored / 127.5 - 1).numpy().astype(np.float64)))


def test_int16_sounds_have_the_codes_of_their_floats():
    model = sound_model()
    stored = torch.randint(-32768, 32768, (2, 1, 64), dtype=torch.int16)
    assert same(model.encode(stored), model.encode(stored / 32768))


def test_padded_and_chunked_signals_may_be_stored_ones_too():
    model = sound_model()
    stored = torch.randint(-32768, 32768, (1, 1, 64), dtype=torch.int16)
    codes = model.encode(stored)
    assert same(codes, encode_padded(model, stored.numpy(), [64]))
    assert same(codes, encode_chunked(model, stored.numpy(), 16))
    for encode in (encode_padded, encode_chunked):
        with pytest.raises(ValueError, match="values from 2 to 2"):
            encode(model, torch.full((1, 1, 64), 2.0), [64] if encode is encode_padded else 16)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (
            torch.full((1, 3, 16, 16), 255.0),
            r"values from 255 to 255; expected floats in \[−1, 1\]",
        ),
        (torch.full((1, 3, 16, 16), -2.1), "values from -2.1"),
        (torch.full((1, 3, 16, 16), float("nan")), "values from nan to nan"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.int64), "of type torch.int64; expected floats"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.int16), "of type torch.int16; expected floats"),
        (np.zeros((1, 3, 16, 16), bool), "of type bool; expected floats"),
        ([[0.5]], "of type list; expected floats"),
        (torch.zeros(1, 16, 16, 3, dtype=torch.uint8), r"shape \[1, 16, 16, 3\]"),
    ],
)
def test_other_values_and_types_are_refused_in_a_sentence(x, said):
    with pytest.raises(ValueError, match=said) as error:
        build("ema", "one").eval().encode(x)
    assert "\n" not in str(error.value)


def test_a_little_overshoot_of_interpolation_is_no_other_range():
    model = build("ema", "one").eval()
    model.encode(signals() * 1.005)
    assert [c.shape[0] for c in model.encode(signals()[:0])] == [0]


def test_an_empty_batch_goes_there_and_back():
    model = build("ema", "one").eval()
    assert model.decode(model.encode(signals()[:0])).shape == (0, 3, 16, 16)
    with pytest.raises(ValueError, match=r"shape \[1, 3, 0, 16\]; expected at least one point"):
        model.encode(torch.zeros(1, 3, 0, 16))


def test_what_follows_a_signal_in_a_padded_batch_does_not_matter():
    model = sound_model()
    x = torch.rand(2, 1, 64)
    codes = encode_padded(model, x, [64, 20])
    x[1, :, 20:] = torch.nan
    assert same(codes, encode_padded(model, x, [64, 20]))


# -------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_becomes_the_signal_that_evaluation_sees(channels, tmp_path):
    for number in range(12):
        picture(40 + number).save(tmp_path / f"{number:02d}.png")
    model = image_model(channels)
    _, splits = open_data(replace(model.data, source=str(tmp_path)), channels)
    for key, x in (splits["test"].load(i) for i in range(len(splits["test"]))):
        assert torch.equal(model.preprocess(tmp_path / key)[0], x)
        assert torch.equal(model.preprocess((tmp_path / key).read_bytes())[0], x)
    key, x = splits["test"].read(0)
    assert torch.equal(model.preprocess(str(tmp_path / key), whole=True)[0], x)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_comes_back_as_it_was(channels, tmp_path):
    original = picture().convert("RGB" if channels == 3 else "L")
    original.save(tmp_path / "a.png")
    model = image_model(channels)
    (again,) = model.postprocess(model.preprocess(tmp_path / "a.png", whole=True))
    assert again.mode == original.mode and again.tobytes() == original.tobytes()


@pytest.mark.parametrize(
    "frontend", [WaveConfig(), MelConfig(n_fft=256, hop=64, mels=16, high=4000)]
)
def test_a_sound_is_resampled_and_comes_back_at_the_models_rate(frontend, tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
    pytest.importorskip("soxr", reason="soxr is not installed")
    time = np.arange(2 * 44_100) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "a.wav", np.stack([tone, tone], 1), 44_100)
    model = sound_model(frontend)
    x = model.preprocess(tmp_path / "a.wav")
    assert x.shape[1:] == model.data.frontend.build(RATE).shape(2 * RATE)
    (sound,) = model.postprocess(x)
    assert sound.dtype == np.float32 and len(sound) == 2 * RATE
    spectrum = np.abs(np.fft.rfft(sound))
    assert abs(spectrum.argmax() / 2 - 440) < 30  # two seconds: half a hertz each
    if isinstance(frontend, WaveConfig):
        middle = slice(RATE // 2, RATE)
        expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)
        assert np.abs(sound[middle] - expected[middle]).max() < 1e-3


def test_what_cannot_be_prepared_is_said(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    picture(8, 8).save(tmp_path / "small.png")
    model = image_model()
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        model.preprocess(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"text\.png cannot be used: cannot identify"):
        model.preprocess(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"small\.png cannot be used: it has 8×8.*whole=True"):
        model.preprocess(tmp_path / "small.png")
    assert model.preprocess(tmp_path / "small.png", whole=True).shape == (1, 3, 8, 8)
    (tmp_path / "cut.png").write_bytes((tmp_path / "small.png").read_bytes()[:100])
    for file in (tmp_path / "cut.png", (tmp_path / "cut.png").read_bytes()):
        with pytest.raises(ValueError, match="cannot be used"):
            model.preprocess(file, whole=True)
    with pytest.raises(ValueError, match=r"bytes of a file, or a picture of .*, not Tensor"):
        model.preprocess(torch.zeros(1, 3, 8, 8))
    for question in (model.preprocess, model.postprocess):
        model.data = None
        with pytest.raises(ValueError, match="does not know what its signals are; expected model"):
            question(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("x_hat", "said"),
    [
        (torch.zeros(3, 8, 8), r"shape \[3, 8, 8\]; expected a tensor \[B, 3, H, W\]"),
        (torch.zeros(1, 1, 8, 8), r"shape \[1, 1, 8, 8\]"),
        ((torch.zeros(1, 3, 8, 8),), "type tuple"),
    ],
)
def test_what_is_no_batch_of_signals_makes_no_pictures(x_hat, said):
    with pytest.raises(ValueError, match=said):
        image_model().postprocess(x_hat)


# ----------------------------------------------------------------------------------- on disk


def test_a_saved_model_knows_its_signals_and_not_where_they_lay(tmp_path):
    model = sound_model(MelConfig(mels=20), rate=16_000)
    model.save_pretrained(tmp_path)
    assert "speech" not in (tmp_path / "config.json").read_text()
    data = HQVAE.from_pretrained(tmp_path).data
    assert data == replace(model.data, source="photos")
    HQVAE(model.config).save_pretrained(tmp_path)
    assert HQVAE.from_pretrained(tmp_path).data is None


@pytest.mark.parametrize("damage", [5, [], {"kind": "video"}, {"kind": "images", "size": -1}])
def test_a_description_of_signals_that_is_none_is_refused(damage, tmp_path):
    image_model().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**saved, "data": damage}))
    with pytest.raises(ValueError, match=r"config\.json: its data are no description") as error:
        HQVAE.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_bytes_in_memory_serve_as_a_file():
    file = io.BytesIO()
    picture().save(file, "png")
    model = image_model()
    assert torch.equal(model.preprocess(file), model.preprocess(file.getvalue()))
