"""Stage `controls`: GenEval of what ought to score low, so that the scores of models mean something.

* latents that are noise, decoded: what decoder and scorer alone make of nothing
* the grown model's network with its initial weights
* the grown model cut to each depth by blocks chosen at random, beside the same cut by importance (paired, so the
  difference has an interval): what choosing blocks is worth before any fine-tuning

All start from the noise that the models' own evaluation starts from.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from model.network import Sana
from model.pruning import prune_network
from tasks import layout
from tasks.files import write_json
from tasks.geneval.detector import Pictures
from tasks.geneval.evaluation import correctness, score_prompts
from tasks.geneval.pictures import DRAWING_SECTIONS, decode, load_painter
from tasks.geneval.pool import load_pool
from tasks.geneval.prompts import Prompt, evaluation_prompts
from tasks.geneval.statistics import Array, difference, score
from tasks.geneval.summary import as_record
from tasks.params import Params
from tasks.seeds import derive, generator, numpy_generator
from tasks.stage import Context, Metrics, Stage, run_main


class Controls:
    """The evaluation that all controls share: prompts, noise, number of pictures and bootstrap."""

    def __init__(self, context: Context) -> None:
        self.params, self.seed = context.params, context.params.compute.seed
        self.prompts: list[Prompt] = evaluation_prompts(self.seed, self.params.geneval.prompts_per_task)
        self.tasks = [prompt.tag for prompt in self.prompts]
        self.images = self.params.geneval.images_per_pruned_prompt
        self.painter = load_painter(layout.GROWN, self.params, context.device)

    def draw(self, network: Sana, name: str) -> Array:
        """Correctness (P, N) of a network's pictures."""
        texts = [prompt.text for prompt in self.prompts]
        painter = replace(self.painter, network=network)
        return self.correct(painter.draw(texts, self.images, derive(self.seed, "geneval"), name))

    def correct(self, pictures_PNHW3: Pictures) -> Array:
        """The scorer's verdicts (P, N) as 0 and 1."""
        return correctness(score_prompts(self.prompts, pictures_PNHW3)).astype(np.float64)

    def record(self, correct_PN: Array) -> dict[str, Any]:
        """GenEval with its intervals."""
        return as_record(score(correct_PN, self.tasks, self.params.geneval.bootstrap_samples, self._rng()))

    def gain(self, first_PN: Array, second_PN: Array) -> dict[str, Any]:
        """GenEval of the first minus that of the second, paired by prompt."""
        samples = self.params.geneval.bootstrap_samples
        return as_record(difference(first_PN, second_PN, self.tasks, samples, self._rng()))

    def _rng(self) -> np.random.Generator:
        return numpy_generator(self.seed, "geneval bootstrap")


def run(context: Context) -> Metrics:
    """Score all controls; writes `summary.json`."""
    controls = Controls(context)
    grown = controls.painter.network
    torch.manual_seed(derive(controls.seed, "untrained control"))
    untrained = Sana(grown.config).to(context.device).eval()
    summary = {
        "noise": controls.record(controls.correct(noise_pictures(controls))),
        "untrained": controls.record(controls.draw(untrained, "controls: untrained")),
        "cuts": {str(depth): cut(controls, grown, depth) for depth in context.params.prune.depths},
    }
    write_json(context.out / "summary.json", summary)
    metrics = {"noise": summary["noise"]["overall"], "untrained": summary["untrained"]["overall"]}
    for depth, record in summary["cuts"].items():
        metrics |= {f"{name}-{depth}": record[name]["overall"] for name in ("random", "chosen", "gain")}
    return metrics


def noise_pictures(controls: Controls) -> Pictures:
    """Decoded noise (P, N, H, W, 3) in place of a model's pictures."""
    painter, prompts = controls.painter, len(controls.prompts)
    random = generator(controls.seed, "noise control")
    latents = torch.randn((prompts * controls.images, *painter.latent_shape), generator=random)
    pictures = decode(painter.autoencoder, latents.to(painter.device))
    return pictures.reshape(prompts, controls.images, *pictures.shape[1:])


def cut(controls: Controls, grown: Sana, depth: int) -> dict[str, Any]:
    """The grown model cut to `depth` at random, and what the cut by importance scores beyond it."""
    blocks = numpy_generator(controls.seed, "random cut", depth).permutation(len(grown.blocks))
    keep = sorted(int(block) for block in blocks[:depth])
    random_PN = controls.draw(prune_network(grown, keep), f"controls: {depth} random blocks")
    chosen_PN = load_pool(layout.GENEVAL / f"pruned-{depth}").correct_PN.astype(np.float64)
    return {
        "kept": keep,
        "random": controls.record(random_PN),
        "chosen": controls.record(chosen_PN),
        "gain": controls.gain(chosen_PN, random_PN),
    }


def stage(params: Params) -> Stage:
    """The stage's record. Random cuts are compared with the evaluations of the chosen ones."""
    pruned = (layout.GENEVAL / f"pruned-{depth}" for depth in params.prune.depths)
    return Stage(
        name="controls",
        run=run,
        inputs=(layout.GROWN, layout.AUTOENCODER, layout.TEXT_ENCODER, *pruned),
        out=layout.CONTROLS,
        sections=(*DRAWING_SECTIONS, "compute.threads", "prune.depths", "geneval"),
    )


if __name__ == "__main__":
    run_main(stage, "controls", __doc__)
