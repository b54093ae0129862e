"""Samplers of diffusion models as tables, so that one step is the same few operations inside `lax.scan`.

All three work on the v prediction (Salimans & Ho 2022) and without added noise:

- "plms": pseudo linear multistep (Liu et al. 2022), as diffusers' PNDMScheduler with `skip_prk_steps`; takes
  one evaluation more than there are steps.
- "ddim": Song et al. 2021 with η = 0.
- "dpm++": DPM-Solver++(2M) (Lu et al. 2022), as diffusers' DPMSolverMultistepScheduler by default.

In each, the next latents are a linear combination of the latents and of a few evaluations of the network; a
row of the table holds its coefficients, made in float64 on the host.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from anygpt_tokenizers.cli import UserError

COSINE = "squaredcos_cap_v2"
BETA_KINDS = ("linear", "scaled_linear", COSINE)
HISTORY = 4  # evaluations that a step can combine
ADAMS_BASHFORTH = [[1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]


@dataclasses.dataclass(frozen=True)
class NoiseSpec:
    """How noise grows with the diffusion time; the defaults are those of Stable Diffusion 2.1.

    Attributes:
      times: diffusion times of the training.
      kind: "linear", "scaled_linear" or "squaredcos_cap_v2".
      first, last: the smallest and the largest β, where the kind has them.
      offset: what is added to every time that is visited ("steps_offset").
      end_clean: whether the last step ends at no noise at all, or at that of time 0 ("set_alpha_to_one").
    """

    times: int = 1000
    kind: str = "scaled_linear"
    first: float = 0.00085
    last: float = 0.012
    offset: int = 1
    end_clean: bool = False


class Table(NamedTuple):
    """The coefficients of every evaluation, in order; all have the number of evaluations S in front.

    time: int32 [S], when the network is evaluated.
    convert: [S, 2]; what is remembered of an evaluation is convert · (latents, prediction).
    weights: [S, 4], of what is remembered, this evaluation first, in their combination.
    update: [S, 2]; the next latents are update · (latents, combination).
    again: bool [S]; such a step starts from the latents before the last step, and is not remembered.
    """

    time: np.ndarray
    convert: np.ndarray
    weights: np.ndarray
    update: np.ndarray
    again: np.ndarray


class State(NamedTuple):
    """latents, and those before the last step [B, H, W, C]; the evaluations remembered [3, B, H, W, C]."""

    latents: jax.Array
    before: jax.Array
    history: jax.Array


def signal(spec: NoiseSpec) -> np.ndarray:
    """Share of the signal in the latents' variance (ᾱ) by time, float32 [times]."""
    if spec.kind == COSINE:
        bar = [math.cos((i / spec.times + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(spec.times + 1)]
        betas = np.minimum(1 - np.divide(bar[1:], bar[:-1]), 0.999)
    elif spec.kind == "scaled_linear":
        roots = np.linspace(spec.first**0.5, spec.last**0.5, spec.times, dtype=np.float32)
        betas = roots**2
    elif spec.kind == "linear":
        betas = np.linspace(spec.first, spec.last, spec.times)
    else:
        raise UserError(f"The noise schedule {spec.kind!r} is unknown.")
    # The originals hold β and 1 - β in float32; the product of a thousand of them shows it.
    alphas = np.float32(1) - betas.astype(np.float32)
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)


def plms(spec: NoiseSpec, steps: int) -> Table:
    """steps + 1 evaluations (1, where there is one step): the second step is done twice."""
    times, stride = _leading_times(spec, steps)
    times = np.concatenate([times[:1], times[1:2], times[1:]])
    rows = []
    for index, time in enumerate(times.tolist()):
        again = index == 1
        weights = [0.5, 0.5] if again else ADAMS_BASHFORTH[min(max(index, 1), HISTORY) - 1]
        start, end = (time + stride, time) if again else (time, time - stride)
        rows.append((time, (0.0, 1.0), weights, _transfer(*_pair(spec, start, end)), again))
    return _table(rows)


def ddim(spec: NoiseSpec, steps: int) -> Table:
    """As many evaluations as steps."""
    times, stride = _leading_times(spec, steps)
    rows = []
    for time in times.tolist():
        now, then = _pair(spec, time, time - stride)
        cos, sin = np.sqrt(now), np.sqrt(1 - now)
        next_cos, next_sin = np.sqrt(then), np.sqrt(1 - then)
        update = (next_cos * cos + next_sin * sin, next_sin * cos - next_cos * sin)
        rows.append((time, (0.0, 1.0), [1.0], update, False))
    return _table(rows)


def dpm(spec: NoiseSpec, steps: int) -> Table:
    """As many evaluations as steps; times are spread evenly over all and the end is clean."""
    if not 1 <= steps < spec.times:
        raise UserError(f"num_inference_steps of 'dpm++' lies in 1..{spec.times - 1}; it is {steps}.")
    times = np.linspace(0, spec.times - 1, steps + 1).round()[:0:-1].astype(np.int64)
    bar = signal(spec).astype(np.float64)[times]
    cos, sin = np.sqrt(np.append(bar, 1.0)), np.sqrt(np.append(1 - bar, 0.0))
    half_log_snr = np.log(cos[:-1]) - np.log(sin[:-1])
    rows = []
    for index, time in enumerate(times.tolist()):
        convert = (cos[index], -sin[index])
        ratio = sin[index + 1] / sin[index]
        update = (ratio, cos[index + 1] - ratio * cos[index])
        if index in (0, steps - 1):
            weights = [1.0]
        else:
            ahead, behind = np.diff(half_log_snr)[[index, index - 1]]
            weights = [1 + 0.5 * ahead / behind, -0.5 * ahead / behind]
        rows.append((time, convert, weights, update, False))
    return _table(rows)


SCHEDULES = {"plms": plms, "ddim": ddim, "dpm++": dpm}


def make_table(name: str, spec: NoiseSpec, steps: int) -> Table:
    """The table of a sampler; UserError if there is no such sampler or it can't take so many steps."""
    if name not in SCHEDULES:
        raise UserError(f"There is no schedule {name!r}; choose {', '.join(SCHEDULES)}.")
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer):
        raise UserError(f"num_inference_steps is a whole number, not {steps!r}.")
    return SCHEDULES[name](spec, int(steps))


def start(latents: jax.Array) -> State:
    """The state before the first evaluation at latents of unit variance."""
    return State(latents, latents, jnp.zeros((HISTORY - 1, *latents.shape), latents.dtype))


def advance(state: State, row: Table, prediction: jax.Array) -> State:
    """The state after one evaluation, whose coefficients `row` has, at `state.latents`."""
    base = jnp.where(row.again, state.before, state.latents)
    evaluation = row.convert[0] * state.latents + row.convert[1] * prediction
    history = jnp.concatenate([evaluation[None], state.history])
    combined = jnp.tensordot(row.weights, history, 1, precision=jax.lax.Precision.HIGHEST)
    latents = row.update[0] * base + row.update[1] * combined
    return State(latents, state.latents, jnp.where(row.again, state.history, history[:-1]))


def _leading_times(spec: NoiseSpec, steps: int) -> tuple[np.ndarray, int]:
    """Times from the latest on, and their distance."""
    if not 1 <= steps <= spec.times or (steps - 1) * (spec.times // steps) + spec.offset >= spec.times:
        why = f", and the model's times begin at {spec.offset}" if spec.offset > 1 else ""
        raise UserError(f"num_inference_steps lies in 1..{spec.times - 1}; it is {steps}{why}.")
    stride = spec.times // steps
    return (np.arange(steps) * stride + spec.offset)[::-1], stride


def _pair(spec: NoiseSpec, now: int, then: int) -> tuple[np.float64, np.float64]:
    """ᾱ at two times, of which the second may lie before 0."""
    bar = signal(spec).astype(np.float64)
    end = 1.0 if spec.end_clean else bar[0]
    return bar[now], bar[then] if then >= 0 else np.float64(end)


def _transfer(now: np.float64, then: np.float64) -> tuple[float, float]:
    """Formula (9) of Liu et al. in terms of (latents, v), from ᾱ `now` to `then`."""
    by_noise = (then - now) / (now * np.sqrt(1 - then) + np.sqrt(now * (1 - now) * then))
    return np.sqrt(then / now) - by_noise * np.sqrt(1 - now), -by_noise * np.sqrt(now)


def _table(rows: list[tuple]) -> Table:
    time, convert, weights, update, again = zip(*rows, strict=True)
    padded = [[*row, *[0.0] * (HISTORY - len(row))] for row in weights]
    floats = [np.asarray(part, np.float32) for part in (convert, padded, update)]
    return Table(np.asarray(time, np.int32), *floats, np.asarray(again))
