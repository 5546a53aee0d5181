"""A recorded run as SVG: what a flow and a packet cost, by the number of forwards."""

import math
from typing import Any

KINDS = {
    "ours": ("#1f5fa8", "virt-forward"),
    "linear": ("#b3791a", "a DNAT and an accept rule each"),
    "none": ("#777", "routed, no forward"),
}
PANELS = {"new": "a new flow", "packets": "a packet of an established flow"}
WIDTH, HEIGHT, TOP = 360, 260, 60
LOW, HIGH = 1.0, 1000.0
"""Microseconds at the ends of the vertical axis."""


def draw(recorded: dict[str, Any]) -> str:
    """Return the plot of a run that ``run --json`` wrote."""
    parts = [_panel(number, name, recorded["packets"][name]) for number, name in enumerate(PANELS)]
    legend = [
        f'<rect x="{40 + 270 * n}" y="372" width="14" height="4" fill="{colour}"/>'
        f'<text x="{60 + 270 * n}" y="379">{text}</text>'
        for n, (colour, text) in enumerate(KINDS.values())
    ]
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 400" font-size="13" '
            'font-family="system-ui, sans-serif" role="img" aria-labelledby="t">',
            '<title id="t">Microseconds a flow and a packet, by the number of forwards</title>',
            '<rect width="880" height="400" fill="#fff"/>',
            *parts,
            *legend,
            f'<text x="860" y="396" text-anchor="end" fill="#777">kernel {recorded["kernel"]}</text>',
            "</svg>\n",
        ]
    )


def _panel(number: int, name: str, series: dict[str, dict[str, float]]) -> str:
    left = 60 + number * 440
    lines = [f'<text x="{left}" y="36" font-weight="600">{PANELS[name]}, µs</text>']
    for value in (1, 10, 100, 1000):
        y = _y(value)
        lines.append(f'<path d="M{left} {y:.1f}H{left + WIDTH}" stroke="#ddd"/>')
        lines.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{value}</text>')
    for size in series["ours"]:
        x = _x(left, int(size))
        lines.append(
            f'<text x="{x:.1f}" y="{TOP + HEIGHT + 20}" text-anchor="middle" fill="#555">{int(size):,}</text>'
        )
    lines.append(
        f'<text x="{left + WIDTH}" y="{TOP + HEIGHT + 38}" text-anchor="end" fill="#555">forwards</text>'
    )
    lines += [_line(left, colour, series[kind]) for kind, (colour, _) in KINDS.items()]
    return "\n".join(lines)


def _line(left: int, colour: str, values: dict[str, float]) -> str:
    points = [(_x(left, int(size)), _y(value)) for size, value in values.items()]
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}'


def _x(left: int, size: int) -> float:
    return left + 20 + (WIDTH - 40) * math.log10(size) / 4


def _y(value: float) -> float:
    share = math.log10(max(value, LOW) / LOW) / math.log10(HIGH / LOW)
    return TOP + HEIGHT * (1 - share)
