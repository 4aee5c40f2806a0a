"""The autoencoder's task: phases, accumulated batches, and that training lowers what it should."""

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from safetensors import safe_open
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from training import NO_PHASES, SETTINGS, level_settings, same, tiny, trained, weights

from hqvae.data import ShuffledBatches, open_data, sequential_batches
from hqvae.likelihood import running_variance
from hqvae.model import HQVAE
from hqvae.overrides import override
from hqvae.presets import preset
from hqvae.train.autoencoder import Autoencoder


def test_training_lowers_the_distortion(image_file, tmp_path):
    settings = [
        "train.steps=150",
        "train.lr=2e-3",
        "train.validate_every=150",
        "model.net.widths=[32,64]",
        "model.levels.0.codebook_size=32",
        "model.levels.0.dim=64",
    ]
    run = trained(tiny("rsqvae", image_file, *settings), tmp_path)
    entries = run.entries("train")
    assert entries[-1]["psnr"] > entries[0]["psnr"] + 4
    assert entries[-1]["bits_per_dim"] < entries[0]["bits_per_dim"] - 0.5
    assert "collapsed" not in [entry["finding"] for entry in run.entries("alarm")]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("rsqvae", NO_PHASES),
        ("hqvae", NO_PHASES),
        ("hqvae", ["phases.nearest_fraction=0.75"]),
        ("rqvae", []),
        ("rqvae-paper", []),
        ("rqvae-paper", ["model.prior=learned"]),
    ],
    ids=["rsqvae", "hqvae", "hqvae nearest", "rqvae", "rqvae-paper", "mse, learned prior"],
)
def test_accumulated_batches_are_one_batch(name, settings, image_file, tmp_path):
    """σ² of the global batch, and every sample's noise, however it is cut.

    One step, or rounding would grow.
    """
    one_step = ["train.steps=1", "train.precision=32-true", "train.lr=1e-4"]
    settings = [*settings, *one_step, "model.progressive=0.5"]
    one, two, eight = (
        weights(
            trained(tiny(name, image_file, *settings, f"train.accumulate={n}"), tmp_path / str(n))
        )
        for n in (1, 2, 8)
    )
    for key in one:
        # Adam's first step is ±lr for every weight: only the signs of tiny gradients can differ.
        assert (one[key] - two[key]).abs().float().mean() < 2e-6, key
        assert (one[key] - eight[key]).abs().float().mean() < 2e-6, key


# ----------------------------------------------------------------------- scale of features


@pytest.mark.parametrize("scaled", [True, False])
def test_features_are_scaled_before_the_first_step_where_asked_for(scaled, image_file):
    config = tiny("rsqvae", image_file, f"phases.init_scale={scaled}".lower())
    splits = open_data(config.data, 3, ("train", "validation"))[1]
    task = Autoencoder(config, splits, Fabric(accelerator="cpu"), [slice(0, 8)])
    torch.manual_seed(config.train.seed)
    fresh = HQVAE(config.model).state_dict()
    ours = task.model.state_dict()
    changed = {key for key, values in fresh.items() if not torch.equal(values, ours[key])}
    scale = {"levels.0.project.weight", "levels.0.project.bias"}
    assert changed == (scale if scaled else set())
    z_e = task.model(coming_batches(config, [0]), quantize=False).z_e[0]
    assert (abs(float(z_e.var()) - 1) < 0.02) == scaled


@pytest.mark.parametrize("name", ["rsqvae", "sqvae-paper"])
def test_batches_are_weighed_by_the_running_variance_where_presets_say_so(
    name, image_file, tmp_path, monkeypatch
):
    """By the mean of the steps before: the papers' presets take each batch's own."""
    given = []
    forward = HQVAE.forward

    def watched(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        if self.training and torch.is_grad_enabled():
            given.append((kwargs["mean_sigma2"], out.sigma2[0, 0]))
        return out

    monkeypatch.setattr(HQVAE, "forward", watched)
    trained(tiny(name, image_file, "train.log_every=1"), tmp_path)
    if name == "sqvae-paper":
        assert [mean for mean, _ in given] == [None] * 8
        return
    mean = torch.zeros(())
    for step_mean, own in given:
        assert float(step_mean) == pytest.approx(float(mean), rel=1e-6)
        mean = running_variance(mean, own, 0.9)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_signals_are_not_rounded_where_the_networks_are(
    precision, image_file, tmp_path, monkeypatch
):
    """They are the target too: bfloat16 has 256 values between one and two."""
    seen = []
    forward = HQVAE.forward

    def watched(self, x, *args, **kwargs):
        if torch.is_grad_enabled():
            seen.append((x, args[0], self.encoder(x)[0].dtype))
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(HQVAE, "forward", watched)
    config = tiny("rsqvae", image_file, "train.steps=1", *NO_PHASES, f"train.precision={precision}")
    trained(config, tmp_path)
    x, temperature, features = seen[0]
    assert torch.equal(x, coming_batches(config, [0]))
    assert temperature.dtype == torch.float32
    assert features == (torch.bfloat16 if precision == "bf16-mixed" else torch.float32)


# ----------------------------------------------------------------------- pretraining


@pytest.mark.parametrize("name", ["sqvae2", "rqvae"])
def test_the_autoencoder_learns_alone_before_codebooks_start(
    name, image_file, tmp_path, monkeypatch
):
    """Nothing is quantized, nothing validated, codebooks stay; then they start, once."""
    began = []
    init_codebooks = HQVAE.init_codebooks

    def watched(self, x, noise, *rest):
        before = copy.deepcopy(self.state_dict())
        init_codebooks(self, x, noise, *rest)
        began.append((x, before, copy.deepcopy(self.state_dict())))

    monkeypatch.setattr(HQVAE, "init_codebooks", watched)
    phases = ["phases.pretrain_fraction=0.5", "phases.nearest_fraction=0"]
    settings = [*phases, "model.quantizer.init.kind=kmeans", "train.weight_ema=0.9"]
    config = tiny(name, image_file, *settings)
    run = trained(config, tmp_path)

    assert [entry["step"] for entry in run.entries("pretrain")] == [2, 4]
    assert [entry["step"] for entry in run.entries("train")] == [6, 8]
    for entry in run.entries("pretrain"):
        assert not any([*entry["used"], *entry["entropy"], *entry["latent_loss"]])
    for entry in run.entries("train"):
        assert all(used > 1 for used in entry["used"]) and all(entry["latent_loss"])
    assert [entry["step"] for entry in run.entries("validation")] == [8]

    ((x, before, after),) = began
    checkpoint = torch.load(run.path / "checkpoints/000000004.pt", weights_only=True)["model"]
    assert same(before, checkpoint)  # after pretraining's last step, before any that quantizes
    assert torch.equal(x, coming_batches(config, range(4, 4 + len(x) // 8))) and len(x) >= 8
    torch.manual_seed(config.train.seed)
    fresh = HQVAE(config.model).state_dict()
    of_codebooks = [key for key in fresh if key.endswith(("vectors", "theta"))]
    assert of_codebooks
    for key in of_codebooks:
        assert torch.equal(before[key], fresh[key]) and not torch.equal(after[key], fresh[key])


def coming_batches(config, steps):
    """The signals of these steps' global batches."""
    items = open_data(config.data, 3, ("train",))[1]["train"]
    order = ShuffledBatches(len(items), config.train.batch_size, config.train.seed)
    return torch.cat([items.signal(items.training_batch(*order.at(step))) for step in steps])


@contextmanager
def optimizer_steps():
    """What `look` gives before and after every step of an optimiser, as two lists."""
    before, after = [], []

    def snapshot(optimizer):
        """(optimiser, group members, {parameter: (its moment, the moment's values)})."""
        members = [list(group["params"]) for group in optimizer.param_groups]
        moments = {
            parameter: (state["exp_avg"], state["exp_avg"].clone())
            for parameter, state in optimizer.state.items()
        }
        return optimizer, members, moments

    hooks = [
        register_optimizer_step_pre_hook(lambda o, *_: before.append(snapshot(o))),
        register_optimizer_step_post_hook(lambda o, *_: after.append(snapshot(o))),
    ]
    try:
        yield before, after
    finally:
        for hook in hooks:
            hook.remove()


def codebooks_of(model):
    return [codebook for level in model.levels for codebook in level.quantizer.codebooks]


def vectors_of(model):
    return [codebook.vectors.clone() for codebook in codebooks_of(model)]


def test_codebooks_start_in_the_average_too_and_without_the_optimisers_past(
    image_file, tmp_path, monkeypatch
):
    started = []
    enter = Autoencoder.enter

    def watched(task, step, average):
        sentence = enter(task, step, average)
        if step == task.quantize_from:
            scalars = [level.quantizer.posterior.theta for level in task.model.levels]
            of_start = [*(codebook.vectors for codebook in codebooks_of(task.model)), *scalars]
            networks = list(task.model.encoder.parameters())
            started.append((vectors_of(task.model), vectors_of(average), of_start, networks))
        return sentence

    monkeypatch.setattr(Autoencoder, "enter", watched)
    phases = ["phases.pretrain_fraction=0.5", "phases.nearest_fraction=0", "train.weight_ema=0.9"]
    with optimizer_steps() as (before, _):
        trained(tiny("rsqvae", image_file, *phases), tmp_path)
    ((own, averaged, of_start, networks),) = started
    assert all(torch.equal(a, b) for a, b in zip(own, averaged, strict=True))
    moments = before[4][2]
    assert not any(parameter in moments for parameter in of_start)
    assert all(parameter in moments for parameter in networks)


# --------------------------------------------------------------------- nearest codes


@pytest.fixture(params=["sqvae2", "rsqvae"])
def across(request, image_file, tmp_path, monkeypatch):
    """A run of all three phases with an average, and what was seen where the last one begins."""
    seen = {"replaced": [], "entered": []}
    use_nearest, enter = HQVAE.use_nearest, Autoencoder.enter
    phases = ["phases.pretrain_fraction=0.25", "phases.nearest_fraction=0.5"]
    config = tiny(request.param, image_file, *phases, "train.weight_ema=0.9")
    items = open_data(config.data, 3, ("train",))[1]["train"]
    x = items.signal(next(sequential_batches(items, 8, 8)))

    def parts(model):
        return [model.config, model.objective, model.encoder, model.decoder, *codebooks_of(model)]

    def watched_verb(model):
        before, codes = [*map(id, parts(model))], model.encode(x)
        posterior = model.posterior
        use_nearest(model)
        kept = before == [*map(id, parts(model))]
        same_codes = all(torch.equal(a, b) for a, b in zip(codes, model.encode(x), strict=True))
        seen["replaced"].append((posterior, model.posterior, kept, same_codes))

    def watched_enter(task, step, average):
        before = vectors_of(task.model), vectors_of(average)
        sentence = enter(task, step, average)
        after = vectors_of(task.model), vectors_of(average)
        if step in (task.quantize_from, task.nearest_from):
            posteriors = task.model.posterior, average.posterior
            seen["entered"].append((step, sentence, before, after, posteriors))
        return sentence

    monkeypatch.setattr(HQVAE, "use_nearest", watched_verb)
    monkeypatch.setattr(Autoencoder, "enter", watched_enter)
    with optimizer_steps() as steps:
        seen["run"] = trained(config, tmp_path)
    seen["optimizer"] = steps
    return seen


def test_nearest_codes_replace_the_posterior_and_nothing_else(across):
    """Model and average keep config, likelihood, networks and codebooks; codes stay the same."""
    change = ("gumbel_softmax", "nearest_code", True, True)
    assert across["replaced"] == [change, change]
    check_codebooks(across["entered"])
    check_optimizer(*across["optimizer"])
    check_log(across["run"])
    check_disk(across["run"])


def check_codebooks(entered):
    """Both phases move every codebook, and the average's with it; in between they differ."""
    assert [(step, posteriors) for step, _, _, _, posteriors in entered] == [
        (2, ("gumbel_softmax", "gumbel_softmax")),
        (4, ("nearest_code", "nearest_code")),
    ]
    assert "nearest codes from step 4 on" in entered[1][1]
    for _, _, (own_before, _), (own, average), _ in entered:
        assert not any(torch.equal(a, b) for a, b in zip(own_before, own, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(own, average, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(*entered[1][2], strict=True))


def check_optimizer(before, after):
    """One optimiser with the same parameters, whose moments are those that it had."""
    assert len(before) == len(after) == 8
    optimizers, members, _ = zip(*before)
    assert len(set(map(id, optimizers))) == 1
    for groups in members[1:]:
        pairs = zip(groups, members[0], strict=True)
        assert all([*map(id, now)] == [*map(id, first)] for now, first in pairs)
    kept, found = after[3][2], before[4][2]
    assert kept.keys() == found.keys()
    for parameter, (moment, values) in kept.items():
        assert found[parameter][0] is moment and torch.equal(found[parameter][1], values)
    last = after[7][2]
    moved = [p for p, (_, values) in kept.items() if not torch.equal(last[p][1], values)]
    assert 0 < len(moved) < len(kept)  # networks' moments move on, those of codes stand still


def check_log(run):
    """s² and entropy are zero from there on, and draws are nearest codes."""
    entries = {entry["step"]: entry for entry in run.entries("train")}
    assert all(entries[4]["s2"]) and all(entries[4]["entropy"])
    for step in (6, 8):
        assert not any([*entries[step]["s2"], *entries[step]["entropy"]])
        assert all(entries[step]["latent_loss"])
    last = run.entries("validation")[-1]
    assert last["bits_per_dim"] == pytest.approx(last["bits_per_dim_deterministic"], rel=1e-6)


def check_disk(run):
    """Checkpoints and weights record the posterior; the config stays what was asked for."""
    recorded = {
        path.stem: torch.load(path, weights_only=True)["task"]["posterior"]
        for path in (run.path / "checkpoints").glob("*.pt")
    }
    assert recorded == {"000000004": "gumbel_softmax", "000000008": "nearest_code"}
    with safe_open(run.path / "model.safetensors", "pt") as file:
        assert file.metadata()["posterior"] == "nearest_code"
    assert run.config.model.quantizer.kind == "stochastic"
    model = run.load_model()
    assert model.config == run.config.model and model.posterior == "nearest_code"
    model.save_pretrained(run.path / "again")
    again, x = HQVAE.from_pretrained(run.path / "again"), torch.rand(2, 3, 16, 16)
    assert again.config == model.config and again.posterior == "nearest_code"
    assert torch.equal(again(x).reconstruction, model(x).reconstruction)


def test_waveforms_have_a_nearest_code_phase_too(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="comes with the extra audio")
    generator = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(24):
        tone = np.sin(np.arange(2048) * generator.uniform(0.05, 0.5)) * 0.5
        soundfile.write(tmp_path / "data" / f"{i:02d}.wav", tone, 16_000)
    settings = [
        *(setting for setting in SETTINGS if setting != "data.size=16"),
        *level_settings(1),
        f"data.source={tmp_path / 'data'}",
        "data.seconds=0.128",
        "model.levels.0.layers=2",
        "model.net.inner_blocks=0",
        "model.spectral.n_ffts=[512,128]",
        "phases.nearest_fraction=0.5",
    ]
    run = trained(override(preset("rsqvae-audio"), settings), tmp_path)
    entries = {entry["step"]: entry for entry in run.entries("train")}
    assert all(entries[4]["s2"]) and not any(entries[6]["s2"])
    assert run.load_model().posterior == "nearest_code"
