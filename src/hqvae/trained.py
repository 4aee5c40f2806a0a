"""A run that others use: to measure it, or for its tokens."""

import logging

from hqvae.model import HQVAE
from hqvae.run import Run

log = logging.getLogger("hqvae")


def open_trained(path: str) -> Run:
    """A run; a warning where its training has not come to its end."""
    run = Run.open(path)
    for entry in run.entries("train")[-1:]:
        total = entry.get("total", 0)
        if entry["step"] < total:
            step = entry["step"]
            log.warning("run %s is not finished: it stands at step %d of %d", path, step, total)
    return run


def load_with_digest(run: Run) -> tuple[str, HQVAE]:
    """(the digest of the weights, the model). Training may save others at any moment."""
    run.load_model()  # which mends weights that are missing or damaged
    while True:
        weights = run.weights_sha256()
        model = run.load_model()
        if run.weights_sha256() == weights:
            return weights, model
