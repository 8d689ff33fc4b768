"""Means and paired differences of models over the seeds of a sweep, with 95 % intervals by Student's t.

    python -m flows.sweep seeds
    python benchmarks/seed_differences.py [results/sweeps/seeds/table.csv]

Prints each model's score over seeds, and the difference of every two models seed by seed, for one picture and for the
best of several.
"""

import argparse
import csv
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.stats import t


def read_scores(table: Path) -> dict[tuple[str, int], dict[int, float]]:
    """The scores of a sweep's table, by (model, pictures to choose from) and then by seed."""
    scores: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
    with open(table, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["state"] == "done":
                scores[row["model"], int(row["pictures"])][int(row["seed"])] = float(row["score"])
    return scores


def in_words(values: np.ndarray) -> str:
    """Mean, its interval, and the standard deviation of values of several seeds."""
    mean, deviation = values.mean(), values.std(ddof=1)
    half = t.ppf(0.975, len(values) - 1) * deviation / np.sqrt(len(values))
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}], standard deviation {deviation:.3f}"


def main() -> None:
    """Print the means of all models, then the differences of all pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, nargs="?", default=Path("results/sweeps/seeds/table.csv"))
    scores = read_scores(parser.parse_args().table)
    seeds = sorted(set.intersection(*(set(of_seed) for of_seed in scores.values())))
    if len(seeds) < 2:
        parser.error("an interval needs at least two seeds with all models")
    values = {key: np.array([of_seed[seed] for seed in seeds]) for key, of_seed in scores.items()}
    print(f"seeds {seeds}")
    for (model, pictures), found in values.items():
        print(f"{model}, best of {pictures}: {in_words(found)}")
    for (one, pictures), (other, as_many) in combinations(values, 2):
        if pictures == as_many:
            difference = values[other, pictures] - values[one, pictures]
            print(f"{other} - {one}, best of {pictures}: {in_words(difference)}")


if __name__ == "__main__":
    main()
