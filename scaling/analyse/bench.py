"""A simulated curve in; refits in a second out: 10,000 of three parameters, 1,000 of five.

The goals are 10 s and 60 s on two cores. Compilation, once in a process for each form, is told
apart: it is in "first", the seconds of the first call.
"""

import functools
import statistics
import time
from collections.abc import Callable

import numpy as np

from scaling.analyse.coverage import TRUTHS, Scenario
from scaling.analyse.forms import FORMS, columns_of, curve, searched_point
from scaling.analyse.refits import refit

NOISE = 0.01
CASES = {
    "10,000 refits of three parameters (goal: 1,000 refits/s)": (
        10_000, [("power", "raw", 6), ("power", "log", 6), ("saturating", "raw", 6)],
    ),
    "1,000 refits of five parameters (goal: 17 refits/s)": (
        1_000, [("two_variables", "raw", 4), ("two_variables", "log", 4), ("broken", "log", 9)],
    ),
}  # fmt: skip


def rows(rounds: int) -> dict[str, Callable[[], dict]]:
    """What is measured of fits, by title; measured when it is called, `rounds` times."""
    return {title: functools.partial(refits, *case, rounds) for title, case in CASES.items()}


def refits(count: int, forms, rounds: int) -> dict:
    """`count` refits of each (form, scale, sizes), in turns of `rounds`, after a first one."""
    seconds, first = {}, {}
    for form, scale, sizes in forms:
        x, x2 = Scenario(form, scale, NOISE, sizes=sizes).design()
        columns, centres = columns_of(form, x, x2)
        truth = TRUTHS.get((form, scale), TRUTHS.get((form, "log")))
        point = searched_point(form, {k: np.array([v]) for k, v in truth.items()}, centres[None])[0]
        slopes = slice(1, 1 + FORMS[form].slopes)
        point[slopes] = np.exp(point[slopes])
        noise = np.random.default_rng(0).normal(0, NOISE, (count, len(x)))
        targets = curve(form, scale, point, columns) + noise
        way, times = f"{form}, {scale}", []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            refit(form, scale, columns, targets, near=point)
            times.append(time.perf_counter() - start)
        first[way], seconds[way] = times[0], times[1:]
    return {
        "unit": "refits/s", "rates": {way: count / min(t) for way, t in seconds.items()},
        "seconds": {
            way: {"first": first[way], "least": min(t), "median": statistics.median(t)}
            for way, t in seconds.items()
        },
    }  # fmt: skip
