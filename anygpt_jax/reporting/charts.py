"""Line charts as SVG text."""

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 118, 14, 34
_LABEL_GAP = 15  # pixels between the names at the ends of lines

Points = Sequence[tuple[float, float]]


def line_chart(
    series: Mapping[str, Points], colors: Mapping[str, str], y_label: str, log: bool = False
) -> str:
    """One SVG with a line per series, named at its right end.

    Args:
      series: name → (x, y) points in order of x; x is a training step.
      colors: name → CSS colour.
      y_label: written above the axis.
      log: logarithmic y, for positive values (others are left out).
    """
    if log:
        series = {name: [(x, y) for x, y in points if y > 0] for name, points in series.items()}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    x_ticks = _linear_ticks(0, max(xs))
    low, high = (min(ys) / 1.1, max(ys) * 1.1) if log else (0.0, max(*ys, 1e-9))
    y_ticks = _log_ticks(low, high) if log else _linear_ticks(low, high)

    def place_x(x: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * x / max(*x_ticks, *xs, 1)

    def place_y(y: float) -> float:
        fraction = math.log(y / low) / math.log(high / low) if log else (y - low) / (high - low)
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * fraction

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(y_label)}">']
    for tick in y_ticks:
        y = place_y(tick)
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x = place_x(tick)
        y = HEIGHT - _BOTTOM + 18
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{tick:,.0f}</text>')
    ends = _spread({name: place_y(points[-1][1]) for name, points in series.items()})
    for name, points in series.items():
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in points)
        color = colors.get(name, "#555")
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{path}"/>')
        x = place_x(points[-1][0]) + 8
        parts.append(f'<text x="{x:.1f}" y="{ends[name] + 4:.1f}" fill="{color}">{html.escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def _linear_ticks(low: float, high: float) -> list[float]:
    """About five round numbers from low to high."""
    span = (high - low) or 1.0
    rough = span / 5
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(step * magnitude for step in (1, 2, 2.5, 5, 10) if step * magnitude >= rough)
    return [low + step * i for i in range(math.floor(span / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in the range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def _spread(heights: Mapping[str, float]) -> dict[str, float]:
    """Moves labels down where they would overlap, and all up again if they left the chart."""
    placed: dict[str, float] = {}
    previous = -math.inf
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        previous = max(height, previous + _LABEL_GAP)
        placed[name] = previous
    overflow = max(0.0, previous - (HEIGHT - _BOTTOM))
    return {name: height - overflow for name, height in placed.items()}
