"""What is compared: systems × cases × seeds, and every run's whole config.

What would be no comparison is refused. A spec is a YAML file:

    title: Residual systems on CIFAR-10
    settings: {train.steps: 3000}               # of every run
    systems:
      RSQ-VAE: {preset: rsqvae}
      RQ-VAE: {preset: rqvae}
    cases:                        # optional: the same systems under several settings, a sweep
      L = 1: {model.levels.0.layers: 1}
      L = 4: {model.levels.0.layers: 4}
    seeds: [0, 1, 2]
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from hqvae.config import Config, check_together
from hqvae.config_class import config_class
from hqvae.data import SPLITS
from hqvae.errors import InputError, nearest_name
from hqvae.model import HQVAE
from hqvae.overrides import explain, flatten, override, setting, to_dict
from hqvae.plain_yaml import read_yaml
from hqvae.presets import preset

# What all systems of a case must have in common.
_SAME = (
    "model.net",
    "model.channels",
    "model.axes",
    "data",
    "train.steps",
    "train.epochs",
    "train.batch_size",
    "train.precision",
)
# What a spec cannot set, and what does instead.
_SET_ELSEWHERE = {"data.source": "data=... for all runs", "train.seed": "seeds"}


@config_class
class System:
    """A preset, and what is set on top of it."""

    preset: str
    settings: dict[str, Any] = Field(default_factory=dict)


@config_class
class Spec:
    """What a comparison is made of.

    Args:
        systems: by the names that tables give them
        title: one line
        settings: of every run, key → value as in `key=value`
        cases: name → settings on top; systems are compared within each case. One nameless case
            if there is none
        seeds: of weights, noise and data order; the same for every system, so that differences
            are paired
        split: that the figures are of; `validation` while anything is being tuned
        reference: the system that the others are compared with; the first if not named
        rates: `equal` refuses systems of different rates within a case
        last: `key=value` settings of every run, over those of cases and systems
    """

    systems: dict[str, System] = Field(min_length=1)
    title: str = "comparison"
    settings: dict[str, Any] = Field(default_factory=dict)
    cases: dict[str, dict[str, Any]] = Field(default={"": {}}, min_length=1)
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    split: Literal["train", "validation", "test"] = "test"
    reference: str = ""
    rates: Literal["equal", "any"] = "equal"
    last: tuple[str, ...] = ()

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"expected different seeds from 0 up, not {list(seeds)}")
        return seeds

    @property
    def reference_system(self) -> str:
        """The name of the system that the others are compared with."""
        return self.reference or next(iter(self.systems))

    def select(
        self,
        split: str | None = None,
        seeds: int | None = None,
        settings: Sequence[str] = (),
        only: Sequence[str] = (),
    ) -> "Spec":
        """A part of this comparison, or the same under other settings.

        Args:
            split: that the figures are of
            seeds: only so many, the first ones
            settings: `key=value`, over all others
            only: names of systems and cases; all where none is named

        Raises InputError where that cannot be.
        """
        if split is not None and split not in SPLITS:
            raise InputError(f"split {split!r} does not exist; {nearest_name(split, SPLITS)}")
        count = len(self.seeds)
        if seeds is not None and not 1 <= seeds <= count:
            raise InputError(f"seeds={seeds}: the spec has {count}; expected 1 to {count}")
        names = [name for name in (*self.systems, *self.cases) if name]
        for name in only:
            if name not in names:
                nearest = nearest_name(name, names)
                raise InputError(f"{name!r} is no system or case of the spec; {nearest}")
        systems = {name: system for name, system in self.systems.items() if name in only}
        cases = {name: case for name, case in self.cases.items() if name in only}
        systems = systems or self.systems
        return replace(
            self,
            split=cast(Any, split or self.split),
            seeds=self.seeds[:seeds],
            last=(*self.last, *settings),
            systems=systems,
            cases=cases or self.cases,
            reference=self.reference if self.reference in systems else "",
        )


@dataclass(frozen=True)
class RunSpec:
    """One run of the comparison: where it belongs, the command's settings, and their config."""

    case: str
    system: str
    seed: int
    preset: str
    settings: tuple[str, ...]
    config: Config

    @property
    def name(self) -> str:
        """Of its folder: `l-4-rsq-vae-seed0`."""
        return run_name(self.case, self.system, self.seed)

    @property
    def title(self) -> str:
        """For people: `L = 4, RSQ-VAE, seed 0`."""
        return ", ".join(part for part in (self.case, self.system, f"seed {self.seed}") if part)

    @property
    def bits_per_point(self) -> float:
        """Rate Σ_l log2 K_l / stride_l^axes in bits per pixel or sample, before entropy coding."""
        return self.config.model.bits_per_point


def read_spec(path: str) -> Spec:
    """The spec in a YAML file. Raises InputError for a file that is none."""
    file = Path(path)
    try:
        tree = read_yaml(file.read_text())
    except FileNotFoundError as error:
        beside = [p.name for p in file.parent.glob("*.yaml")] if file.parent.is_dir() else []
        hint = f"; {nearest_name(file.name, beside)}" if beside else ""
        raise InputError(f"spec {path!r} does not exist{hint}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"spec {path!r} is not readable YAML: {error}") from error
    if not isinstance(tree, dict):
        raise InputError(
            f"spec {path!r} holds no mapping; expected at least `systems:`, each with a `preset:`"
        )
    try:
        spec = TypeAdapter(Spec).validate_python(tree)
    except ValidationError as error:
        raise InputError(f"spec {path!r}: {explain(error, Spec)}") from error
    if spec.reference_system not in spec.systems:
        nearest = nearest_name(spec.reference, spec.systems)
        raise InputError(f"spec {path!r}: reference {spec.reference!r} is no system; {nearest}")
    return spec


def run_specs(spec: Spec, data: str) -> list[RunSpec]:
    """All runs: seed by seed, so that a comparison that is cut off has whole rounds.

    Raises InputError for settings that make no config, and for systems that cannot be compared:
    another net, other data, another length of training, or, with `rates` equal, another rate.
    """
    runs = [
        _run_spec(spec, case, system, seed, data)
        for seed in spec.seeds
        for case in spec.cases
        for system in spec.systems
    ]
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            raise InputError(
                f"{run.title!r} and another run would both be called {run.name!r}; "
                "rename the case or the system"
            )
    first_round = runs[: len(spec.cases) * len(spec.systems)]
    for case in spec.cases:
        _check_comparable([run for run in first_round if run.case == case], spec.rates)
    for run in first_round:
        try:
            model = run.config.model
            HQVAE(replace(model, channels=model.channels or 1))  # of arrays it is the data's
        except (ValueError, ImportError) as error:
            # A codebook size that a quantizer cannot have, or an extra that is missing.
            raise InputError(f"{run.title}: {error}") from error
    return runs


def _run_spec(spec: Spec, case: str, system: str, seed: int, data: str) -> RunSpec:
    chosen = spec.systems[system]
    merged: dict[str, Any] = {}
    for part in (spec.settings, spec.cases[case], chosen.settings):
        for key, value in part.items():
            # Where it was said last: a whole `model.levels` replaces what stands before it.
            merged.pop(key, None)
            merged[key] = value
    last_keys = [word.split("=")[0].strip() for word in spec.last]
    for key, instead in _SET_ELSEWHERE.items():
        if key in merged or key in last_keys:
            raise InputError(f"{key} cannot be set in a comparison; expected {instead}")
    settings = [setting(key, value) for key, value in merged.items()]
    settings += [*spec.last, setting("train.seed", seed)]
    try:
        config = _config(chosen.preset, settings, data)
    except InputError as error:
        where = ", ".join(part for part in (case, system) if part)
        raise InputError(f"{where}: {error}") from error
    return RunSpec(case, system, seed, chosen.preset, tuple(settings), config)


def _config(preset_name: str, settings: list[str], data: str) -> Config:
    """As the run's own command makes it."""
    base = preset(preset_name)
    config = override(replace(base, data=replace(base.data, source=data)), settings)
    check_together(config)
    if config.data.source != data:
        raise InputError(
            "a whole `data` sets data.source too, which a comparison takes as data=...; "
            "expected keys such as data.size"
        )
    return config


def _check_comparable(runs: list[RunSpec], rates: str) -> None:
    """Raises InputError where a run differs from the first in more than its system."""
    first = runs[0]
    expected = _shared_settings(first)
    for run in runs[1:]:
        actual = _shared_settings(run)
        for key in sorted(expected | actual):
            if expected.get(key) != actual.get(key):
                raise InputError(
                    f"{first.title} has {key}={expected.get(key)}, {run.title} has "
                    f"{actual.get(key)}: that is no comparison"
                )
        if rates == "equal" and abs(first.bits_per_point - run.bits_per_point) > 1e-9:
            raise InputError(
                f"{first.title} has {first.bits_per_point:.6g} bits per sample point, "
                f"{run.title} {run.bits_per_point:.6g}; expected equal rates (or rates: any)"
            )


def _shared_settings(run: RunSpec) -> dict[str, Any]:
    settings = flatten(to_dict(run.config))
    return {key: value for key, value in settings.items() if key.startswith(_SAME)}


def run_name(case: str, system: str, seed: int) -> str:
    """A run's name among the files of its comparison.

    >>> run_name("L = 4", "RSQ-VAE", 0)
    'l-4-rsq-vae-seed0'
    """
    return "-".join(part for part in (slug(case), slug(system), f"seed{seed}") if part)


def slug(name: str) -> str:
    """A name as a part of a file's: `L = 4` → `l-4`."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
