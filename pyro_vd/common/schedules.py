"""Weights of the KL over a run: functions of the step that need no array library, for numbers and for traced arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro_vd.common.options import as_number, check_count, check_number, shown


@dataclass(frozen=True)
class LinearWarmUp:
    """What :func:`linear_warm_up` returns: call it with the step."""

    begin: float
    end: float
    num_steps: int | None = None

    def __call__(self, step: Any) -> Any:
        """The weight of the KL at a step, 0 to 1."""
        done = _as_float(step) / (self.num_steps or 1)
        return _clip((done - self.begin) / (self.end - self.begin))


@dataclass(frozen=True)
class Cyclic:
    """What :func:`cyclic` returns: call it with the step."""

    num_steps: int
    num_cycles: int = 4
    rise: float = 0.5

    def __call__(self, step: Any) -> Any:
        """The weight of the KL at a step, 0 to 1."""
        cycles = _as_float(step) * self.num_cycles / self.num_steps
        whole = cycles - cycles % 1
        last = self.num_cycles - 1
        return _clip((cycles - _clip(whole / last) * last if last else cycles) / self.rise)


@dataclass(frozen=True)
class Constant:
    """What :func:`constant` returns: call it with the step."""

    value: float = 1.0

    def __call__(self, step: Any) -> Any:
        """The weight, whatever the step."""
        return 0 * _as_float(step) + self.value


def linear_warm_up(begin: float, end: float, num_steps: int | None = None) -> LinearWarmUp:
    """The weight of the KL is 0 until ``begin``, rises linearly, and is 1 from ``end`` on.

    ``kl_weight(step) = clip((step / num_steps - begin) / (end - begin), 0, 1)``

    Args:
        begin, end: steps, counted from 0; with ``num_steps``, shares of the run, 0 to 1.
        num_steps: steps of the run. With 1 the schedule is called with the share of the run that is done.

    Returns:
        A function of the step, a whole number or an array of them: pure, hashable, comparable, and traceable by JAX.

    Raises:
        ValueError: shares of a run without ``num_steps``; an ``end`` that is not after ``begin``, or that is after the
            run, which would never have the weight 1.

    Example:
        >>> kl_weight = linear_warm_up(100, 300)
        >>> kl_weight(0), kl_weight(200), kl_weight(500)
        (0.0, 0.5, 1.0)
        >>> linear_warm_up(0.25, 0.75, num_steps=1000)(500)
        0.5

    References:
        Sønderby et al. 2016, Ladder Variational Autoencoders, arXiv:1602.02282.

    See also:
        :func:`pyro_vd.training.cyclic`, :func:`pyro_vd.training.constant`.
    """
    if num_steps is not None:
        num_steps = check_count("num_steps", num_steps, 1)
        begin = check_number("begin", begin, at_least=0, at_most=1, why="a share of the run")
        end = check_number("end", end, at_least=0, at_most=1, why="a share of the run, at whose end the weight is 1")
    else:
        begin, end = check_number("begin", begin, at_least=0), check_number("end", end, at_least=0)
        if begin % 1 or end % 1 or end <= 1:
            raise ValueError(
                f"linear_warm_up: expected whole numbers of steps with an end > 1, got begin={begin:g} and end={end:g};"
                " for shares of the run write num_steps=..., the steps of the run"
            )
    if end <= begin:
        raise ValueError(f"end: expected a number > begin={begin:g}, got {end:g}; write constant() for no warm-up")
    return LinearWarmUp(begin, end, num_steps)


def cyclic(num_steps: int, num_cycles: int = 4, rise: float = 0.5) -> Cyclic:
    """The weight of the KL rises linearly from 0 to 1 in every cycle, and stays there for the rest of it.

    ``kl_weight(step) = min(1, t / rise)``, ``t`` the share of the cycle that is done; 1 after the last cycle.

    Args:
        num_steps: steps of the run. With 1 the schedule is called with the share of the run that is done.
        num_cycles: cycles of a run.
        rise: share of a cycle in which the weight rises, above 0 and at most 1.

    Returns:
        A function of the step, as of :func:`linear_warm_up`.

    Raises:
        ValueError: an argument out of its range; more cycles than steps.

    Example:
        >>> kl_weight = cyclic(400)
        >>> kl_weight(0), kl_weight(25), kl_weight(75), kl_weight(100), kl_weight(400)
        (0.0, 0.5, 1.0, 0.0, 1.0)

    References:
        Fu et al. 2019, Cyclical Annealing Schedule, arXiv:1903.10145.

    See also:
        :func:`pyro_vd.training.linear_warm_up`, :func:`pyro_vd.training.constant`.
    """
    num_steps = check_count("num_steps", num_steps, 1)
    num_cycles = check_count("num_cycles", num_cycles, 1)
    if 1 < num_steps < num_cycles:
        raise ValueError(
            f"num_cycles: expected at most the {num_steps} steps of the run, got {num_cycles}; write a smaller number"
        )
    return Cyclic(num_steps, num_cycles, check_number("rise", rise, above=0, at_most=1, why="a share of a cycle"))


def constant(value: float = 1.0) -> Constant:
    """One weight of the KL for the whole run.

    ``kl_weight(step) = value``

    Args:
        value: the weight, at least 0.

    Returns:
        A function of the step, as of :func:`linear_warm_up`.

    Raises:
        ValueError: a weight below 0, or that is not a finite number.

    Example:
        >>> constant()(7), constant(0.25)(7)
        (1.0, 0.25)

    See also:
        :func:`pyro_vd.training.linear_warm_up`, :func:`pyro_vd.training.cyclic`.
    """
    return Constant(check_number("value", value, at_least=0))


def _as_float(step: Any) -> Any:
    """A step in floating point: a number as a float, an array by its own division, which does not overflow."""
    number = None if hasattr(step, "aval") else as_number(step)  # a traced array has no value to look at
    if number is not None:
        check_number("step", number, at_least=0)
    elif not hasattr(step, "clip") or "bool" in str(getattr(step, "dtype", "")):
        raise ValueError(f"step: expected a whole number or an array of them, got {shown(step)}; count steps from 0")
    return step / 1


def _clip(weight: Any) -> Any:
    return weight.clip(0, 1) if hasattr(weight, "clip") else min(1.0, max(0.0, weight))
