"""Stage `controls`: the scores of controls, which ought to be low. They give the models' scores a meaning.

* decoded noise: the score that decoder and scorer give without any network
* the grown model's network with its initial weights
* the grown model cut to each depth by several random choices of blocks; `prune@D` measures the held-out loss of the
  same choices, and the report pairs them with the cut by importance

The networks start from the same noise as in the models' own evaluation.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from model.network import Sana
from model.pruning import prune_network
from tasks.computing.random_block_choices import random_choices
from tasks.computing.seeds import derive, generator, numpy_generator
from tasks.evaluation.detectors.detector import Pictures
from tasks.evaluation.evaluation_steps import correctness, score_prompts
from tasks.evaluation.evaluation_summary import as_record
from tasks.evaluation.picture_drawing import load_painter
from tasks.evaluation.prompts.evaluation_prompts import Prompt, read_prompts
from tasks.evaluation.score_statistics import score
from tasks.evaluation.scorers.scorer_choice import PROMPTS, open_scorer
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.files import write_json

Verdicts = NDArray[np.bool_]


class Controls:
    """The evaluation that all controls share: prompts, scorer, noise, number of pictures and bootstrap."""

    def __init__(self, context: Context) -> None:
        self.params, self.seed = context.params, context.params.compute.seed
        self.prompts: list[Prompt] = read_prompts(paths.SCORER / PROMPTS)
        self.tasks = [prompt.tag for prompt in self.prompts]
        self.images = self.params.evaluation.images_per_pruned_prompt
        self.painter = load_painter(paths.GROWN, self.params, context.device)
        self.scorer = open_scorer(self.params, self.painter.text_encoder, context.device)

    def draw(self, network: Sana, name: str, images: int | None = None) -> Verdicts:
        """The scorer's verdicts (P, N) on a network's pictures: `images` of each prompt, or as many as usual here."""
        texts = [prompt.text for prompt in self.prompts]
        painter = replace(self.painter, network=network)
        return self.verdicts(painter.draw(texts, images or self.images, derive(self.seed, "geneval"), name))

    def draw_random_cuts(self, choices: Sequence[Sequence[int]]) -> Verdicts:
        """The verdicts (P, N) on the grown model cut to each choice of blocks. The cuts share the pictures equally."""
        share = math.ceil(self.images / len(choices))
        name = f"controls: {len(choices[0])} random blocks"
        grown = self.painter.network
        return np.concatenate([self.draw(prune_network(grown, choice), name, share) for choice in choices], axis=1)

    def verdicts(self, pictures_PNHW3: Pictures) -> Verdicts:
        """The scorer's verdicts (P, N) on pictures."""
        return correctness(score_prompts(self.prompts, pictures_PNHW3, self.scorer))

    def record(self, correct_PN: Verdicts) -> dict[str, Any]:
        """The score with its intervals, as plain values."""
        rng = numpy_generator(self.seed, "geneval bootstrap")
        return as_record(score(correct_PN, self.tasks, self.params.evaluation.bootstrap_samples, rng))


def run(context: Context) -> Metrics:
    """Score all controls; writes `summary.json`, and the verdicts (P, N) on random cuts for paired comparisons."""
    controls = Controls(context)
    grown = controls.painter.network
    torch.manual_seed(derive(controls.seed, "untrained control"))
    untrained = Sana(grown.config).to(context.device).eval()
    chosen = context.params.prune
    kept = {
        str(depth): random_choices(len(grown.blocks), depth, chosen.random_choices, controls.seed)
        for depth in chosen.depths
    }
    cuts = {depth: controls.draw_random_cuts(choices) for depth, choices in kept.items()}
    save_file(cuts, context.out / paths.RANDOM_CUTS.name)
    summary = {
        "noise": controls.record(controls.verdicts(noise_pictures(controls))),
        "untrained": controls.record(controls.draw(untrained, "controls: untrained")),
        "random_cuts": {depth: {"kept": kept[depth]} | controls.record(cuts[depth]) for depth in kept},
    }
    write_json(context.out / "summary.json", summary)
    metrics = {name: summary[name]["overall"] for name in ("noise", "untrained")}
    return metrics | {f"random-{depth}": record["overall"] for depth, record in summary["random_cuts"].items()}


def noise_pictures(controls: Controls) -> Pictures:
    """Decoded noise (P, N, H, W, 3) in place of a model's pictures."""
    painter, prompts = controls.painter, len(controls.prompts)
    random = generator(controls.seed, "noise control")
    latents = torch.randn((prompts * controls.images, *painter.latent_shape), generator=random)
    pictures = painter.autoencoder.decode_pixels(latents.to(painter.device))
    return pictures.reshape(prompts, controls.images, *pictures.shape[1:])


if __name__ == "__main__":
    stage_command("controls", __doc__)
