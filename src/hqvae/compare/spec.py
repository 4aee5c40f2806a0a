"""What is compared: systems × cases × seeds, every run's whole config, and the refusal of what would not be a comparison.

A spec is a YAML file:

    title: Residual systems on CIFAR-10
    settings: {train.steps: 3000}               # of every run
    systems:
      RSQ-VAE: {preset: rsqvae}
      RQ-VAE: {preset: rqvae, settings: {model.quantizer.restart: false}}
    cases:                                      # optional: the same systems under several settings, a sweep
      L = 1: {model.levels.0.layers: 1}
      L = 4: {model.levels.0.layers: 4}
    seeds: [0, 1, 2]
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass as config

from hqvae.config import (
    Config,
    explain,
    flatten,
    override,
    preset,
    refuse_contradictions,
    setting,
    to_dict,
)
from hqvae.data import SPLITS
from hqvae.errors import InputError, nearest_name
from hqvae.model import HQVAE

_SAME = ("model.net", "model.channels", "model.axes", "data", "train.steps", "train.epochs", "train.batch_size", "train.precision")


@config(frozen=True, config=ConfigDict(extra="forbid"))
class System:
    """A preset, and what is set on top of it."""

    preset: str
    settings: dict[str, Any] = Field(default_factory=dict)


@config(frozen=True, config=ConfigDict(extra="forbid"))
class Spec:
    """What a comparison is made of.

    Args:
        systems: by the names that tables give them
        title: one line
        settings: of every run, key → value as in `key=value`
        cases: name → settings on top; every system is compared within each case. One nameless case when there is none
        seeds: of weights, noise and data order; the same for every system, so that differences are paired
        split: that the figures are of; `validation` while anything is being tuned
        reference: the system whose differences to the others are given; the first when not named
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
    def ours(self) -> str:
        """The name of the system that the others are measured against."""
        return self.reference or next(iter(self.systems))

    def narrowed(
        self, split: str | None = None, seeds: int | None = None, settings: Sequence[str] = (), only: Sequence[str] = ()
    ) -> "Spec":
        """This spec on another split, with its first `seeds` seeds, `key=value` settings over all others, and of its systems and of
        its cases only those that `only` names (all where it names none).

        Raises InputError where that cannot be.
        """
        if split is not None and split not in SPLITS:
            raise InputError(f"split {split!r} does not exist; {nearest_name(split, SPLITS)}")
        if seeds is not None and not 1 <= seeds <= len(self.seeds):
            raise InputError(f"seeds={seeds}: the spec has {len(self.seeds)}; expected 1 to {len(self.seeds)}")
        for name in only:
            if name not in self.systems and name not in self.cases:
                raise InputError(
                    f"{name!r} is no system or case of the spec; {nearest_name(name, filter(None, [*self.systems, *self.cases]))}"
                )
        systems = {name: system for name, system in self.systems.items() if name in only} or self.systems
        cases = {name: case for name, case in self.cases.items() if name in only} or self.cases
        return replace(
            self, split=cast(Any, split or self.split), seeds=self.seeds[:seeds], last=(*self.last, *settings), systems=systems,
            cases=cases, reference=self.reference if self.reference in systems else "",
        )  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One run of the comparison: its place in the grid, the command's settings, and the config that they make."""

    case: str
    system: str
    seed: int
    preset: str
    settings: tuple[str, ...]
    config: Config

    @property
    def name(self) -> str:
        """Of its folder: `l-4-rsq-vae-seed0`."""
        return name_of(self.case, self.system, self.seed)

    @property
    def title(self) -> str:
        """For people: `L = 4, RSQ-VAE, seed 0`."""
        return ", ".join(part for part in (self.case, self.system, f"seed {self.seed}") if part)


def read_spec(path: str) -> Spec:
    """The spec in a YAML file. Raises InputError, in one sentence, for a file that is none."""
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError as error:
        beside = [p.name for p in Path(path).parent.glob("*.yaml")] if Path(path).parent.is_dir() else []
        raise InputError(f"spec {path!r} does not exist" + (f"; {nearest_name(Path(path).name, beside)}" if beside else "")) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"spec {path!r} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise InputError(f"spec {path!r} holds no mapping; expected at least `systems:`, each with a `preset:`")
    try:
        spec = TypeAdapter(Spec).validate_python(tree)
    except ValidationError as error:
        raise InputError(f"spec {path!r}: {explain(error)}") from error
    if spec.ours not in spec.systems:
        raise InputError(f"spec {path!r}: reference {spec.reference!r} is no system of it; {nearest_name(spec.reference, spec.systems)}")
    return spec


def entries(spec: Spec, data: str) -> list[Entry]:
    """All runs: seed by seed, so that a comparison that is cut off has whole rounds.

    Raises InputError for settings that make no config, and for systems that cannot be compared: another net, other data, another
    length of training, or, with `rates` equal, another rate.
    """
    grid = [
        _entry(spec, case, system, seed, data)
        for seed in spec.seeds for case in spec.cases for system in spec.systems
    ]  # fmt: skip
    names = [entry.name for entry in grid]
    twice = next((entry for entry in grid if names.count(entry.name) > 1), None)
    if twice is not None:
        raise InputError(f"{twice.title!r} and another run would both be called {twice.name!r}; rename the case or the system")
    first_round = grid[: len(spec.cases) * len(spec.systems)]
    for case in spec.cases:
        _refuse_unlike([entry for entry in first_round if entry.case == case], spec.rates)
    for entry in first_round:
        try:
            HQVAE(entry.config.model)
        except (ValueError, ImportError) as error:  # a codebook size that a quantizer cannot have; an extra that is missing
            raise InputError(f"{entry.title}: {error}") from error
    return grid


def bits_per_point(entry: Entry) -> float:
    """Rate Σ_l log2 K_l / stride_l^axes, in bits per pixel or sample point, before entropy coding."""
    return entry.config.model.bits_per_point


def _entry(spec: Spec, case: str, system: str, seed: int, data: str) -> Entry:
    chosen = spec.systems[system]
    merged: dict[str, Any] = {}
    for key, value in (pair for part in (spec.settings, spec.cases[case], chosen.settings) for pair in part.items()):
        merged.pop(key, None)  # so that it stands where it was said last: a whole `model.levels` wipes what stands before it
        merged[key] = value
    settings = (*(setting(key, value) for key, value in merged.items()), *spec.last, setting("train.seed", seed))
    for taken, instead in (("data.source", "--data"), ("train.seed", "seeds")):
        if taken in merged or any(word.split("=")[0].strip() == taken for word in spec.last):
            raise InputError(f"{taken} cannot be set in a comparison, which has {instead} for it")
    try:
        before = preset(chosen.preset)
        made = override(replace(before, data=replace(before.data, source=data)), list(settings))  # as the command of the run does it
        refuse_contradictions(made)
        if made.data.source != data:
            raise InputError("a whole `data` sets data.source too, for which a comparison has --data; expected keys such as data.size")
    except InputError as error:
        raise InputError(f"{', '.join(part for part in (case, system) if part)}: {error}") from error
    return Entry(case, system, seed, chosen.preset, settings, made)


def _refuse_unlike(group: list[Entry], rates: str) -> None:
    one = group[0]
    for other in group[1:]:
        mine, theirs = (
            {key: value for key, value in flatten(to_dict(e.config)).items() if key.startswith(_SAME)} for e in (one, other)
        )  # fmt: skip
        for key in sorted(mine | theirs):
            if mine.get(key) != theirs.get(key):
                raise InputError(f"{one.title} has {key}={mine.get(key)}, {other.title} has {theirs.get(key)}: that is no comparison")
        if rates == "equal" and abs(bits_per_point(one) - bits_per_point(other)) > 1e-9:
            raise InputError(
                f"{one.title} has {bits_per_point(one):.6g} bits per sample point, {other.title} {bits_per_point(other):.6g}; "
                "expected equal rates (or rates: any)"
            )


def name_of(case: str, system: str, seed: int) -> str:
    """A run's name among the files of its comparison."""
    return "-".join(part for part in (plain(case), plain(system), f"seed{seed}") if part)


def plain(name: str) -> str:
    """A name as a part of a file's: `L = 4` → `l-4`."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
