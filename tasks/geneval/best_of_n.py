"""Best of N from one pool of judged pictures (SANA-1.5 section 2.5).

The paper draws N pictures and lets a judge compare them pairwise until 4 are left, which are scored as GenEval's 4
pictures; here the one best picture counts. A judge that gives each picture a score of its own needs no tournament: the
highest score wins. And one pool of N pictures holds the whole curve below N: the score of
"best of n" is its expectation over all C(N, n) ways to draw n of the pool, which order statistics give exactly.

Shapes: P prompts, N pictures of each prompt's pool. A score of NaN is an abstention: it never wins, and a draw of
nothing but abstentions chooses no picture and counts as wrong. Equal scores are won by the lower index.
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def ranking(scores_PN: Floats) -> Integers:
    """Indices (P, N) of each prompt's pictures, best first; ties by index, abstentions last."""
    return np.argsort(-np.asarray(scores_PN, dtype=np.float64), axis=1, kind="stable")  # NaN sorts last


def select(scores_PN: Floats) -> Integers:
    """Index (P,) of the picture that wins each pool; -1 where the judge abstained on all of it."""
    winner_P = ranking(scores_PN)[:, 0]
    abstained = np.isnan(np.take_along_axis(np.asarray(scores_PN), winner_P[:, None], axis=1)[:, 0])
    return np.where(abstained, -1, winner_P)


def win_probabilities(pool: int, n: int) -> Floats:
    """Probability (N,) that each rank is the best of `n` drawn without replacement: C(N-1-rank, n-1) / C(N, n).

    Raises ValueError unless 1 <= n <= pool.
    """
    if not 1 <= n <= pool:
        raise ValueError(f"best of {n} cannot be drawn from a pool of {pool}: n must be in [1, {pool}]")
    draws = math.comb(pool, n)
    return np.array([math.comb(pool - 1 - rank, n - 1) / draws for rank in range(pool)])


def best_of(correct_PN: Floats, scores_PN: Floats, n: int) -> Floats:
    """Expected correctness (P,) of the picture that the scores choose among `n` of each pool.

    The score itself may be the correctness: that is the oracle, 1 - C(N-k, n)/C(N, n) for k correct pictures.
    """
    counted_PN = np.where(np.isnan(scores_PN), 0.0, correct_PN)
    ranked_PN = np.take_along_axis(counted_PN, ranking(scores_PN), axis=1)
    return ranked_PN @ win_probabilities(ranked_PN.shape[1], n)


def best_of_chance(correct_PN: Floats) -> Floats:
    """Expected correctness (P,) of a picture chosen blindly among any number: the pool's mean."""
    return np.asarray(correct_PN, dtype=np.float64).mean(axis=1)


def other_prompts(prompts: int, rng: np.random.Generator) -> Integers:
    """For each of `prompts` another one (P,), every prompt used once: a random cycle, so none keeps its own.

    A judge asked about the wrong prompt shows how much of its gain comes from reading the prompt.
    Raises ValueError below 2.
    """
    if prompts < 2:
        raise ValueError(f"{prompts} prompts cannot be shuffled: at least 2 are needed")
    cycle = rng.permutation(prompts)
    others = np.empty(prompts, dtype=np.int64)
    others[cycle] = np.roll(cycle, 1)
    return others
