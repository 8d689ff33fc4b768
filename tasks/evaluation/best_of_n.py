"""Best of N from one pool of judged pictures (SANA-1.5 section 2.5).

The paper draws N pictures and lets a judge compare them pairwise until 4 are left, which are scored as GenEval's 4
pictures. Here we leave the paper: the judge gives each picture a score of its own, so the highest scores win without a
tournament. `keep` says how many pictures are kept, the best one or the best four. The score of a prompt is their mean
correctness. One pool of N pictures holds the whole curve up to N: the score of "best of n" is its expectation over all
C(N, n) ways to draw n pictures of the pool, which order statistics give exactly.

Shapes: P prompts, N pictures of each prompt's pool. A score of NaN is an abstention, which never wins against a score.
If the judge abstains on all pictures of a draw, the first one is shown. Of equal scores the lower index wins.
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def ranking(scores_PN: Floats) -> Integers:
    """The indices (P, N) of each prompt's pictures, best first. Ties are in order of index, abstentions last."""
    return np.argsort(-np.asarray(scores_PN, dtype=np.float64), axis=1, kind="stable")  # NaN sorts last


def select(scores_PN: Floats) -> Integers:
    """The index (P,) of the picture that wins each pool. It is 0 if the judge abstained on the whole pool."""
    return ranking(scores_PN)[:, 0]


def win_probabilities(pool: int, n: int, keep: int = 1) -> Floats:
    """The probability (N,) that each rank is among the `keep` best of `n` pictures drawn without replacement.

    The probabilities add up to `keep`. A rank is kept if it is drawn, and fewer than `keep` better ranks are. That is
    the sum over j < keep of C(rank, j) C(N-1-rank, n-1-j) / C(N, n), where the best rank is 0. Raises ValueError unless
    1 <= keep <= n <= pool.
    """
    if not 1 <= n <= pool:
        raise ValueError(f"best of {n} cannot be drawn from a pool of {pool}: n must be in [1, {pool}]")
    if not 1 <= keep <= n:
        raise ValueError(f"the best {keep} of {n} cannot be kept: keep must be in [1, {n}]")
    draws = math.comb(pool, n)
    kept = [
        sum(math.comb(rank, better) * math.comb(pool - 1 - rank, n - 1 - better) for better in range(keep))
        for rank in range(pool)
    ]
    return np.array([count / draws for count in kept])  # whole numbers up to here: C(2048, 512) overflows a float


def best_of(correct_PN: Floats, scores_PN: Floats, n: int, keep: int = 1) -> Floats:
    """The expected mean correctness (P,) of the `keep` pictures that the scores choose among `n` of each pool.

    If `keep` is above `n`, all `n` are kept. With the correctness itself as the score this is the oracle: of one
    picture kept, 1 - C(N-k, n)/C(N, n) with k correct ones in the pool.
    """
    ranked_PN = np.take_along_axis(np.asarray(correct_PN, dtype=np.float64), ranking(scores_PN), axis=1)
    kept = min(keep, n)
    return ranked_PN @ win_probabilities(ranked_PN.shape[1], n, kept) / kept


def best_of_chance(correct_PN: Floats) -> Floats:
    """The expected correctness (P,) of a picture chosen blindly among any number of pictures: the pool's mean."""
    return np.asarray(correct_PN, dtype=np.float64).mean(axis=1)


def other_prompts(prompts: int, rng: np.random.Generator) -> Integers:
    """For each prompt the index (P,) of another prompt. Every prompt is used once.

    The order is a random cycle through all prompts, so none gets itself. A judge that is asked about the wrong prompt
    shows how much of its gain comes from reading the prompt. Raises ValueError for fewer than 2 prompts.
    """
    if prompts < 2:
        raise ValueError(f"{prompts} prompts cannot be shuffled: at least 2 are needed")
    cycle = rng.permutation(prompts)
    others = np.empty(prompts, dtype=np.int64)
    others[cycle] = np.roll(cycle, 1)
    return others
