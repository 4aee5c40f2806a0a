"""Findings stand at their thresholds and name the layer; advice can be followed."""

import math
import re
from dataclasses import replace

import pytest

from hqvae.config import Config, check_together
from hqvae.doctor import diagnose, findings
from hqvae.measure import LayerMeasures, Measures
from hqvae.overrides import flatten, override, to_dict
from hqvae.presets import PRESETS, preset

STOCHASTIC, DETERMINISTIC = preset("sqvae"), preset("vqvae")
SETTING = re.compile(r"[a-z]+(?:\.[a-z0-9_]+)+=[a-z0-9.]*[a-z0-9]")
KEY = re.compile(r"[a-z]+(?:\.[a-z0-9_]+)+")

HEALTHY = LayerMeasures(
    level=0,
    layer=0,
    stride=4,
    positions=64,
    codebook_size=512,
    perplexity=400.0,
    used=510,
    entropy_bits=1.0,
    s2=0.1,
    rmse_cumulative=10.0,
    psnr_cumulative=28.0,
    rmse_shuffled=50.0,
    ablation_drop_db=14.0,
)


def layer(**changes) -> LayerMeasures:
    return replace(HEALTHY, **changes)


def measures(*layers, items: int = 100, bits_per_second: float | None = None) -> Measures:
    return Measures(
        items=items,
        figures={"rmse": 10.0, "psnr": 28.0, "ssim": 0.9},
        bits_per_dim=4.0,
        bits_per_dim_deterministic=3.9,
        bits_per_point=0.5,
        bits_per_second=bits_per_second,
        sigma2=0.01,
        loss=-1000.0,
        shuffled_items=items,
        layers=layers,
    )


def text_of(measured: Measures, config: Config) -> str:
    return "\n".join(diagnose(measured, findings(measured, config), config))


def all_wrong(config: Config) -> Measures:
    """With what a posterior of that kind can show."""
    second = layer(layer=1, psnr_cumulative=27.0, ablation_drop_db=0.0)
    if config.model.quantizer.kind == "stochastic":
        first = layer(perplexity=3.0, entropy_bits=8.9, s2=math.exp(35))
        return measures(first, replace(second, entropy_bits=6.0))
    return measures(
        layer(perplexity=3.0, entropy_bits=0.0, s2=0.0), replace(second, entropy_bits=0.0, s2=0.0)
    )


# -------------------------------------------------------------------------------- findings


def test_a_layer_that_the_rate_does_not_pay_for_is_silent_and_no_problem():
    paid = override(preset("rsqvae"), ["model.rate_weight=1"])
    few = {"perplexity": 1.2, "ablation_drop_db": 0.0}
    quiet = measures(layer(**few, perplexity_free=200.0), layer(layer=1))
    (finding,) = findings(quiet, paid)
    assert finding.kind == "silent" and "and 200 if they paid nothing" in finding.what
    text = text_of(quiet, paid)
    assert "PROBLEM" not in text and "level 0 layer 0 silent" in text
    assert "shuffling any of them costs" not in text
    for perplexity_free in (None, 3.0):  # nothing is paid, or it has collapsed all the same
        dead = measures(layer(**few, perplexity_free=perplexity_free), layer(layer=1))
        kinds = {finding.kind for finding in findings(dead, paid)}
        assert kinds == {"carries nothing", "collapsed"}


@pytest.mark.parametrize(
    ("changes", "config", "kinds"),
    [
        ({}, STOCHASTIC, []),
        ({"perplexity": 51.0}, STOCHASTIC, ["collapsed"]),
        ({"perplexity": 52.0}, STOCHASTIC, []),
        ({"ablation_drop_db": 0.04}, STOCHASTIC, ["carries nothing"]),
        ({"ablation_drop_db": 0.06}, STOCHASTIC, []),
        # Errors of the whole split and of the shuffled part are of other signals.
        ({"rmse_shuffled": 9.0}, STOCHASTIC, []),
        # 100 images of one position each can show no more than 100 codes.
        ({"positions": 1, "perplexity": 30.0}, STOCHASTIC, []),
        ({"positions": 1, "perplexity": 9.0}, STOCHASTIC, ["collapsed"]),
        ({"entropy_bits": 8.7}, STOCHASTIC, ["posterior uniform"]),
        ({"entropy_bits": 8.5}, STOCHASTIC, []),
        ({"s2": math.exp(35)}, STOCHASTIC, ["variance at its bound"]),
        ({"s2": math.exp(-35)}, STOCHASTIC, ["variance at its bound"]),
        ({"s2": 1e14}, STOCHASTIC, []),
        ({"s2": 0.0}, DETERMINISTIC, []),
        ({"entropy_bits": 8.7}, DETERMINISTIC, []),
        # Failure mode 2: the posterior is uniform, so a soft perplexity would read 512.
        (
            {"entropy_bits": 9.0, "ablation_drop_db": -0.1, "perplexity": 3.0},
            STOCHASTIC,
            ["carries nothing", "collapsed", "posterior uniform"],
        ),
    ],
)
def test_findings_stand_at_their_thresholds(changes, config, kinds):
    assert [finding.kind for finding in findings(measures(layer(**changes)), config)] == kinds


def test_findings_name_the_layer_and_come_worst_first():
    found = findings(
        measures(layer(perplexity=3.0), layer(level=1, layer=2, ablation_drop_db=0.0)), STOCHASTIC
    )
    places = [(finding.layer, finding.kind) for finding in found]
    assert places == [("level 1 layer 2", "carries nothing"), ("level 0 layer 0", "collapsed")]


def test_a_finding_is_one_sentence_of_what_and_advice():
    (finding,) = findings(measures(layer(perplexity=3.0, used=7)), STOCHASTIC)
    entry = finding.entry()
    assert entry["where"] == "level 0 layer 0" and entry["finding"] == "collapsed"
    assert entry["what"] == "perplexity 3 of 512 codes (7 are ever chosen)"
    assert entry["sentence"].startswith("level 0 layer 0 collapsed: perplexity 3 of 512")
    assert entry["advice"] == finding.advice and finding.advice in entry["sentence"]


# ---------------------------------------------------------------------------------- advice


def test_coarse_layers_can_earn_their_place_and_the_last_ones_are_to_be_dropped():
    """`progressive` trains prefixes: it makes nothing of what comes after all that carries."""
    config = preset("rsqvae")
    dead, alive = {"ablation_drop_db": 0.0}, {}
    layers = [layer(layer=i, **kind) for i, kind in enumerate([dead, alive, dead, dead])]
    coarse, third, fourth = (f.advice for f in findings(measures(*layers), config))
    assert "model.progressive=1" in coarse
    assert "model.levels.0.layers=2" in third and "model.levels.0.layers=2" in fourth
    assert "progressive" not in third + fourth
    assert override(config, ["model.levels.0.layers=2"]).model.levels[0].layers == 2


def test_nothing_is_to_be_dropped_or_made_progressive_of_a_single_layer():
    (finding,) = findings(measures(layer(ablation_drop_db=0.0)), STOCHASTIC)
    assert finding.advice == "train longer"


def test_the_decoder_has_seen_the_prefix_of_all_layers():
    worse = [layer(), layer(layer=1, psnr_cumulative=27.0), layer(layer=2, psnr_cumulative=26.0)]
    text = text_of(measures(*worse), preset("rsqvae"))
    assert text.count("The decoder never saw that prefix") == 1


def test_a_whole_level_that_carries_nothing_is_to_be_dropped():
    idle = layer(level=1, ablation_drop_db=0.0)
    (finding,) = findings(measures(layer(), idle), preset("sqvae2"))
    assert "drop level 1 from model.levels" in finding.advice


def test_a_layer_that_gives_little_for_its_bits_is_named():
    strong = [layer(layer=i) for i in range(4)]
    weak = layer(layer=4, positions=16, ablation_drop_db=0.06)
    text = text_of(measures(*strong, weak), preset("rsqvae"))
    assert "level 0 layer 4 takes 144 of 2,448 bits (6%) for 0.06 dB" in text
    assert "keep 4 layers there: model.levels.0.layers=4" in text
    assert "shuffling any of them" not in text and "No layer has collapsed" in text
    assert "takes" not in text_of(
        measures(*strong, layer(layer=4, ablation_drop_db=2.0)), STOCHASTIC
    )


@pytest.mark.parametrize("name", ["sqvae", "rsqvae", "hqvae", "rqvae", "vqvae", "vqvae-paper"])
def test_a_cure_that_is_set_already_is_not_advised(name):
    config = preset(name)
    text = text_of(measures(layer(perplexity=3.0)), config)
    for setting in SETTING.findall(text):
        assert override(config, [setting]) != config, setting
    assert "pretrain_fraction" not in text or config.phases.pretrain_fraction == 0


def test_sound_that_is_worse_than_silence_is_said():
    measured = measures(layer(), bits_per_second=8000.0)
    for ratio, said in ((-18.25, True), (12.0, False)):
        figures = {**measured.figures, "si_sdr": ratio}
        text = text_of(replace(measured, figures=figures), STOCHASTIC)
        assert f"SI-SDR {ratio:.2f} dB" in text
        assert ("the error is louder than the sound" in text) == said


def test_codes_that_few_items_cannot_show_are_not_asked_for():
    (finding,) = findings(measures(layer(positions=1, perplexity=9.0)), STOCHASTIC)
    assert "perplexity 9 of 100 codes, as many as 100 items have" in finding.what


def test_the_split_is_said():
    paragraphs = diagnose(measures(layer()), [], STOCHASTIC, "validation")
    assert paragraphs[0].startswith("validation split, 100 images at")


def test_advice_knows_what_is_already_done():
    dead = measures(layer(ablation_drop_db=0.0), layer(layer=1))
    progressive = replace(STOCHASTIC, model=replace(STOCHASTIC.model, progressive=1.0))
    assert "model.progressive=1" in findings(dead, STOCHASTIC)[0].advice
    assert "model.progressive" not in findings(dead, progressive)[0].advice


@pytest.mark.parametrize("name", PRESETS)
def test_advice_can_be_followed(name):
    """Every key that is named exists, and every setting is accepted beside the others."""
    config = preset(name)
    text = text_of(all_wrong(config), config)
    assert "PROBLEM" in text and SETTING.findall(text)
    for setting in SETTING.findall(text):
        check_together(override(config, [setting]))
    keys = flatten(to_dict(config))
    for named in KEY.findall(text):
        assert any(f"{key}.".startswith(f"{named}.") for key in keys), named


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sqvae", "a higher model.quantizer.init.sharpness"),
        ("sqvae-paper", "a lower model.quantizer.init.s2"),
    ],
)
def test_advice_goes_by_how_codebooks_start(name, words):
    uniform = measures(layer(entropy_bits=8.9))
    assert words in findings(uniform, preset(name))[0].advice


@pytest.mark.parametrize("name", ["sqvae", "rsqvae-audio", "sqvae-paper"])
def test_the_nearest_code_phase_is_advised_where_posteriors_are_soft(name):
    """For waveforms too, which can have that phase."""
    soft, config = measures(layer(entropy_bits=8.0)), preset(name)
    assert "phases.nearest_fraction" in text_of(soft, config)
    assert "still soft" not in text_of(measures(layer(entropy_bits=4.0)), config)


# -------------------------------------------------------------------------------- in words


def test_every_problem_is_said_with_a_remedy():
    bad = layer(layer=1, perplexity=3.0, ablation_drop_db=0.0, psnr_cumulative=27.0)
    text = text_of(measures(layer(), bad), STOCHASTIC)
    assert "PROBLEM level 0 layer 1 carries nothing" in text
    assert "PROBLEM level 0 layer 1 collapsed" in text
    assert text.count("TRY:") >= 3
    assert "1.00 dB worse than without it" in text
    assert "No layer has collapsed" not in text


def test_a_healthy_model_is_called_so():
    assert "No layer has collapsed" in text_of(measures(layer()), STOCHASTIC)


def test_every_layer_is_described_with_what_it_adds():
    second = layer(layer=1, psnr_cumulative=30.5, perplexity=256.0)
    text = text_of(measures(layer(), second), STOCHASTIC)
    assert "level 0 layer 0 (stride 4)" in text and "alone gives 28.00 dB" in text
    assert "8.00 of 9.00 bits per position (510 of 512 codes used); it adds 2.50 dB" in text
    assert "576 of 1,152 bits" in text
    assert "with its codes shuffled, 14.00 dB are lost, 24.31 for every 1,000 of its bits" in text


@pytest.mark.parametrize(
    ("bits_per_second", "words"),
    [(None, "100 images at 0.500 bits per pixel"), (8000.0, "100 segments of audio at 8000 bits")],
)
def test_the_rate_is_in_the_unit_of_the_signals(bits_per_second, words):
    assert words in text_of(measures(layer(), bits_per_second=bits_per_second), STOCHASTIC)


def test_the_rate_is_not_called_idle_for_want_of_items():
    uneven = layer(perplexity=60.0)
    assert "idle" not in text_of(measures(uneven, items=1), STOCHASTIC)
    assert "idle" in text_of(measures(uneven), STOCHASTIC)
