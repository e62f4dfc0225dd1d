"""The results as a table."""

import statistics
from typing import Any

from benchmarks.chaos.plan import Fault


def summary(faults: list[Fault]) -> list[dict[str, Any]]:
    """Return per kind how often it was injected and the seconds until the next checkpoint."""
    rows = []
    for name in sorted({fault.kind for fault in faults}):
        own = [fault for fault in faults if fault.kind == name]
        times = sorted(fault.recovered for fault in own if fault.recovered is not None)
        rows.append(
            {
                "kind": name,
                "injected": len(own),
                "recovered": len(times),
                "median_seconds": round(statistics.median(times), 1) if times else None,
                "longest_seconds": times[-1] if times else None,
            }
        )
    return rows


def table(result: dict[str, Any]) -> str:
    """Return the results as text."""
    lines = [f"{'fault':<22}{'injected':>9}{'recovered':>10}{'median s':>10}{'longest s':>10}"]
    for row in result["faults"]:
        lines.append(
            f"{row['kind']:<22}{row['injected']:>9}{row['recovered']:>10}"
            f"{row['median_seconds'] or '-':>10}{row['longest_seconds'] or '-':>10}"
        )
    injected, recovered = (
        sum(r[key] for r in result["faults"]) for key in ("injected", "recovered")
    )
    lines.append(f"{'all':<22}{injected:>9}{recovered:>10}")
    codes = ", ".join(f"{count} x {code}" for code, count in result["driver_exit_codes"].items())
    broken = sum(sum(counts.values()) for counts in result["requests_broken"].values())
    lines += [
        "",
        f"steps                 {result['steps']}",
        f"undisturbed           {result['seconds_undisturbed']:.0f} s",
        f"with faults           {result['seconds_disturbed']:.0f} s",
        f"exits of the driver   {codes}",
        f"requests broken       {broken}",
        f"unfinished uploads    {result['unfinished_uploads']}",
        "",
    ]
    for check in result["checks"]:
        lines.append(f"{'pass' if check['passed'] else 'FAIL'}  {check['name']}")
        lines += [f"      {check['problem'][:2000]}"] if check["problem"] else []
    return "\n".join(lines)
