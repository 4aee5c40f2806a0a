"""Going on with a run: with which settings, and for how long."""

import logging
from dataclasses import replace

from hqvae.config import Config
from hqvae.errors import InputError
from hqvae.overrides import differences, override, setting
from hqvae.presets import preset as preset_named
from hqvae.run import CHANGEABLE, Run

logger = logging.getLogger("hqvae")
_SHOWN = 3  # settings that a message names


def resumed_config(out: str, preset: str | None, settings: list[str], source: str | None) -> Config:
    """The config that a run goes on with: its own, and what is said anew.

    Args:
        out: folder of the run
        preset: as at the start, or None
        settings: `key=value`; with a preset all those of the start
        source: where the data are now; where they were, if None

    Raises InputError where there is no run, and for settings that cannot be.
    """
    Run.check_begun(out)
    run = Run.open(out)
    own = run.config
    if preset is not None and settings:
        config = override(_with_source(preset_named(preset), own.data.source), settings)
    else:
        config = override(own, settings)
        if preset is not None:
            _say_own(run, preset)
    return config if source is None else _with_source(config, source)


def _with_source(config: Config, source: str) -> Config:
    return replace(config, data=replace(config.data, source=source))


def _say_own(run: Run, preset: str) -> None:
    """A preset alone may be less than the run began with: its own settings count, and it is said.

    Where data are and what size they have is not the preset's to say.
    """
    changed = differences(preset_named(preset), run.config)
    own = [setting(key, now) for key, (_, now) in changed.items() if not key.startswith("data.")]
    if own:
        rest = f" and {len(own) - _SHOWN} more" if len(own) > _SHOWN else ""
        logger.warning(
            "run %s goes on with its own settings, which are not all those of preset %s: %s%s",
            run.path,
            preset,
            ", ".join(own[:_SHOWN]),
            rest,
        )


def check_length(before: Config, now: Config, items: int, step: int) -> None:
    """Raises InputError where a run of another length cannot go on from here.

    A phase that has begun must not begin again, nor one that lies ahead be passed over. Rate and
    temperature go on as they are at this step in a run of the new length: where they would have
    been others until here, that is said.
    """
    then = before.train.total_steps(items)
    total = now.train.total_steps(items)
    if then == total or step == 0:
        return
    what = f"the run is one of {then} steps, and is at step {step}"
    if total < step:
        raise InputError(
            f"{what}: it cannot end at step {total}; expected {step} or more, or a new run"
        )
    phases = now.phases
    starts = {"codebooks start": phases.quantize_from, "nearest codes begin": phases.nearest_from}
    for name, start in starts.items():
        if (start(then) < step) != (start(total) < step):
            raise InputError(
                f"{what}: in one of {total} steps {name} at step {start(total)}, not "
                f"{start(then)}; expected {then} steps as before, or a new run"
            )
    if changed := _other_past(now, then, total, step):
        logger.warning(
            "%s: a run of %d from the start would have had another %s until here",
            what,
            total,
            " and another ".join(changed),
        )


def _other_past(now: Config, then: int, total: int, step: int) -> list[str]:
    """What of the past depends on the length, in words."""
    phases = now.phases
    temperature = phases.temperature
    falls = temperature.decay is None and temperature.start != temperature.end
    sampled = now.model.quantizer.stochastic and phases.quantize_from(then) < step
    starts = (phases.quantize_from, phases.nearest_from)
    reasons = {
        "rate": now.train.schedule != "constant",
        "temperature": sampled and falls,
        "length of its phases": any(min(s(then), step) != min(s(total), step) for s in starts),
    }
    return [name for name, holds in reasons.items() if holds]


def say_changes(run: Run, now: Config, step: int) -> bool:
    """Whether anything differs from the run's config; it is said, and kept in the log."""
    changed = {
        key: change for key, change in differences(run.config, now).items() if key in CHANGEABLE
    }
    for key, (before, after) in changed.items():
        logger.warning("run %s goes on with %s=%s (%s before)", run.path, key, after, before)
    if changed:
        settings = [setting(key, after) for key, (_, after) in changed.items()]
        run.log({"kind": "changed", "step": step, "settings": settings})
    return bool(changed)
