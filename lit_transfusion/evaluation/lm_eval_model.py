"""The interface of lm-eval for Transfusion models, so that they can run all of its tasks."""

from collections import defaultdict
from typing import Any

from lit_transfusion.data import grammar
from lit_transfusion.evaluation.likelihood import text_likelihoods
from lit_transfusion.generation.engine import Images, generate
from lit_transfusion.generation.open_pipeline import open_pipeline
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.progress import OnProgress, silent

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:  # without the extra lm-eval, TransfusionLM is not used
    TemplateLM = object

    def register_model(name: str):
        return lambda cls: cls


@register_model("lit_transfusion")
class TransfusionLM(TemplateLM):
    """Language model for lm-eval that reads and writes text only, without images. Each text begins with BOS.

    Text that does not fit into a training row is cut at the left, after BOS.

    Args:
        pretrained: The model, or its checkpoint, exported folder, or name on the Hugging Face hub.
        batch_size: Number of texts to process together.
        device: Device for a model that is loaded here; null uses a GPU if there is one.
        on_progress: Called with the progress of reading.
    """

    def __init__(
        self,
        pretrained: Pipeline | str,
        batch_size: int = 64,
        device: str | None = None,
        on_progress: OnProgress = silent,
    ) -> None:
        super().__init__()
        self.pipeline = open_pipeline(pretrained, device) if isinstance(pretrained, str) else pretrained
        self.batch_size = int(batch_size)
        self.on_progress = on_progress
        self._device = self.pipeline.net.head.weight.device

    @property
    def eot_token_id(self) -> int:
        return self.pipeline.tokenizer.eos

    @property
    def prefix_token_id(self) -> int:
        return self.pipeline.tokenizer.bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The token ids of a text, after BOS unless `add_special_tokens` is false."""
        tokens = list(self.pipeline.tokenizer.encode(string))
        return tokens if add_special_tokens is False else [self.prefix_token_id, *tokens]

    def loglikelihood(self, requests: list, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """The log-probability, in nats, of each continuation after its context, and whether greedy decoding writes it.

        Both are encoded as one text, which is then split after the tokens of the context.
        """
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: list, **_: Any) -> list[tuple[float, bool]]:
        found = self._likelihoods([(context, continuation) for _, context, continuation in requests])
        return [(likelihood.log_probability, likelihood.is_greedy) for likelihood in found]

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = True) -> list[float]:
        """The log-probability, in nats, of each text. Texts longer than a training row are split into windows.

        Each window has one token of context.
        """
        longest = self.pipeline.sequence_length
        pairs, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            size = max(len(tokens), 1) if longest is None else longest - 2  # BOS and the token of context
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, size, context_len=1):
                pairs.append(make_disjoint_window(window))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, likelihood in zip(owners, self._likelihoods(pairs), strict=True):
            totals[number] += likelihood.log_probability
        return totals

    def generate_until(self, requests: list, disable_tqdm: bool = True) -> list[str]:
        """Write text after each context until EOS, one of the `until` texts, or `max_gen_toks` tokens."""
        written, groups = [""] * len(requests), defaultdict(list)
        for number, request in enumerate(requests):
            context, options = request.args
            groups[sampling_of(options, self.pipeline.sequence_length)].append((number, context, stops_of(options)))
        for sampling, group in groups.items():
            for start in range(0, len(group), self.batch_size):
                batch = group[start : start + self.batch_size]
                prompts = [self._cut(self.tok_encode(context), sampling.max_new_tokens) for _, context, _ in batch]
                documents = [grammar.prompt([tuple(tokens[1:])], self.pipeline.tokenizer) for tokens in prompts]
                seeds = range(start, start + len(batch))
                samples = generate(self.pipeline, documents, sampling, images=Images.NEVER, seeds=seeds)
                for (number, _, stops), tokens, sample in zip(batch, prompts, samples, strict=True):
                    written[number] = cut_at(self._continuation(tokens, list(sample.token_ids)), stops)
        return written

    def _likelihoods(self, pairs: list[tuple[list[int], list[int]]]) -> list:
        """The likelihood of the second of each pair of token lists, after the first."""
        documents = []
        for context, continuation in pairs:
            context = self._cut(context, room=len(continuation))[1:]
            documents.append(grammar.continuation([tuple(context)], tuple(continuation), self.pipeline.tokenizer))
        return text_likelihoods(self.pipeline, documents, self.batch_size, on_progress=self.on_progress)

    def _cut(self, tokens: list[int], room: int) -> list[int]:
        """BOS and the last tokens, as many as leave `room` positions in a training row."""
        tokens = tokens[1:] if tokens[:1] == [self.prefix_token_id] else tokens
        longest = self.pipeline.sequence_length
        last = tokens if longest is None else tokens[max(0, len(tokens) - max(0, longest - 1 - room)) :]
        return [self.prefix_token_id, *last]

    def _continuation(self, context: list[int], added: list[int]) -> str:
        """The text of the added tokens, with a leading space if there is one."""
        decode = self.pipeline.tokenizer.decode
        return decode(context + added).removeprefix(decode(context))


def sampling_of(options: dict[str, Any], longest: int | None) -> Sampling:
    """Convert the supported options of lm-eval for writing; at most half of a training row is written."""
    max_new_tokens = int(options.get("max_gen_toks", 256))
    return Sampling(
        temperature=float(options.get("temperature", 1.0)) if options.get("do_sample", False) else 0.0,
        top_k=options.get("top_k"),
        top_p=float(options.get("top_p", 1.0)),
        max_new_tokens=max_new_tokens if longest is None else min(max_new_tokens, longest // 2),
    )


def stops_of(options: dict[str, Any]) -> list[str]:
    """The stop texts of lm-eval's options."""
    stops = options.get("until") or []
    return [stops] if isinstance(stops, str) else list(stops)


def cut_at(text: str, stops: list[str]) -> str:
    """The text before the first stop."""
    return text[: min([text.find(stop) for stop in stops if stop and stop in text], default=len(text))]
