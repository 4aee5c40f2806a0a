"""Sound files as they are found: odd encodings, lengths, scales and names; blocks and seeks."""

import io
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from hqvae.data import sound_files
from hqvae.data.samples import decode, decode_segment, length_at
from hqvae.data.sound_files import SoundReader

RATE = 8000


def sound(seconds, rate=RATE, loud=0.3):
    """A tone whose loudness changes, with noise: compressed files of many block sizes."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(time)) * (np.sin(time) > 0)
    return loud * (np.sin(2 * np.pi * 300 * time) * (1 + np.sin(3 * time)) / 2 + 0.3 * noise)


def encoded(samples, rate=RATE, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **options)
    return file.getvalue()


def reader(data):
    return SoundReader(io.BytesIO(data))


def with_length(flac, frames):
    """A FLAC whose header says so many frames: 36 bits from the middle of byte 21 on."""
    data = bytearray(flac)
    data[21] = data[21] & 0xF0 | frames >> 32
    data[22:26] = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(data)


# -------------------------------------------------------------------------- blocks and seeks

ENCODINGS = {
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "flac": {"format": "FLAC"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
    "GSM": {"format": "WAV", "subtype": "GSM610"},
    "G.721": {"format": "WAV", "subtype": "G721_32"},
    "ADPCM": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "caf": {"format": "CAF", "subtype": "ALAC_16"},
    "w64": {"format": "W64", "subtype": "PCM_24"},
    "aifc": {"format": "AIFF", "subtype": "ULAW"},
    "paf": {"format": "PAF", "subtype": "PCM_24"},
}


@pytest.mark.parametrize("rate", [RATE, 16000])
@pytest.mark.parametrize("name", ENCODINGS)
def test_blocks_are_the_whole_and_any_part_is_the_same_read_alone(name, rate, monkeypatch):
    """Also in the last frames, where seeking in Ogg goes wrong, and after any seek in MP3."""
    monkeypatch.setattr(sound_files, "_BLOCK", 10_007)
    seconds = 30 if name in ("mp3", "vorbis", "opus") else 5  # of these a part has a run-up
    data = encoded(sound(seconds, rate), rate, **ENCODINGS[name])
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        whole = file.read(file.frames, dtype="float32")
    with reader(data) as file:
        assert file.length() == (len(whole), None)
        blocks = list(file.blocks())
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    places = np.random.default_rng(1).integers(0, len(whole), 4).tolist()
    for start in [*places, *(len(whole) - back for back in (1, 100, 4000, 8000))]:
        with reader(data) as file:
            part = np.concatenate(list(file.blocks(start, start + 3000)))
        np.testing.assert_allclose(part, whole[start : start + 3000], atol=2e-7)


def test_a_part_of_a_long_vorbis_file_is_the_same_to_its_last_sample():
    rate = 44100
    data = encoded(sound(12, rate), rate, format="OGG", compression_level=0.95)
    with reader(data) as file:
        whole = np.concatenate(list(file.blocks()))
    for back in (1, 100, 1346, 4000, 8000, 20_000):
        with reader(data) as file:
            part = np.concatenate(list(file.blocks(len(whole) - back)))
        np.testing.assert_allclose(part, whole[-back:], atol=2e-7)


@pytest.mark.parametrize(("there", "here"), [(44100, 16000), (16000, 44100), (8000, 8000)])
@pytest.mark.parametrize("loudness", [None, -20.0])
def test_samples_in_blocks_are_those_of_all_at_once(loudness, there, here):
    samples = sound(15, there).astype(np.float32)
    with reader(encoded(np.stack([samples, samples / 2], 1), there, **ENCODINGS["wav"])) as file:
        found = decode(file, here, loudness)
        assert len(found.samples) == length_at(file, here).frames and found.remark is None
    stored = soundfile.read(
        io.BytesIO(encoded(np.stack([samples, samples / 2], 1), there, **ENCODINGS["wav"])),
        dtype="float32",
    )[0].mean(1)
    expected = soxr.resample(stored, there, here, quality="HQ")
    if loudness is not None:
        expected = expected * (0.1 / np.sqrt(np.square(expected, dtype=np.float64).mean()))
    expected = (expected * 32768).round().clip(-32768, 32767).astype(np.int16)
    apart = np.abs(found.samples.astype(int) - expected)
    assert apart.max() <= (0 if loudness is None else 1)


def test_a_long_file_takes_little_more_memory_than_what_is_kept(tmp_path):
    """Three minutes of stereo at 48 kHz are 69 MB as floats; 6 MB are kept at 16 kHz."""
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 48000, 2, subtype="PCM_16") as file:
        part = np.stack([sound(10, 48000)] * 2, 1)
        for _ in range(18):
            file.write(part)
    del part
    tracemalloc.start()
    with SoundReader(tmp_path / "long.wav") as file:
        samples = decode(file, 16000, None).samples
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(samples) == 180 * 16000 and highest < 4 * samples.nbytes


# ------------------------------------------------------------------------------------ lengths


@pytest.mark.parametrize("claimed", [0, 2**36 - 1])
def test_a_flac_of_unknown_or_absurd_length_is_read_to_its_end(claimed):
    flac = encoded(sound(3), format="FLAC")
    tracemalloc.start()
    with reader(with_length(flac, claimed)) as file:
        length = file.length()
        samples = decode(file, RATE, None).samples
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert length.frames == len(samples) == 3 * RATE and highest < 2**24
    with reader(flac) as file:
        np.testing.assert_array_equal(samples, decode(file, RATE, None).samples)
    assert (length.remark is None) == (claimed == 0)  # a pipe knows no length, and says so
    with reader(with_length(flac, claimed)) as file:
        alone = decode_segment(file, RATE, 9000, 800)
    np.testing.assert_array_equal(alone, samples[9000:9800])


@pytest.mark.parametrize("name", ["flac", "mp3", "wav", "aiff", "au", "vorbis", "opus"])
def test_a_file_that_is_cut_is_read_to_the_cut(name):
    options = ENCODINGS.get(name, {"format": name.upper()})
    whole = encoded(sound(5), **options)
    with reader(whole[: len(whole) * 3 // 5]) as file:
        length = file.length()
        found = decode(file, RATE, None)
    assert RATE < length.frames == len(found.samples) < 4 * RATE
    says = "it breaks off after" if options["format"] == "OGG" else "its header says 5 s"
    assert length.remark == found.remark and says in found.remark
    with reader(whole) as file:
        expected = decode(file, RATE, None).samples
    kept = length.frames - 2000  # the last frame of an MP3 overlaps with the one that is missing
    np.testing.assert_array_equal(found.samples[:kept], expected[:kept])


def test_a_wav_from_a_pipe_is_not_taken_for_cut():
    wav = bytearray(encoded(sound(1), format="WAV"))
    place = wav.index(b"data") + 4
    wav[4:8] = wav[place : place + 4] = b"\xff" * 4
    with reader(bytes(wav)) as file:
        assert file.length() == (RATE, None)


def test_a_file_that_is_damaged_is_read_to_the_damage():
    flac = bytearray(encoded(sound(60), format="FLAC"))
    flac[len(flac) // 2 : len(flac) // 2 + 3000] = bytes(3000)
    with reader(bytes(flac)) as file:
        found = decode(file, RATE, None)
    assert 20 * RATE < len(found.samples) < 60 * RATE
    assert "it ends after" in found.remark and "its header says 60 s" in found.remark


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_of_a_chain_of_ogg_streams_the_first_is_read_and_that_is_said(on_disk, subtype, tmp_path):
    links = [encoded(sound(seconds), format="OGG", subtype=subtype) for seconds in (2, 3)]
    (tmp_path / "chain.ogg").write_bytes(b"".join(links))
    chain = tmp_path / "chain.ogg" if on_disk else io.BytesIO(b"".join(links))
    with SoundReader(chain) as file:
        frames, remark = file.length()
        assert frames == 2 * RATE == len(decode(file, RATE, None).samples)
    assert remark == "it is a chain of Ogg streams, and the first, of 2 s, is read"
    with reader(links[0]) as file:
        assert file.length().remark is None


@pytest.mark.parametrize(
    ("frames", "rate", "words"),
    [
        (1, 44100, r"it lasts 0\.023 ms; the shortest that counts is 1 ms"),
        (7, 8000, r"it lasts 0\.88 ms"),
        (0, 8000, "it holds no sample"),
    ],
)
def test_a_file_without_a_millisecond_is_refused(frames, rate, words):
    data = encoded(np.full(frames, 0.5), rate, format="WAV")
    with reader(data) as file, pytest.raises(ValueError, match=words):
        file.length()


def test_a_file_of_a_millisecond_counts_but_not_at_a_rate_that_leaves_none():
    with reader(encoded(np.full(8, 0.5), format="WAV")) as file:
        assert length_at(file, RATE).frames == 8 and len(decode(file, RATE, None).samples) == 8
        with pytest.raises(ValueError, match="its 8 samples at 8000 Hz give none at 100 Hz"):
            length_at(file, 100)


# --------------------------------------------------------------------- rates, scales and names


@pytest.mark.parametrize("rate", [1, 99, 2**31 - 1])
def test_an_absurd_rate_is_refused_at_once(rate):
    data = bytearray(encoded(sound(1), format="WAV"))
    data[24:28] = struct.pack("<I", rate)
    with pytest.raises(ValueError, match=f"its header says {rate} Hz; expected 100 to 10,000,000"):
        reader(bytes(data))


@pytest.mark.parametrize("scale", [255, 32768, 2.0**31])
def test_floats_of_another_scale_are_refused_unless_a_loudness_sets_it(scale):
    samples = sound(1)
    data = encoded(samples * scale, format="WAV", subtype="FLOAT")
    for read in (lambda file: decode(file, RATE, None), lambda f: decode_segment(f, RATE, 0, 800)):
        with reader(data) as file, pytest.raises(ValueError, match="where full scale is 1"):
            read(file)
    with reader(data) as file, reader(encoded(samples, format="WAV", subtype="FLOAT")) as plain:
        np.testing.assert_allclose(
            decode(file, RATE, -20.0).samples, decode(plain, RATE, -20.0).samples, atol=1
        )


def test_floats_beyond_full_scale_are_clipped_and_that_is_said():
    samples = np.linspace(-2, 2, 8001)
    with reader(encoded(samples, format="WAV", subtype="FLOAT")) as file:
        found = decode(file, RATE, None)
    assert found.remark == "0.5 of its samples are clipped at full scale"
    clipped = (samples * 32768).round().clip(-32768, 32767)
    np.testing.assert_array_equal(found.samples, clipped)
    a_few = np.where(np.arange(8000) % 2000 == 9, 1.2, 0.1)
    with reader(encoded(a_few, format="WAV", subtype="FLOAT")) as file:
        assert decode(file, RATE, None).remark is None


def test_a_name_that_is_not_utf8_is_no_matter(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    try:
        path.write_bytes(encoded(sound(1), format="WAV"))
    except OSError:
        pytest.skip("this file system takes no such names")
    with SoundReader(path) as file:
        assert file.length().frames == RATE
