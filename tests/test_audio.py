"""Audio: any rate, channels and length in, segments out; what is broken is named."""

import json
import math
import os

import numpy as np
import pytest
import soundfile
import torch

from hqvae.cli import main
from hqvae.data import (
    AudioConfig,
    BrokenItem,
    MelConfig,
    ShuffledBatches,
    WaveConfig,
    examples_for_figure,
    open_data,
    sequential_batches,
    training_batches,
)
from hqvae.errors import InputError
from hqvae.model import HQVAE
from hqvae.overrides import override
from hqvae.presets import PRESETS, preset

RATE = 8000
WAVE = {"rate": RATE, "seconds": 0.1, "frontend": WaveConfig()}  # segments of 800 samples


def tone(seconds=0.25, hertz=440.0, rate=RATE, loud=0.5):
    return loud * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write(path, samples, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)


def opened(folder, channels=1, axes=1, wanted=("train",), **config):
    return open_data(
        AudioConfig(source=str(folder), **{**WAVE, "validation": 0.01, "test": 0.01, **config}),
        channels,
        wanted,
        axes,
    )[1]


def one(folder, **config):
    """All segments of `folder/train`, in order."""
    dataset = opened(folder, **config)["train"]
    return dataset.signal(torch.cat(list(sequential_batches(dataset, 64))))[:, 0]


@pytest.fixture
def folder(tmp_path):
    """Splits of their own, so that none is cut off."""
    for split in ("test", "validation"):
        write(tmp_path / split / "other.wav", tone())
    return tmp_path


@pytest.mark.parametrize("name", ["wav", "flac", "ogg", "mp3"])
def test_every_kind_of_file_is_read(name, folder):
    write(folder / "train" / f"a.{name}", tone(0.4))
    found = one(folder)
    assert found.shape == (4, 800)
    assert (found.square().mean(1).sqrt()[:3] - 0.5 / np.sqrt(2)).abs().max() < 0.02


@pytest.mark.parametrize("rate", [4000, 11025, 16000, 44100])
def test_any_rate_becomes_the_one_that_is_asked_for(rate, folder):
    write(folder / "train" / "a.wav", tone(0.3, rate=rate), rate, subtype="FLOAT")
    found = one(folder).flatten()
    expected = torch.from_numpy(tone(0.3))
    assert len(found) == 2400 and (found - expected)[200:-200].abs().max() < 5e-3


def test_channels_are_averaged(folder):
    write(
        folder / "train" / "a.wav", np.stack([tone(0.1), -tone(0.1), tone(0.1)], 1), subtype="FLOAT"
    )
    assert torch.allclose(one(folder)[0], torch.from_numpy(tone(0.1)).float() / 3, atol=1e-4)


def test_segments_tile_a_file_and_the_last_ends_with_it(folder):
    ramp = np.arange(2100) / 4000
    write(folder / "train" / "a.wav", ramp, subtype="FLOAT")
    found = one(folder) * 4000
    assert [round(float(tile[0])) for tile in found] == [0, 800, 1300] and round(
        float(found[2, -1])
    ) == 2099


def test_short_files_are_followed_by_silence(folder):
    write(folder / "train" / "a.wav", np.full(8, 0.5), subtype="FLOAT")
    found = one(folder)
    assert found.shape == (1, 800) and (found[0, :8] == 0.5).all() and not found[0, 8:].any()


def test_training_segments_begin_anywhere(folder):
    write(folder / "train" / "a.wav", np.arange(8000) / 10000, subtype="FLOAT")
    dataset = opened(folder)["train"]
    batches = training_batches(dataset, ShuffledBatches(len(dataset), 5, 0), 0, 40, [slice(0, 5)])
    starts = torch.cat([batch[:, 0, 0] for batch in batches]).float() / 32768 * 10000
    assert starts.min() < 400 and starts.max() > 6800 and len(starts.round().unique()) > 150


def test_loudness_is_brought_to_the_level_asked_for(folder):
    write(folder / "train" / "a.wav", tone(0.1, loud=0.01), subtype="FLOAT")
    assert one(folder, loudness=-20.0).square().mean().sqrt() == pytest.approx(0.1, rel=0.01)
    assert one(folder).square().mean().sqrt() == pytest.approx(0.01 / np.sqrt(2), rel=0.01)


def test_odd_samples_are_a_documented_result(folder):
    """Silence stays, also under a loudness; beyond full scale is clipped; a constant stays."""
    write(folder / "train" / "a.wav", np.zeros(800), subtype="FLOAT")
    assert not one(folder, loudness=-20.0).any()
    write(folder / "train" / "a.wav", np.full(800, 3.0), subtype="FLOAT")
    assert (one(folder) > 0.9999).all()


def test_broken_files_are_counted_named_and_left_out(folder, caplog):
    write(folder / "train" / "good.wav", tone())
    (folder / "train" / "text.wav").write_text("this is no sound")
    write(folder / "train" / "nan.wav", np.append(np.zeros(80), np.nan), subtype="FLOAT")
    write(folder / "train" / "empty.wav", np.zeros(0))
    (folder / "train" / "torn.flac").write_bytes(b"fLaC\0\0\0\x22torn")
    dataset = opened(folder)["train"]
    assert len(torch.cat(list(sequential_batches(dataset, 64)))) == 3
    (message,) = caplog.messages
    assert message.startswith("4 of 5 audio files are broken and left out")
    reasons = dict(dataset.left_out())
    assert reasons.keys() == {
        f"train/{name}" for name in ("text.wav", "nan.wav", "empty.wav", "torn.flac")
    }
    assert (
        reasons["train/nan.wav"] == "it holds samples that are not finite"
        and reasons["train/nan.wav"] in message
    )
    assert (
        reasons["train/empty.wav"] == "it holds no sample" and reasons["train/empty.wav"] in message
    )


def test_uncached_files_are_the_same(folder):
    for number in range(3):
        write(
            folder / "train" / f"{number}.wav",
            tone(0.2 + 0.05 * number, 300 + 100 * number, rate=16000),
            16000,
        )
    kept, again = opened(folder)["train"], opened(folder, cache_mb=0, workers=0)["train"]
    assert kept.in_memory and not again.in_memory and len(again) == len(kept)
    for one_batch, other in zip(sequential_batches(kept, 4), sequential_batches(again, 4)):
        assert torch.equal(one_batch, other)


@pytest.mark.parametrize("name", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100])
def test_a_training_segment_of_a_file_that_is_not_kept_is_read_alone_and_the_same(
    name, rate, folder, monkeypatch
):
    generator = np.random.default_rng(0)
    for number in range(2):
        sound = 0.3 * tone(
            3.0 + number, 300 + 200 * number, rate=rate
        ) + 0.05 * generator.standard_normal(round((3.0 + number) * rate))
        write(folder / "train" / f"{number}.{name}", sound, rate)
    kept, alone = opened(folder)["train"], opened(folder, cache_mb=0, workers=0)["train"]
    read = []
    read_frames = soundfile.SoundFile.read

    def noted(self, *args, **more):
        found = read_frames(self, *args, **more)
        read.append(len(found))
        return found

    monkeypatch.setattr(soundfile.SoundFile, "read", noted)
    order = ShuffledBatches(len(kept), 6, 0)
    for step in range(4):
        one, other = (dataset.training_batch(*order.at(step)).int() for dataset in (kept, alone))
        assert (one - other).abs().max() <= 2 and one.abs().max() > 3000
    if name != "ogg":  # whose decoder needs a run-up that is longer than these files
        assert min(read) > 0 and max(read) < 0.25 * rate


@pytest.mark.parametrize(("there", "here"), [(400, 16000), (96000, 400), (44100, 1000)])
def test_segments_read_alone_are_the_same_at_far_rates(there, here, folder):
    write(
        folder / "train" / "a.wav", 0.3 * np.random.default_rng(0).standard_normal(8 * there), there
    )
    wave = {"rate": here, "seconds": 0.5}
    kept, alone = (
        opened(folder, **wave)["train"],
        opened(folder, cache_mb=0, workers=0, **wave)["train"],
    )
    order = ShuffledBatches(len(kept), 6, 0)
    for step in range(3):
        one, other = (dataset.training_batch(*order.at(step)).int() for dataset in (kept, alone))
        assert (one - other).abs().max() <= 2


def torn(folder, suffix, seconds):
    """A file cut in its middle, and a whole one of a second."""
    generator = np.random.default_rng(0)
    write(folder / "train" / f"0.{suffix}", generator.uniform(-0.5, 0.5, round(seconds * RATE)))
    write(folder / "train" / "1.flac", generator.uniform(-0.5, 0.5, RATE))
    whole = (folder / "train" / f"0.{suffix}").read_bytes()
    (folder / "train" / f"0.{suffix}").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
@pytest.mark.parametrize("cache_mb", [0, 16])
def test_a_torn_file_gives_no_silent_segments_in_training(cache_mb, suffix, folder):
    dataset = opened(torn(folder, suffix, 5), cache_mb=cache_mb, workers=0)["train"]
    augment_noise = np.random.default_rng(2).random((16, 2))
    batch = dataset.training_batch(np.zeros(16, int), augment_noise).float()
    assert batch.square().mean((1, 2)).sqrt().min() > 3000


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
@pytest.mark.parametrize("limit", [None, 9])
def test_of_a_torn_file_only_real_samples_count(limit, suffix, folder, caplog):
    """In memory or not: what can be read is used, its segments are counted, the file is named."""
    torn(folder, suffix, 5)
    kept, read = opened(folder)["train"], opened(folder, cache_mb=0)["train"]
    assert len(kept) == len(read) == -(-kept.lengths[0] // 800) + 10
    assert 2 * RATE < kept.lengths[0] == read.lengths[0] < 3 * RATE
    batches = [torch.cat(list(sequential_batches(dataset, 7, limit))) for dataset in (kept, read)]
    assert torch.equal(*batches) and len(batches[0]) == (limit or len(kept))
    assert batches[0].float().square().mean((1, 2)).sqrt().min() > 3000
    assert kept.left_out() == read.left_out() and not kept.broken and not read.broken
    ((key, reason),) = kept.left_out()
    assert key == f"train/0.{suffix}" and "in use, but it ends after 2." in reason
    first, second = caplog.messages
    assert first == second and "and its header says 5 s" in first
    assert first.startswith(f"1 of 2 audio files are used in part or clipped: {key}")
    assert kept.load(len(kept) - 10)[0] == "train/1.flac@0"


@pytest.mark.parametrize("limit", [None, 3])
def test_evaluation_leaves_out_the_same_files_in_memory_or_not(limit, folder):
    for number in range(3):
        write(folder / "train" / f"{number}.wav", tone(0.3, 300 + 100 * number))
    write(
        folder / "train" / "1.wav", np.where(np.arange(2400) == 1000, np.nan, 0.1), subtype="FLOAT"
    )
    (folder / "train" / "text.wav").write_text("this is no sound")
    kept, read = opened(folder)["train"], opened(folder, cache_mb=0)["train"]
    batches = [torch.cat(list(sequential_batches(dataset, 2, limit))) for dataset in (kept, read)]
    assert torch.equal(*batches) and len(batches[0]) == (2 if limit else 6)
    assert kept.broken == read.broken and kept.broken.keys() == {"train/1.wav", "train/text.wav"}
    assert len(examples_for_figure(read, 3)) == 3


def test_a_file_that_breaks_later_leaves_its_place_to_the_next(folder, caplog):
    for number in range(2):
        write(folder / "train" / f"{number}.wav", tone(0.5, 300 + 200 * number))
    dataset = opened(folder, cache_mb=0, workers=0)["train"]
    (folder / "train" / "0.wav").write_text("gone")
    batch = dataset.training_batch(np.arange(len(dataset)), np.zeros((len(dataset), 2)))
    assert batch.abs().amax((1, 2)).min() > 10000 and "0.wav cannot be used" in caplog.text
    assert len(caplog.messages) == 1


# ------------------------------------------------------------------------------------ exact reading


@pytest.mark.parametrize("cache_mb", [0, 16])
def test_a_file_is_read_whole(cache_mb, folder):
    write(folder / "train" / "a.wav", np.arange(2100) / 4000, subtype="FLOAT")
    dataset = opened(folder, cache_mb=cache_mb)["train"]
    key, signal = dataset.read(0)
    assert key == "train/a.wav" and signal.shape == (1, 2100)
    torch.testing.assert_close(signal[0], torch.arange(2100) / 4000, atol=2e-5, rtol=0)
    examples = [dataset.load(i) for i in range(len(dataset))]
    assert [key for key, _ in examples] == ["train/a.wav@0", "train/a.wav@800", "train/a.wav@1300"]
    assert torch.equal(examples[1][1], signal[:, 800:1600])


def test_a_spectrum_is_that_of_the_whole_file(folder):
    """Its last frame is filled up with silence, and a file shorter than a window likewise."""
    write(folder / "train" / "a.wav", tone(0.3), subtype="FLOAT")
    write(folder / "train" / "b.wav", np.full(10, 0.1), subtype="FLOAT")
    mel = MelConfig(n_fft=256, hop=64, mels=10, high=4000)
    dataset = opened(folder, axes=2, frontend=mel)["train"]
    (_, long), (_, short) = dataset.read(0), dataset.read(1)
    assert long.shape == (1, 10, 38) and short.shape == (1, 10, 3)  # 2400 = 37.5 hops, 129 samples
    torch.testing.assert_close(long[..., :9], dataset.load(0)[1][..., :9])


def test_a_broken_file_is_an_error_with_its_name_and_reason(folder):
    write(folder / "train" / "good.wav", tone())
    write(folder / "train" / "nan.wav", np.append(np.zeros(80), np.nan), subtype="FLOAT")
    (folder / "train" / "text.wav").write_text("this is no sound")
    for cache_mb in (0, 16):
        dataset = opened(folder, cache_mb=cache_mb)["train"]
        with pytest.raises(BrokenItem, match=r"nan\.wav \(it holds samples that are not finite"):
            dataset.read(1)
        with pytest.raises(BrokenItem, match=r"text\.wav"):
            dataset.read(2)


def test_a_spectrum_is_heard_again(folder):
    write(folder / "train" / "a.wav", tone(0.3))
    dataset = opened(folder)["train"]
    signal = dataset.load(0)[1][None]
    assert dataset.sample_rate == RATE and torch.equal(dataset.waveform(signal), signal)


# ------------------------------------------------------------------------------------------ sources


def listed(folder, *rows, head="file_name,split,class"):
    for name in ("a", "b", "c", "deep/d", "e"):
        write(folder / f"{name}.wav", tone(0.2, loud=0.1 + 0.1 * "abcde".index(name[-1])))
    (folder / "metadata.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder


def test_a_table_beside_the_files_gives_their_splits(tmp_path):
    """Files that it does not list are left out; names of splits may be any of the usual ones."""
    listed(
        tmp_path,
        "a.wav,train,x",
        "deep/d.wav,Training,x",
        "b.wav,val,x",
        "c.wav,test,x",
        "gone.wav,test,x",
    )
    splits = opened(tmp_path, wanted=("train", "validation", "test"))
    assert {name: list(dataset.keys) for name, dataset in splits.items()} == {
        "train": ["a.wav", "deep/d.wav"],
        "validation": ["b.wav"],
        "test": ["c.wav"],
    }


def test_a_table_without_splits_is_no_matter(tmp_path):
    listed(tmp_path, "a.wav,dog", head="file_name,class")
    assert len(opened(tmp_path)["train"].keys) == 3  # one each is cut off for the other splits


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a.wav,trian", "a.wav has split 'trian'; did you mean 'train'"),
        ("z.wav,test", "none of the 1 files"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(row, words, tmp_path):
    listed(tmp_path, row, head="file_name,split")
    with pytest.raises(InputError, match=words):
        opened(tmp_path)


def test_audio_in_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    write(tmp_path / "a.wav", tone())
    cell = {"bytes": (tmp_path / "a.wav").read_bytes(), "path": "a.wav"}
    for split in ("train", "test", "validation"):
        parquet.write_table(pa.table({"audio": [cell, cell]}), tmp_path / f"{split}.parquet")
    dataset = opened(tmp_path)["train"]
    assert len(dataset.keys) == 2 and not dataset.left_out() and len(dataset) == 6


# -------------------------------------------------------------------------------------- the command


REFUSED = {
    "a model of images": (["model.channels=3"], "model.channels=3: audio files have 1 (mono)"),
    "a model of another number of axes": (
        ["model.axes=1"],
        "model.axes=1: segments with data.frontend.kind=mel have 2",
    ),
    "a segment shorter than a window": (["data.seconds=0.01"], "data.seconds=0.01 is too short"),
    "bands above half the rate": (["data.rate=8000"], "expected low < high ≤ data.rate/2 = 4000"),
    "more bands than bins": (["data.frontend.mels=400"], "bands hold no bin of n_fft=1024"),
    "a size": (["data.size=32"], "data.size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_with_audio_is_refused(case, folder, capsys):
    settings, words = REFUSED[case]
    write(folder / "train" / "a.wav", tone())
    assert (
        main(["train", "sqvae-mel", *settings, "--data", str(folder), "--out", str(folder / "run")])
        == 2
    )
    assert words in capsys.readouterr().err and not (folder / "run").exists()


def test_images_and_audio_are_not_taken_for_each_other(folder, capsys):
    for name, words in (
        ("sqvae", "holds no image (looked for"),
        ("sqvae-mel", "data 'photos' holds images, and this preset is for audio files"),
    ):
        data = str(folder) if name == "sqvae" else "photos"
        assert main(["train", name, "--data", data, "--out", str(folder / "run")]) == 2
        assert words in capsys.readouterr().err


MEL = [
    name
    for name, config in PRESETS.items()
    if config.data.kind == "audio" and config.model.axes == 2
]


@pytest.mark.parametrize("name", MEL)
def test_train_evaluate_and_resume_from_the_command(name, folder, capsys):
    write(folder / "train" / "a.wav", tone(1.5, rate=22050), 22050)
    write(folder / "test" / "b.wav", tone(0.7, rate=22050), 22050)
    settings = [
        "model.net.widths=[8]",
        "data.seconds=0.4",
        "train.batch_size=2",
        "train.steps=4",
        "train.log_every=2",
        "data.frontend.mels=20",
    ]
    run = folder / "run"
    words = [
        "train",
        name,
        "--data",
        str(folder),
        "--out",
        str(run),
        "--accelerator",
        "cpu",
        *settings,
    ]
    assert main(words) == 0 and main([*words, "--resume"]) == 0
    assert main(["evaluate", str(run), "--accelerator", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "RMSE (log-mel)" in shown and "rate bits/s" in shown and "segments, test split" in shown
    measures = json.loads((run / "report" / "report.json").read_text())["measures"]
    config = override(preset(name), settings).model
    layers, frames = config.levels[0].layers, int(0.4 * 22050) // 256
    codes = layers * (20 // 4) * math.ceil(frames / 4)
    assert measures["bits_per_second"] == pytest.approx(
        codes * math.log2(config.levels[0].codebook_size) / (frames * 256 / 22050)
    )
    sounds = sorted(path.name for path in (run / "report" / "audio").iterdir())
    assert (
        sum(path.startswith("0-") for path in sounds) == layers + 1 and "0-original.wav" in sounds
    )
    samples, rate = soundfile.read(run / "report" / "audio" / "0-original.wav")
    assert (
        rate == 22050
        and len(samples) == int(0.4 * 22050) // 256 * 256
        and np.abs(samples).max() > 0.1
    )
    assert (run / "report" / "reconstructions.png").stat().st_size > 1000
    assert main(["doctor", str(run), "--accelerator", "cpu"]) == 0
    assert "segments of audio at" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--size", "9", "--accelerator", "cpu"]) == 2
    assert "is of audio files, which have none" in capsys.readouterr().err


def test_the_mel_presets_have_the_papers_latent():
    with torch.device("meta"):
        for name in MEL:
            model = HQVAE(preset(name).model)
            assert {tuple(h.shape[2:]) for h in model.features(torch.zeros(1, 1, 80, 344))} == {
                (20, 86)
            }


def test_without_the_extra_the_way_out_is_named(folder, monkeypatch):
    import sys

    write(folder / "train" / "a.wav", tone())
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(InputError, match=r"pip install 'hqvae\[audio\]'"):
        opened(folder)


# --------------------------------------------------------------------- files that are used in part


def test_what_is_clipped_is_said_in_one_line_and_another_scale_is_left_out(folder, caplog):
    write(folder / "train" / "good.wav", tone())
    write(folder / "train" / "loud.wav", 4 * tone(), subtype="FLOAT")
    write(folder / "train" / "range.wav", 32768 * tone(), subtype="FLOAT")
    dataset = opened(folder)["train"]
    broken, clipped = caplog.messages
    assert broken.startswith("1 of 3 audio files are broken and left out: train/range.wav (its sam")
    assert clipped.startswith("1 of 3 audio files are used in part or clipped: train/loud.wav (0.6")
    assert [key for key, _ in dataset.left_out()] == ["train/loud.wav", "train/range.wav"]
    caplog.clear()
    again = opened(folder, cache_mb=0, workers=0)["train"]
    batches = [torch.cat(list(sequential_batches(split, 4))) for split in (dataset, again)]
    assert torch.equal(*batches) and again.left_out() == dataset.left_out()
    assert sum("loud.wav" in line for line in caplog.messages) == 1
    assert len(opened(folder, loudness=-20.0)["train"].left_out()) == 0


@pytest.mark.parametrize("cache_mb", [0, 16])
def test_a_file_without_a_millisecond_is_left_out_by_name(cache_mb, folder, caplog):
    write(folder / "train" / "click.wav", np.array([0.5]))
    with pytest.raises(InputError, match="none of the 1 audio files"):
        opened(folder, cache_mb=cache_mb)
    write(folder / "train" / "good.wav", tone(0.1))
    dataset = opened(folder, cache_mb=cache_mb)["train"]
    assert len(dataset) == 1 and dataset.broken.keys() == {"train/click.wav"}
    assert "click.wav (it lasts 0.12 ms; the shortest that counts is 1 ms)" in caplog.text


@pytest.mark.parametrize("cache_mb", [0, 16])
def test_names_that_are_not_utf8_are_read_and_named(cache_mb, folder, caplog):
    write(folder / "train" / "a.wav", tone(0.2))
    train = os.fsencode(folder / "train")
    try:
        os.rename(train + b"/a.wav", train + b"/caf\xe9.wav")
    except OSError:
        pytest.skip("this file system takes no such names")
    with open(train + b"/text\xe9.wav", "w") as file:
        file.write("this is no sound")
    dataset = opened(folder, cache_mb=cache_mb)["train"]
    assert len(torch.cat(list(sequential_batches(dataset, 4)))) == 2
    ((key, reason),) = dataset.left_out()
    assert os.fsencode(key) == b"train/text\xe9.wav" and reason == "Format not recognised."


@pytest.mark.parametrize("cache_mb", [0, 16])
def test_telephone_sounds_and_flac_from_a_pipe_are_read(cache_mb, folder):
    write(folder / "train" / "phone.wav", tone(1.0), subtype="GSM610")
    write(folder / "train" / "modem.wav", tone(1.0), subtype="G721_32")
    write(folder / "train" / "pipe.flac", tone(1.0))
    data = bytearray((folder / "train" / "pipe.flac").read_bytes())
    data[21:26] = bytes([data[21] & 0xF0, 0, 0, 0, 0])  # no length
    (folder / "train" / "pipe.flac").write_bytes(data)
    dataset = opened(folder, cache_mb=cache_mb, workers=0)["train"]
    assert len(dataset.keys) == 3 and not dataset.left_out() and dataset.lengths[2] == RATE
    generator = np.random.default_rng(0)
    batch = dataset.training_batch(generator.permutation(len(dataset)), generator.random((31, 2)))
    assert batch.float().square().mean((1, 2)).sqrt().min() > 9000 and not dataset.broken


@pytest.mark.parametrize("name", ["caf", "w64", "aifc", "snd", "rf64", "wave", "oga", "voc", "sph"])
def test_what_libsndfile_reads_is_read_under_its_usual_endings(name, folder):
    formats = {"aifc": "AIFF", "snd": "AU", "wave": "WAV", "oga": "OGG", "sph": "NIST"}
    write(folder / "train" / f"a.{name}", tone(0.4), format=formats.get(name, name.upper()))
    found = one(folder)
    assert found.shape == (4, 800) and (found.square().mean(1).sqrt() - 0.354).abs().max() < 0.02


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rate": 10**12}, "data.rate=1000000000000"),
        ({"seconds": 1e12}, "data.seconds=1e+12: expected at most 3600"),
        ({"seconds": 3600, "rate": 10**6}, "data.seconds=3600 is too long: 3,600,000,000 samples"),
        ({"loudness": -math.inf}, "data.loudness"),
        ({"frontend": {"kind": "mel", "n_fft": 10**12}}, "data.frontend.n_fft"),
        ({"frontend": {"kind": "mel", "mels": 10**12}}, "data.frontend.mels=1e+12"),
        ({"frontend": {"kind": "mel", "mels": 2000, "high": 4000}}, "more bands than n_fft=1024"),
        ({"frontend": {"kind": "mel", "floor": 1e-300}}, "data.frontend.floor"),
    ],
)
def test_settings_beyond_reason_are_refused_in_a_sentence(settings, words, folder, capsys):
    write(folder / "train" / "a.wav", tone(1.0))
    flat = {"rate": RATE, "seconds": 0.1, **settings}
    axes = 2 if "frontend" in settings else 1
    flat.setdefault("frontend", {"kind": "wave"})
    pairs = {f"data.{key}": value for key, value in flat.items() if key != "frontend"}
    pairs |= {f"data.frontend.{key}": value for key, value in flat["frontend"].items()}
    words_given = [f"{key}={value}".replace("=-inf", "=-.inf") for key, value in pairs.items()]
    name = "sqvae-mel" if axes == 2 else "rsqvae-audio"
    run = folder / "run"
    command = ["train", name, *words_given, "--data", str(folder), "--out", str(run)]
    assert main(command) == 2
    shown = capsys.readouterr().err
    assert words in shown and shown.count("\n") == 1 and not run.exists()
