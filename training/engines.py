"""The engines that evaluation can go through: transformers in this process, or a server. Knows no task."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from training.tokenizer import BOS, END, EOS, PAD, SINK, encode, load_tokenizer, token_id

BATCH_SIZE = 25
SPARE_TOKENS = 8  # answers have two characters per token or more, but for numbers, which have at most six digits
SERVER_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Subject:
    """A model of transformers, its tokenizer, and the tokens that begin every one of its rows."""

    model: Any
    tokenizer: Tokenizer
    start: tuple[str, ...]

    @property
    def start_ids(self) -> list[int]:
        """The ids of the tokens that begin a row."""
        return [token_id(self.tokenizer, token) for token in self.start]

    @property
    def stop_ids(self) -> list[int]:
        """The ids of the tokens that end an answer."""
        return [token_id(self.tokenizer, EOS), token_id(self.tokenizer, END)]


def load_subject(folder: Path, sink_token: bool) -> Subject:
    """Load a model directory in fp32."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return Subject(model.eval(), load_tokenizer(folder), (SINK, BOS) if sink_token else (BOS,))


class TransformersEngine:
    """Answers through transformers, in batches of similar length."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._pad_id = token_id(subject.tokenizer, PAD)

    def complete(self, prompts: Sequence[str], limit: int) -> list[str]:
        """Return greedy continuations of at most `limit` / 2 + SPARE_TOKENS tokens."""
        rows = [self._ids(prompt) for prompt in prompts]
        answers = [""] * len(rows)
        for chosen in batches([len(row) for row in rows]):
            batch = self._generate([rows[i] for i in chosen], limit // 2 + SPARE_TOKENS)
            for i, answer in zip(chosen, batch, strict=True):
                answers[i] = answer
        return answers

    def answers_exactly(self, prompts: Sequence[str], wanted: Sequence[str]) -> list[bool]:
        """Compare with the best token at every position of the answer: what greedy decoding does, in one pass."""
        rows = [self._ids(prompt) for prompt in prompts]
        answers = [encode(self._subject.tokenizer, answer) for answer in wanted]
        right = [False] * len(rows)
        for chosen in batches([len(row) + len(answer) for row, answer in zip(rows, answers, strict=True)]):
            for i, best in zip(chosen, self._best_tokens([(rows[i], answers[i]) for i in chosen]), strict=True):
                right[i] = best[:-1] == answers[i] and best[-1] in self._subject.stop_ids
        return right

    def _ids(self, prompt: str) -> list[int]:
        return [*self._subject.start_ids, *encode(self._subject.tokenizer, prompt)]

    @torch.no_grad()
    def _best_tokens(self, pairs: list[tuple[list[int], list[int]]]) -> Iterator[list[int]]:
        """Yield for each prompt and answer the best token at each of the answer's positions and after it."""
        longest = max(len(row) + len(answer) for row, answer in pairs)
        padded = [row + answer + [self._pad_id] * (longest - len(row) - len(answer)) for row, answer in pairs]
        hidden = self._subject.model.model(torch.tensor(padded)).last_hidden_state
        for states, (row, answer) in zip(hidden, pairs, strict=True):
            logits = self._subject.model.lm_head(states[len(row) - 1 : len(row) + len(answer)])
            yield logits.argmax(-1).tolist()

    @torch.no_grad()
    def _generate(self, rows: list[list[int]], max_tokens: int) -> list[str]:
        """Return the continuations of rows of ids, padded on the left, without their stop tokens."""
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[self._pad_id] * (longest - len(row)) + row for row in rows])
        output = self._subject.model.generate(
            input_ids=ids,
            attention_mask=(ids != self._pad_id).long(),
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=self._subject.stop_ids,
            pad_token_id=self._pad_id,
        )
        decode = self._subject.tokenizer.decode
        return [decode(row[longest:].tolist(), skip_special_tokens=True) for row in output]


class ServerEngine:
    """Answers through the completions route of an OpenAI-compatible server that serves the model."""

    def __init__(self, base_url: str) -> None:
        self._url = f"{base_url.rstrip('/')}/v1"
        with urllib.request.urlopen(f"{self._url}/models", timeout=SERVER_TIMEOUT_S) as answer:
            self._model = json.load(answer)["data"][0]["id"]

    def complete(self, prompts: Sequence[str], limit: int) -> list[str]:
        """Return greedy continuations of at most `limit` / 2 + SPARE_TOKENS tokens."""
        answers: list[str] = []
        for at in range(0, len(prompts), BATCH_SIZE):
            answers += self._request(list(prompts[at : at + BATCH_SIZE]), limit // 2 + SPARE_TOKENS)
        return answers

    def answers_exactly(self, prompts: Sequence[str], wanted: Sequence[str]) -> list[bool]:
        """Complete, and compare the texts."""
        given = self.complete(prompts, max(map(len, wanted)))
        return [answer == right for answer, right in zip(given, wanted, strict=True)]

    def _request(self, prompts: list[str], max_tokens: int) -> list[str]:
        body = {"model": self._model, "prompt": prompts, "max_tokens": max_tokens, "temperature": 0}
        request = urllib.request.Request(
            f"{self._url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=SERVER_TIMEOUT_S) as answer:
            choices = json.load(answer)["choices"]
        return [choice["text"] for choice in sorted(choices, key=lambda choice: int(choice["index"]))]


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the indices of items in batches of similar length."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for at in range(0, len(order), BATCH_SIZE):
        yield order[at : at + BATCH_SIZE]
