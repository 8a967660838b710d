"""Curves over time as SVG, one panel below the other."""

from __future__ import annotations

WIDTH, PANEL, LEFT, TOP = 720, 110, 60, 22
TITLES = {
    "resident_mb": "resident memory of all processes, MB",
    "engine_mb": "of it, the engine process, MB",
    "worker_0_mb": "of it, the HTTP worker, MB",
    "descriptors": "open descriptors",
    "held_blocks": "KV blocks in use",
    "gap_p99_ms": "p99 gap between the canary's tokens, ms",
}
MAX_POINTS = 600


def plot(samples: list[dict[str, float]]) -> str:
    """The samples; each has the time "s" and a value for each of TITLES."""
    step = max(1, len(samples) // MAX_POINTS)
    samples = samples[::step]
    height = len(TITLES) * (PANEL + TOP) + 30
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            'font-family="sans-serif" font-size="11">'
        ),
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for index, name in enumerate(TITLES):
        parts += _panel(samples, name, TOP + index * (PANEL + TOP))
    minutes = samples[-1]["s"] / 60
    parts.append(f'<text x="{LEFT}" y="{height - 8}">0</text>')
    parts.append(
        f'<text x="{WIDTH - 10}" y="{height - 8}" text-anchor="end">{minutes:.0f} minutes</text>'
    )
    return "\n".join([*parts, "</svg>", ""])


def _panel(samples: list[dict[str, float]], name: str, top: int) -> list[str]:
    highest = max(sample[name] for sample in samples) * 1.1 or 1.0
    last = samples[-1]["s"] or 1.0
    points = " ".join(
        f"{LEFT + sample['s'] / last * (WIDTH - LEFT - 10):.1f},"
        f"{top + PANEL - sample[name] / highest * PANEL:.1f}"
        for sample in samples
    )
    bottom = top + PANEL
    return [
        f'<text x="{LEFT}" y="{top - 6}">{TITLES[name]}</text>',
        f'<text x="{LEFT - 6}" y="{top + 8}" text-anchor="end">{highest:.4g}</text>',
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">0</text>',
        f'<path d="M{LEFT},{top}V{bottom}H{WIDTH - 10}" fill="none" stroke="#999"/>',
        f'<polyline points="{points}" fill="none" stroke="#1764ab" stroke-width="1.2"/>',
    ]
