"""Stage `judge_finetune@W`: fine-tunes a vision-language model on yes and no, whole or by LoRA.

It exists for the ways in `judge_finetune.ways`, of which there are none by default. The model in `judge_finetune.path`
learns for one epoch from the balanced examples of all stages judge_examples@M. The area under its ROC curve is measured
before and after, on the pictures of prompts that it did not learn from. The output is a folder as transformers loads
it, which `judge.path` can name in the next run.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from tasks.computing.seeds import derive, numpy_generator
from tasks.data.published_files import published_path
from tasks.evaluation.judges.answer_training import AnswerTrainer, ExampleSets, answer_scores
from tasks.evaluation.judges.example_shards import Examples, read_examples
from tasks.evaluation.judges.image_text_model import ImageTextModel, load_image_text_model
from tasks.evaluation.judges.roc_area import measure
from tasks.params.judge_finetune_params import JudgeFinetune, Way
from tasks.runtime.context import Context, Metrics
from tasks.runtime.stage_command import stage_command
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.system.files import write_csv, write_json

SUMMARY = "summary.json"


def run(context: Context, way: Way) -> Metrics:
    """Write the fine-tuned model, its history and `summary.json`; returns how well it judged before and after."""
    chosen, seed = context.params.judge_finetune, context.params.compute.seed
    assert chosen.path is not None  # params refuse a way without a path
    folders = [paths.JUDGE_EXAMPLES / name for name in chosen.pictures_of]
    examples = ExampleSets([read_examples(folder, "train") for folder in folders])
    heldout = [read_examples(folder, "heldout") for folder in folders]
    # The weights that are trained are float32. Autocast computes in `compute.dtype`.
    model = load_image_text_model(
        published_path(chosen.path), remote_code=False, dtype="float32", device=context.device
    )
    torch.manual_seed(derive(seed, "judge_finetune", way))
    model = trainable(model, way, chosen)
    before = quality(context, model, heldout)
    trainer = AnswerTrainer(context, model, examples, chosen)
    history = trainer.run()
    after = quality(context, model, heldout)
    save(model, context.out)
    write_csv(context.out / "history.csv", ("step", "loss", "learning_rate"), history)
    counts = {
        "examples": len(examples),
        "steps": trainer.steps,
        "trained_parameters": sum(one.numel() for one in trainer.trained),
    }
    write_json(context.out / SUMMARY, {"way": way, "before": before, "after": after, **counts})
    return {**after, **{f"untrained_{name}": value for name, value in before.items()}, **counts}


def trainable(model: ImageTextModel, way: Way, chosen: JudgeFinetune) -> ImageTextModel:
    """The model with all its weights to be trained, or with low-rank matrices beside its linear layers.

    The matrices are beside every linear layer but the vocabulary's. Their scale is alpha / rank = 2. One of each pair
    begins at 0, so the model judges at first as it did.
    """
    if way == "whole":
        return ImageTextModel(model.network.requires_grad_(True), model.processor, model.yes, model.no)
    try:
        from peft import LoraConfig, get_peft_model  # an extra of the project, which no other way needs
    except ModuleNotFoundError:
        raise UserError(
            "judge_finetune.ways names lora, which needs peft: pip install -e '.[lora]' -c constraints.txt"
        ) from None
    lora = LoraConfig(r=chosen.lora_rank, lora_alpha=2 * chosen.lora_rank, target_modules="all-linear")
    return ImageTextModel(get_peft_model(model.network, lora), model.processor, model.yes, model.no)


def quality(context: Context, model: ImageTextModel, heldout: list[Examples]) -> Metrics:
    """The area under the ROC curve on all held-out pictures, with its interval over prompts, and within prompts."""
    chosen = context.params.judge_finetune
    size = chosen.batch_size // chosen.grad_accumulation
    scores_PN = np.concatenate([answer_scores(model, one, size) for one in heldout])
    rng = numpy_generator(context.params.compute.seed, "judge bootstrap")
    yes_PN = np.concatenate([one.yes_PN for one in heldout])
    return measure(scores_PN, yes_PN, context.params.evaluation.bootstrap_samples, rng)


def save(model: ImageTextModel, out: Path) -> None:
    """Write the network, with low-rank matrices added to its weights, and its processor."""
    network = model.network
    if not isinstance(network, PreTrainedModel):  # peft's wrapper
        network = network.merge_and_unload()
    network.save_pretrained(out)
    model.processor.save_pretrained(out)


if __name__ == "__main__":
    stage_command("judge_finetune", __doc__)
