"""Going on with a run: with which settings, and when it may become longer."""

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


def check_same_past(before: Config, now: Config, items: int, step: int) -> None:
    """Raises InputError where a run of another length would have gone another way until here.

    A run that becomes longer must be what one of that length from the start would be. So nothing
    that was done may depend on the length: the rate, phases by fraction, the temperature.
    """
    then = before.train.total_steps(items)
    total = now.train.total_steps(items)
    if then == total or step == 0:
        return
    what = f"the run was begun for {then} steps, and is at step {step}"
    advice = f"expected {then} steps as before, or a new run"
    if total < step:
        raise InputError(f"{what}: it cannot end at step {total}; {advice}")
    phases = now.phases
    starts = {"codebooks start": phases.quantize_from, "nearest codes begin": phases.nearest_from}
    for name, start in starts.items():
        if min(start(then), step) != min(start(total), step):
            raise InputError(
                f"{what}: in one of {total} steps {name} at step {start(total)}, not "
                f"{start(then)}; {advice}"
            )
    if now.train.schedule == "cosine":
        raise InputError(
            f"{what}: its rate fell by a cosine to zero there, and would fall later in one of "
            f"{total}; {advice} (with train.schedule=constant or plateau it can go on)"
        )
    temperature = phases.temperature
    falls = temperature.decay is None and temperature.start != temperature.end
    if now.model.quantizer.stochastic and falls:
        raise InputError(
            f"{what}: its temperature falls until there, and would fall later in one of {total}; "
            f"{advice} (with phases.temperature.decay it can go on)"
        )


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
