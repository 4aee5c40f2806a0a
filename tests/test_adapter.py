"""The drop-ins: all that changes their state they do by themselves, and they train as theirs do."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from hqvae.errors import DegenerateFeatures
from hqvae.quantize import (
    ExternalConfig,
    GumbelSoftmaxConfig,
    KMeansInit,
    NearestCodeConfig,
    ResidualVQ,
    VectorQuantize,
)

DIM, K = 5, 8
CONFIGS = {
    "ema": NearestCodeConfig(beta=1.0, init=KMeansInit()),
    "restart": NearestCodeConfig(beta=1.0, restart=True, init=KMeansInit()),
    "stochastic": GumbelSoftmaxConfig(),
}
SHAPES = [(40, DIM), (4, 9, DIM), (4, 3, 4, DIM)]  # channels last
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def features(shape=(4, 9, DIM), seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(kind="restart", **options):
    torch.manual_seed(0)
    return VectorQuantize(DIM, K, CONFIGS[kind], **options)


def state(module):
    return copy.deepcopy(module.state_dict())


def same(before, after):
    assert before.keys() == after.keys()
    return all(torch.equal(before[name], value) for name, value in after.items())


# ----------------------------------------------------------------------------- the call


@every_config
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_channels_come_last_or_second_and_indices_have_no_channel(shape, training, config):
    results = []
    for options in ({}, {"channel_last": False}, {"accept_image_fmap": True}):
        torch.manual_seed(0)
        quantize = VectorQuantize(DIM, K, config, **options)
        z = features(shape).requires_grad_()
        quantize(features((20, DIM)))
        torch.manual_seed(3)
        given = z if not options else z.movedim(-1, 1)
        quantized, indices, loss = quantize.train(training)(given)
        assert quantized.shape == given.shape and loss.shape == ()
        assert indices.shape == shape[:-1] and indices.dtype == torch.long
        (gradient,) = torch.autograd.grad(loss, z)
        assert gradient.isfinite().all() and gradient.abs().sum() > 0
        vectors = quantize.eval().get_output_from_indices(indices)
        assert vectors.shape == given.shape
        results.append(quantized if not options else quantized.movedim(1, -1))
        if not training:
            assert torch.equal(vectors, quantized)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_residual_one_has_an_index_of_each_layer(shape, shared):
    quantize = ResidualVQ(DIM, K, 3, shared_codebook=shared, beam_size=2)
    quantize(features(shape))
    quantized, indices, loss = quantize.eval()(features(shape))
    assert quantized.shape == shape and indices.shape == (*shape[:-1], 3) and loss.shape == ()
    assert torch.equal(quantize.get_output_from_indices(indices), quantized)


@every_config
@pytest.mark.parametrize("whole", [True, False], ids=["module too", "input only"])
def test_the_dtype_of_the_input_comes_back(whole, config):
    quantize = VectorQuantize(DIM, K, config)
    quantize = quantize.bfloat16() if whole else quantize
    for training in (True, False):
        quantized, _, loss = quantize.train(training)(features().bfloat16())
        assert quantized.dtype == torch.bfloat16 and loss.isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "nat"}, "loss is 'nat'; expected 'mse' or 'nats'"),
        ({"loss": "nats"}, "needs a quantizer whose codes have a posterior"),
        ({"anneal_steps": 0}, "anneal_steps is 0"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_options_of_theirs_are_taken_or_named():
    quantize = VectorQuantize(DIM, K, decay=0.8, commitment_weight=0.5, kmeans_init=True)
    config = quantize.quantizer.posterior.config
    assert (config.decay, config.beta, config.restart) == (0.8, 0.5, True)
    for kind in (VectorQuantize, lambda *sizes, **more: ResidualVQ(*sizes, 2, **more)):
        with pytest.raises(TypeError, match=r"no rotation_trick=True here; docs/api\.md says"):
            kind(DIM, K, rotation_trick=True)
    with pytest.raises(TypeError, match=r"no decay=0\.8 here"):
        VectorQuantize(DIM, K, GumbelSoftmaxConfig(), decay=0.8)
    _, indices, _ = quantize(features())
    vectors = quantize.eval().get_output_from_indices(indices)
    assert torch.equal(vectors, quantize.get_codes_from_indices(indices))


@pytest.mark.parametrize(
    ("options", "layout"),
    [({}, r"\[B, \*S, 5\] \(channel_last=True"), ({"channel_last": False}, r"\[B, 5, \*S\]")],
)
def test_a_wrong_width_is_named_with_the_layout(options, layout):
    with pytest.raises(ValueError, match=rf"\[2, 4, 3\].*expects {layout}"):
        make(**options)(torch.zeros(2, 4, 3))


@pytest.mark.parametrize("name", ["fsq", "rotation"])
def test_quantizers_of_the_library_itself_fit_too(name):
    pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is missing")
    quantize = VectorQuantize(DIM, K, ExternalConfig(name=name))
    quantize(features())
    quantized, indices, loss = quantize.eval()(features())
    assert torch.equal(quantize.get_output_from_indices(indices), quantized) and loss.isfinite()


# ----------------------------------------------------------------------------- the loss


def test_the_loss_is_the_mean_squared_distance_to_the_codes():
    quantized, _, loss = make()(features())
    torch.testing.assert_close(loss, (features() - quantized).square().mean())


def test_the_stochastic_loss_is_nats_or_as_many_mean_squares():
    nats, mse = (make("stochastic", loss=loss) for loss in ("nats", "mse"))
    losses = []
    for quantize in (nats, mse):
        quantize(features())
        losses.append(quantize.eval()(features())[2])
    quantized, _, _ = mse(features())
    s2 = mse.quantizer.posterior.variance.sum()
    entropy = mse.quantizer(features().movedim(-1, 1)).entropy.mean()
    square = (features() - quantized).square()
    torch.testing.assert_close(losses[0], square.sum() / 4 / (2 * s2) - entropy)
    torch.testing.assert_close(losses[1], square.mean() - 2 * s2 / (9 * DIM) * entropy)


# ---------------------------------------------------------------------------- the state


@every_config
def test_the_first_batch_of_training_is_the_start(config):
    quantize = VectorQuantize(DIM, K, config)
    before = state(quantize)
    far = features((64, DIM)) + 100
    quantize.eval()(far)
    assert same(before, quantize.state_dict()) and quantize.steps == 0
    _, indices, loss = quantize.train()(far)
    assert quantize.steps == 1 and len(indices.unique()) > K // 2 and loss < 2
    assert (quantize.codebook - 100).abs().max() < 10
    with pytest.raises(DegenerateFeatures):
        VectorQuantize(DIM, K, config)(torch.ones(64, DIM))


@every_config
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpoints_change_nothing(reentrant, config):
    """They run forward twice a step: the second time as the first, and nothing moves again."""

    def run(checkpointed):
        torch.manual_seed(0)
        quantize = VectorQuantize(DIM, K, config)
        gradients = []
        for step in range(3):
            z = features(seed=step).requires_grad_()

            def forward(z):
                quantized, _, loss = quantize(2 * z)
                return quantized.square().sum() + loss

            torch.manual_seed(step)
            if checkpointed:
                checkpoint(forward, z, use_reentrant=reentrant).backward()
            else:
                forward(z).backward()
            gradients.append(z.grad)
        return quantize, gradients

    plain, expected = run(checkpointed=False)
    quantize, gradients = run(checkpointed=True)
    assert quantize.steps == 3 and same(plain.state_dict(), quantize.state_dict())
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other)


@every_config
def test_evaluation_changes_nothing(config):
    quantize = VectorQuantize(DIM, K, config)
    quantize(features())
    before = state(quantize)
    outputs = [quantize.eval()(features(seed=2))[0] for _ in range(2)]
    assert same(before, quantize.state_dict()) and torch.equal(*outputs)


@every_config
def test_codes_move_in_training_by_averages_or_by_gradients(config):
    quantize = VectorQuantize(DIM, K, config)
    quantize(features())
    twin = copy.deepcopy(quantize)
    quantized, indices, loss = quantize(features(seed=2))
    moved = not torch.equal(quantize.codebook, twin.codebook)
    assert moved == (not config.stochastic)
    if config.stochastic:
        (quantized.sum() + loss).backward()
        assert quantize.codebook.grad.abs().sum() > 0
    else:
        z_e, codes = features(seed=2).movedim(-1, 1), indices.unsqueeze(1)
        twin._learn(z_e, codes)
        assert torch.equal(quantize.codebook, twin.codebook)


def test_unused_codes_come_back():
    quantize = VectorQuantize(DIM, K)
    quantize(features((64, DIM)))
    quantize.codebook[: K // 2] = 1000
    assert len(quantize(features((64, DIM)))[1].unique()) <= K // 2
    for seed in range(30):
        quantize(features((64, DIM), seed))
    assert len(quantize(features((64, DIM)))[1].unique()) > K // 2


@pytest.mark.parametrize("file", ["torch", "safetensors"])
@every_config
def test_a_state_dict_knows_whether_it_has_started(config, file, tmp_path):
    quantize = VectorQuantize(DIM, K, config)
    for seed in range(3):
        quantize(features(seed=seed))
    if file == "torch":
        torch.save(quantize.state_dict(), tmp_path / "weights")
        loaded = torch.load(tmp_path / "weights", weights_only=True)
    else:
        save_file(quantize.state_dict(), tmp_path / "weights")
        loaded = load_file(tmp_path / "weights")
    twin = VectorQuantize(DIM, K, config)
    twin.load_state_dict(loaded)
    assert twin.steps == 3 and twin.temperature == quantize.temperature < 1
    outputs = []
    for module in (quantize, twin):
        torch.manual_seed(7)
        outputs.append(module(features(seed=9))[0])
    assert torch.equal(*outputs) and same(quantize.state_dict(), twin.state_dict())


def test_the_temperature_falls_by_itself_and_stays():
    quantize = make("stochastic", anneal_steps=4)
    temperatures = []
    for seed in range(6):
        temperatures.append(quantize.temperature)
        quantize(features(seed=seed))
    assert temperatures == pytest.approx([0.3 ** (min(step, 4) / 4) for step in range(6)])
    quantize.eval()(features())
    assert quantize.temperature == pytest.approx(0.3)


def trained_by_process(rank, folder):
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    torch.manual_seed(rank)
    quantize = VectorQuantize(DIM, K)
    for step in range(25):
        quantize(features((16, DIM), 10 * step + rank))
    torch.save(quantize.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_start_and_move_together(tmp_path):
    mp.start_processes(trained_by_process, (str(tmp_path),), nprocs=2, start_method="fork")
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert same(*states)


# ----------------------------------------------------------------------------- training


class Autoencoder(nn.Module):
    def __init__(self, quantize, width=24):
        super().__init__()
        down = [nn.Conv2d(3, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, 16, 4, 2, 1)]
        up = [nn.ConvTranspose2d(16, width, 4, 2, 1), nn.ReLU()]
        self.encoder = nn.Sequential(*down)
        self.decoder = nn.Sequential(*up, nn.ConvTranspose2d(width, 3, 4, 2, 1))
        self.quantize = quantize

    def forward(self, x):
        quantized, indices, commit_loss = self.quantize(self.encoder(x))
        return self.decoder(quantized), indices, commit_loss


def crops(count, seed):
    """[count, 3, 32, 32] in −1 … 1, from photographs in scikit-image's wheel."""
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    generator = torch.Generator().manual_seed(seed)
    names = ("astronaut", "coffee", "chelsea", "rocket")
    photographs = [torch.from_numpy(getattr(data, name)()) for name in names]
    found = []
    for index in range(count):
        image = photographs[index % 4]
        top, left = (int(torch.randint(s - 32, (), generator=generator)) for s in image.shape[:2])
        found.append(image[top : top + 32, left : left + 32])
    return torch.stack(found).movedim(-1, 1) / 127.5 - 1


def trained(quantize, steps=150, seed=0):
    """(mean squared error, perplexity) on other crops."""
    torch.manual_seed(seed)
    model = Autoencoder(quantize())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    images = crops(512, seed=1)
    for step in range(steps):
        x = images[16 * step % 512 :][:16]
        x_hat, _, commit_loss = model(x)
        loss = nn.functional.mse_loss(x_hat, x) + commit_loss.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = crops(64, seed=2)
    with torch.no_grad():
        x_hat, indices, _ = model.eval()(x)
    share = torch.bincount(indices.flatten()) / indices.numel()
    perplexity = torch.special.entr(share).sum().exp()
    return float((x_hat - x).square().mean()), float(perplexity)


@pytest.mark.parametrize("seed", [0, 1])
def test_put_in_their_place_it_trains_no_worse_and_uses_its_codes(seed):
    theirs = pytest.importorskip(
        "vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed"
    ).VectorQuantize
    options = {"dim": 16, "codebook_size": 128, "accept_image_fmap": True}
    their_mse, _ = trained(lambda: theirs(**options), seed=seed)
    mse, perplexity = trained(lambda: VectorQuantize(**options), seed=seed)
    assert mse < 1.05 * their_mse
    assert perplexity > 0.7 * 128


def test_the_stochastic_one_trains_beside_a_mean_squared_error():
    stochastic = {"config": GumbelSoftmaxConfig(), "accept_image_fmap": True}
    mse, perplexity = trained(lambda: VectorQuantize(16, 128, **stochastic))
    assert mse < 0.1 * crops(64, seed=2).var()
    assert perplexity > 0.3 * 128
