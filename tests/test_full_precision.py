"""The switches of float32 are set while they are needed, and are what they were after."""

import threading

import pytest
import torch

from hqvae.full_precision import FULL_PRECISION


def switches():
    backends = torch.backends
    return {
        "products": backends.cuda.matmul.fp32_precision,
        "convolutions": backends.cudnn.conv.fp32_precision,
        "benchmark": backends.cudnn.benchmark,
        "deterministic": backends.cudnn.deterministic,
    }


@pytest.fixture(autouse=True)
def as_before():
    before = switches()
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = "none"
    torch.backends.cuda.matmul.fp32_precision = before["products"]
    torch.backends.cudnn.conv.fp32_precision = before["convolutions"]


def by_new_names():
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "tf32"


CHANGES = {
    "nothing": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "the new names": by_new_names,
    "all at once": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_switches_are_set_inside_and_as_before_after(change):
    CHANGES[change]()
    before = switches()
    with FULL_PRECISION:
        inside = {"products": "ieee", "convolutions": "ieee", "benchmark": False}
        assert switches() == {**inside, "deterministic": True}
    assert switches() == before


def test_the_last_of_several_threads_puts_them_back():
    before = switches()
    inside = threading.Event()
    leave = threading.Event()

    def hold():
        with FULL_PRECISION:
            inside.set()
            assert leave.wait(10)

    other = threading.Thread(target=hold)
    other.start()
    assert inside.wait(10)
    with FULL_PRECISION:
        pass
    assert switches()["products"] == "ieee"
    leave.set()
    other.join()
    assert switches() == before
