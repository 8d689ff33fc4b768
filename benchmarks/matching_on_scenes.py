"""Whether the scorer matching orders models as GenEval does, on a finished run of scenes, where both can be asked.

    python benchmarks/matching_on_scenes.py            # in a folder with outputs/ of `make run`

It trains the scorer's network on its half of the scenes' captions, as the stage `scorer` would. Then it scores the
pictures that each model drew for GenEval's prompts: a picture is right if its prompt fits best among 16 of the
evaluation's prompts. It prints both scores with their 95 % intervals over prompts, and Spearman's correlation over
models.
"""

import numpy as np
import torch
from scipy.stats import spearmanr

from model.text_encoder import load_text_encoder
from tasks.computing.seeds import derive, numpy_generator
from tasks.evaluation.judges.judge_network import JudgeConfig, JudgeNetwork
from tasks.evaluation.matching.caption_choices import caption_prompts
from tasks.evaluation.matching.caption_pairs import read_pairs
from tasks.evaluation.matching.pair_training import train_on_pairs
from tasks.evaluation.picture_pool import load_pool
from tasks.evaluation.score_statistics import Score, score
from tasks.evaluation.scorers.matching_scorer import MatchingScorer
from tasks.params.params_files import load_params
from tasks.stages import scored_models
from tasks.system import paths

PICTURES = 4
"""Pictures of each prompt that are scored."""


def main() -> None:
    """Train, score and print."""
    params = load_params()
    seed, chosen = params.compute.seed, params.matching
    torch.set_num_threads(params.compute.threads)
    text_encoder = load_text_encoder(paths.TEXT_ENCODER, "cpu")
    pairs = read_pairs(paths.SHARDS, "scorer", chosen.pairs, params.shard.image_size, seed)
    torch.manual_seed(derive(seed, "scorer weights"))
    network = JudgeNetwork(JudgeConfig(text_encoder.channels))
    train_on_pairs(network, pairs, text_encoder, chosen, seed, params.compute.dtype, "matching")
    scorer = MatchingScorer(network, text_encoder)
    rows = []
    for model in scored_models(params):
        pool = load_pool(paths.EVALUATION / model)
        texts = [prompt.text for prompt in pool.prompts]
        asked = caption_prompts(texts, texts, chosen.choices, seed)
        pictures = pool.pictures_PNHW3[:, :PICTURES]
        matched_PN = np.array(
            [
                [float(verdict.correct) for verdict in scorer.score(prompt.line, shown)]
                for prompt, shown in zip(asked, pictures, strict=True)
            ]
        )
        correct_PN = pool.correct_PN[:, :PICTURES].astype(float)
        scored = [
            score(values, pool.tasks, 2000, numpy_generator(seed, "bootstrap")) for values in (correct_PN, matched_PN)
        ]
        agreement = np.corrcoef(correct_PN.ravel(), matched_PN.ravel())[0, 1] if 0 < correct_PN.mean() < 1 else np.nan
        rows.append((scored[0].overall.value, scored[1].overall.value))
        print(
            f"{model:<14} GenEval {shown_as(scored[0])}  matching {shown_as(scored[1])}  phi {agreement:.2f}",
            flush=True,
        )
    print(f"{len(pairs)} pairs; Spearman over {len(rows)} models: {spearmanr(*zip(*rows, strict=True)).statistic:.2f}")


def shown_as(found: Score) -> str:
    """A score with its interval."""
    return f"{found.overall.value:.3f} [{found.overall.low:.3f}, {found.overall.high:.3f}]"


if __name__ == "__main__":
    main()
