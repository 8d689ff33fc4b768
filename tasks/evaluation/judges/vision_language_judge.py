"""A judge that is a published vision-language model: it is shown a picture with its prompt and asked for yes or no.

SANA-1.5 asks its judge in this way (section 2.5), but it takes the raw score of the answer's first token and compares
pictures in pairs, with two questions for each pair. Here we leave the paper. The score is log P(yes) among yes and no:
the probability that the answer's first token begins a "yes", divided by the probability that it begins a "yes" or a
"no". A picture takes one forward pass, nothing is generated, and scores of different pictures can be compared.

The judge abstains (NaN) if its answer is probably neither, or does not come in time. Answers are kept in a cache, so
each question is asked once, whichever run asks it.

Shapes: P prompts, N pictures of each, B questions of a batch, T tokens, V words of the vocabulary.
"""

import hashlib
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from tasks.computing import ranks
from tasks.data.published_files import content_digest
from tasks.evaluation.judges.judge_answers import Answer, Key, ScoreCache
from tasks.evaluation.judges.judge_template import QUESTION, conversation
from tasks.system.errors import UserError
from tasks.system.manifest import sha256_json
from tasks.system.progress import progress

LEAST_ANSWER_MASS = 0.01
"""If yes and no together are less probable than this, the model is about to say something else, and abstains."""


@dataclass(frozen=True)
class VisionLanguageJudge:
    """A `Judge` (see `judge_choice`) of any size and kind that transformers loads for images and text.

    `yes` and `no` are the tokens that begin either answer; `digest` names the model in the cache. A batch that takes
    longer than `time_limit` seconds is given up at the next layer. Its questions are asked again in the next run.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    yes: tuple[int, ...]
    no: tuple[int, ...]
    digest: str
    cache: ScoreCache
    batch_size: int
    time_limit: float

    def log_yes(self, pictures_PNHW3: NDArray[np.uint8], prompts: Sequence[str]) -> NDArray[np.float64]:
        """Scores (P, N): log P(yes) of the N pictures of each of P prompts, NaN where the judge abstains."""
        questions = [QUESTION.format(prompt=prompt) for prompt in prompts]
        asked: dict[Key, NDArray[np.uint8]] = {}
        keys_PN = []
        for pictures_NHW3, question in zip(pictures_PNHW3, questions, strict=True):
            keys_PN.append([(picture_digest(picture), question, self.digest) for picture in pictures_NHW3])
            asked |= dict(zip(keys_PN[-1], pictures_NHW3, strict=True))
        answers = self._answers(asked)
        return np.array([[score(answers.get(key)) for key in row] for row in keys_PN])

    def log_yes_to(self, pictures: Sequence[NDArray[np.uint8]], questions: Sequence[str]) -> NDArray[np.float64]:
        """Scores (B,): log P(yes) of each question about its own picture (H, W, 3), NaN where the judge abstains."""
        digests = {id(picture): picture_digest(picture) for picture in {id(one): one for one in pictures}.values()}
        keys = [
            (digests[id(picture)], question, self.digest) for picture, question in zip(pictures, questions, strict=True)
        ]
        answers = self._answers(dict(zip(keys, pictures, strict=True)))
        return np.array([score(answers.get(key)) for key in keys])

    def _answers(self, asked: dict[Key, NDArray[np.uint8]]) -> dict[Key, Answer]:
        """The answers of the cache, and the model's answers to the other questions; none where time ran out.

        The keys are cut into batches before the cache is read, and before ranks share them. A run that was never
        stopped forms the same batches as a resumed one, on any number of ranks, and so gets the same numbers.
        """
        keys, answers = list(asked), {}
        starts = range(0, len(keys), self.batch_size)
        with progress("vision-language judge", len(keys)) as meter:
            for place in ranks.dealt(len(starts)):
                batch = keys[starts[place] : starts[place] + self.batch_size]
                known = dict(zip(batch, self.cache.get(batch), strict=True))
                unknown = [key for key in batch if known[key] is None]
                if unknown:
                    fresh = self._ask([asked[key] for key in unknown], [question for _, question, _ in unknown])
                    known |= dict(zip(unknown, fresh, strict=True))
                    self.cache.put((key, known[key]) for key in unknown if known[key] is not None)
                answers |= {key: answer for key, answer in known.items() if answer is not None}
                meter.advance(len(batch))
        parts = ranks.gather([[key, answer] for key, answer in answers.items()])  # JSON: tuples come back as lists
        return {tuple(key): tuple(answer) for part in parts for key, answer in part}

    def _ask(self, pictures: Sequence[NDArray[np.uint8]], questions: Sequence[str]) -> list[Answer | None]:
        """The answers of one forward pass. If it takes too long, every answer is None."""
        try:
            with deadline(self.time_limit):
                logits_BV = self._answer_logits(pictures, questions).double().cpu()
        except TimeoutError:
            return [None] * len(questions)
        log_BV = logits_BV.log_softmax(dim=-1).nan_to_num(nan=-torch.inf)
        sides = [log_BV[:, list(tokens)].logsumexp(dim=-1).tolist() for tokens in (self.yes, self.no)]
        return list(zip(*sides, strict=True))

    @torch.no_grad()
    def _answer_logits(self, pictures: Sequence[NDArray[np.uint8]], questions: Sequence[str]) -> Tensor:
        """Logits (B, V) of the first token of each answer.

        Padding is on the right, where no token of the question sees it. Each row is read at its own last token.
        """
        inputs = self.processor.apply_chat_template(
            [conversation(*pair) for pair in zip(pictures, questions, strict=True)],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "right"},
        ).to(self.model.device, dtype=self.model.dtype)
        mask_BT = inputs["attention_mask"]
        last_B = (mask_BT * torch.arange(mask_BT.shape[1], device=mask_BT.device)).argmax(dim=1)
        rows = torch.arange(len(last_B), device=last_B.device)
        if "logits_to_keep" not in inspect.signature(self.model.forward).parameters:
            return self.model(**inputs).logits[rows, last_B]
        kept, place_B = last_B.unique(return_inverse=True)  # logits of all tokens would not fit into memory
        return self.model(**inputs, logits_to_keep=kept).logits[rows, place_B]


def score(answer: Answer | None) -> float:
    """log P(yes) among yes and no. NaN if there is no answer, or if the answer is probably neither."""
    if answer is None:
        return np.nan
    log_yes, log_no = answer
    either = np.logaddexp(log_yes, log_no)
    return float(log_yes - either) if either >= np.log(LEAST_ANSWER_MASS) else np.nan


def picture_digest(picture_HW3: NDArray[np.uint8]) -> str:
    """The sha256, in hex, of a picture's size and pixels."""
    return hashlib.sha256(repr(picture_HW3.shape).encode() + np.ascontiguousarray(picture_HW3).tobytes()).hexdigest()


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TimeoutError once the `with` block has taken so many seconds.

    The time is checked whenever a module of any network is called, and at the end of the block.
    """
    end = time.monotonic() + seconds

    def check(*_: object) -> None:
        if time.monotonic() > end:
            raise TimeoutError

    hook = register_module_forward_pre_hook(check)
    try:
        yield
        check()
    finally:
        hook.remove()


def load_vision_language_judge(
    folder: Path,
    *,
    cache: ScoreCache,
    remote_code: bool = False,
    batch_size: int,
    time_limit: float,
    dtype: str,
    device: str,
) -> VisionLanguageJudge:
    """The judge that a model's folder holds. Nothing is fetched from the network.

    Raises UserError naming the folder if it holds no vision-language model, if the model cannot be asked, or if it
    brings Python code of its own and `remote_code` is false.
    """
    digest = sha256_json({"model": content_digest(folder), "dtype": dtype})
    processor = _load(lambda **options: AutoProcessor.from_pretrained(folder, **options), folder, remote_code)
    check_processor(processor, folder)
    yes, no = (answer_tokens(processor, word, folder) for word in ("yes", "no"))
    model = load_model(folder, dtype, remote_code)
    return VisionLanguageJudge(model.to(device), processor, yes, no, digest, cache, batch_size, time_limit)


def load_model(folder: Path, dtype: str, remote_code: bool) -> PreTrainedModel:
    """The network of a folder, with all weights read from safetensors files, which hold no pickle.

    Raises UserError naming the folder if weights are missing, or if the model is not decoder-only.
    """

    def load(**options: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
        return AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True, **options
        )

    model, report = _load(load, folder, remote_code)
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{folder} lacks {len(missing)} weights of its model, {missing[0]} first")
    if model.config.is_encoder_decoder:
        raise UserError(f"{folder} encodes the question apart from the answer: choose a decoder-only model as judge")
    return model.eval().requires_grad_(False)


def check_processor(processor: Any, folder: Path) -> None:
    """Raises UserError unless the processor takes pictures and text and has a chat template.

    A tokenizer without a padding token gets its end token as one: batches need padding, which the mask hides.
    """
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise UserError(f"{folder} has no processor for pictures and text: it holds no vision-language model")
    if processor.chat_template is None:
        raise UserError(f"{folder} has no chat template: choose a model that was tuned to answer as judge.path")
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token


def answer_tokens(processor: Any, word: str, folder: Path) -> tuple[int, ...]:
    """The single tokens that spell `word`: in lower case or capitalised, with or without a space before it.

    Raises UserError if there is none: then the first token of an answer does not tell yes from no.
    """
    tokenizer = processor.tokenizer
    found = set()
    for variant in (word, word.capitalize(), f" {word}", f" {word.capitalize()}"):
        tokens = tokenizer.encode(variant, add_special_tokens=False)
        if len(tokens) == 1 and tokenizer.decode(tokens).strip().lower() == word:
            found.add(tokens[0])
    if not found:
        raise UserError(f"{folder} has no single token for {word!r}: choose another model as judge.path")
    return tuple(sorted(found))


def _load(load: Callable[..., Any], folder: Path, remote_code: bool) -> Any:
    """Call transformers' `load`, and turn any error of it into a UserError of one line."""
    try:
        return load(local_files_only=True, trust_remote_code=remote_code)
    except Exception as error:  # each model class has its own way to fail on files that do not fit it
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{folder} brings Python code of its own, which is not run: "
                "set judge.remote_code to true if you trust it, or choose another model"
            ) from None
        raise UserError(
            f"{folder} cannot be loaded as a vision-language model: {' '.join(str(error).split())}"
        ) from None
