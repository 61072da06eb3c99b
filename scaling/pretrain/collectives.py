"""The text of a compiled program -> what its devices send one another, by kind."""

import collections
import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAMES = r"[%\w.\-, ]+"
_CALLED = re.compile(
    rf"(?:body|condition|to_apply|calls|called_computations|branch_computations)="
    rf"(?:\{{({_NAMES})\}}|%?([\w.\-]+))"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-done)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


def count(program: str) -> dict[str, dict[str, int]]:
    """Collective operations of one run of a program on one device.

    Args:
      program: HLO after optimisation, as `jax.stages.Compiled.as_text` gives it.

    Returns:
      For each kind that occurs: `count`, and `bytes` of their results on one device. What stands
      in a loop counts as often as the loop turns where the compiler knows that, else once.
    """
    found, calls, entry, name = collections.defaultdict(list), {}, None, None
    for line in program.splitlines():
        if opened := _COMPUTATION.match(line):
            name = opened[2]
            calls[name], entry = [], name if opened[1] else entry
            continue
        if operation := _OPERATION.search(line):
            found[name].append((operation[2], _bytes(operation[1])))
        times = _TRIPS.search(line)
        for several, one in _CALLED.findall(line):
            for called in re.findall(r"[\w.\-]+", several or one):
                calls[name].append((called, int(times[1]) if times else 1))
    total = {kind: {"count": 0, "bytes": 0} for kind in KINDS}

    def add(name: str, times: int) -> None:
        for kind, size in found.get(name, ()):
            total[kind]["count"] += times
            total[kind]["bytes"] += times * size
        for called, turns in calls.get(name, ()):
            add(called, times * turns)

    add(entry, 1)
    return {kind: sums for kind, sums in total.items() if sums["count"]}


def _bytes(shapes: str) -> int:
    """Of an array, "f32[4,20]{1,0}", or of several, "(f32[4], bf16[])"."""
    return sum(
        math.prod(int(n) for n in shape.split(",") if n) * (int(bits) if bits else 8) // 8
        for _, bits, shape in _ARRAY.findall(shapes)
    )
