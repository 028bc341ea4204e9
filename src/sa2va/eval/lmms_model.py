"""Sa2VA as a chat model of lmms-eval: greedy unless a task samples; needs ``pip install 'sa2va[lmms]'``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import Instance  # pyright: ignore[reportMissingImports] -- not among the dev packages
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from sa2va.eval.lmms_messages import ChatRequest, MediaSampling, read_messages
from sa2va.inference.replies import Request
from sa2va.model.quantization import Quantization
from sa2va.predictor import Sa2VA
from sa2va.runtime import logger
from sa2va.zoo import resolve

#: Longest answer where a task does not say.
DEFAULT_NEW_TOKENS = 1024


@dataclass(frozen=True)
class _Request:
    """One request, read: its place in the list, what lmms-eval calls it, and how it is to be answered."""

    number: int
    where: str
    context: str
    arguments: Mapping[str, Any]
    conversation: ChatRequest
    options: tuple[tuple[str, Any], ...]

    @property
    def batch(self) -> object:
        """Equal for neighbours that can be answered together: about one file, in one way, without earlier turns."""
        conversation = self.conversation
        return (conversation.source, self.options) if conversation.source and not conversation.history else self.number


class Sa2VALmms(lmms):
    """A Sa2VA checkpoint in lmms-eval.

    Args:
        pretrained: local folder, hub id, or a name that ``sa2va models`` lists.
        device, dtype, device_map, quantization, revision: as in [`Sa2VA.from_pretrained`]; with several processes each
            takes its own device.
        batch_size: most questions about one video or picture file that are answered as one request, and most requests
            that are worked on at once.
        max_batch_size: accepted because lmms-eval passes it.
        key_frames: which frames of a video are shown: ``"uniform"`` or ``"first"`` (the released code).
        num_frames: how many. num_pictures: most pictures of one question, which are shown as frames.
        max_new_tokens: overrides what the tasks ask for.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "ByteDance/Sa2VA-4B",
        device: str | None = None,
        dtype: str | None = None,
        device_map: str | None = None,
        quantization: Quantization | None = None,
        revision: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        key_frames: str = "uniform",
        num_frames: int = 5,
        num_pictures: int = 8,
        max_new_tokens: int | None = None,
    ):
        super().__init__()
        if key_frames not in ("uniform", "first"):
            raise ValueError(f"key_frames must be 'uniform' or 'first', got {key_frames!r}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if (device is None and device_map is None) or self._world_size > 1:
            device = str(self.accelerator.device)
        hub = {} if revision is None else {"revision": revision}
        self.sa2va: Sa2VA | None = Sa2VA.from_pretrained(
            resolve(pretrained), device=device, dtype=dtype, device_map=device_map, quantization=quantization, **hub
        )
        self.device = self.sa2va.model.device
        self.batch_size = int(batch_size)
        self._sampling = MediaSampling(key_frames, int(num_frames), int(num_pictures))
        self._max_new_tokens = max_new_tokens
        self._warned: set[str] = set()

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answer requests, in their order.

        Raises:
            ValueError: a document cannot be shown to the model; the message names it.
        """
        if self.sa2va is None:
            raise ValueError("the model was given back by clean(); make a new one")
        answers = [""] * len(requests)
        with tqdm(total=len(requests), disable=self.rank != 0, desc="sa2va") as progress:
            for reply in self.sa2va.answers(map(self._request, self._batches(requests)), ahead=self.batch_size):
                batch: list[_Request] = reply.request.id
                if isinstance(reply.error, ValueError | OSError):
                    raise ValueError(f"{batch[0].where}: {reply.error}") from reply.error
                if reply.error is not None:
                    raise reply.error
                for request, answer in zip(batch, reply.answers, strict=True):
                    text = _until(answer.text, request.arguments.get("until"))
                    answers[request.number] = text
                    self.cache_hook.add_partial("generate_until", (request.context, request.arguments), text)
                progress.update(len(batch))
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered: tasks that compare likelihoods have a generating variant."""
        raise NotImplementedError("sa2va answers in text and gives no likelihoods; choose a generate_until task")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered: rounds that react to the model's answers."""
        raise NotImplementedError("sa2va answers one round; choose a generate_until task")

    def clean(self) -> None:
        """Give the model's memory back, which lmms-eval asks for before it scores."""
        self.sa2va = None
        super().clean()

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[_Request]]:
        read = (self._read(number, request) for number, request in enumerate(requests))
        for _, group in groupby(read, key=lambda request: request.batch):
            while batch := list(islice(group, self.batch_size)):
                yield batch

    def _read(self, number: int, request: Instance) -> _Request:
        context, doc_to_messages, arguments, doc_id, task, split = tuple[Any, ...](request.args)
        where = f"{task}, {split}, document {doc_id}"
        try:
            conversation = read_messages(doc_to_messages(self.task_dict[task][split][doc_id]), self._sampling)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if conversation.system:
            self._warn("system prompts are left out: the model was trained without one")
        return _Request(number, where, context, arguments, conversation, tuple(self._options(arguments).items()))

    def _request(self, batch: list[_Request]) -> Request:
        """Requests about one picture or clip, which is read once, as one."""
        first, options = batch[0], dict(batch[0].options)
        try:
            media = first.conversation.media() if first.conversation.media else None
        except (ValueError, OSError) as error:
            raise ValueError(f"{first.where}: {error}") from error
        if isinstance(media, list):
            options["key_frames"] = range(len(media))
        questions = [request.conversation.question for request in batch]
        history = first.conversation.history
        if len(batch) > 1:
            return Request(media, question=questions, options=options, id=batch)
        return Request(media, question=questions[0], history=history, options=options, id=batch)

    def _options(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A task's generation arguments in the words of this package."""
        if (arguments.get("num_beams") or 1) > 1:
            self._warn("beams are not searched: the likeliest token is taken")
        options: dict[str, Any] = {
            "max_new_tokens": self._max_new_tokens or arguments.get("max_new_tokens") or DEFAULT_NEW_TOKENS
        }
        temperature = arguments.get("temperature") or 0
        if temperature > 0 and arguments.get("do_sample", True):
            options |= {"temperature": float(temperature), "top_p": float(arguments.get("top_p") or 1.0)}
        return options

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning("%s", message)


def _until(text: str, ends: str | Sequence[str] | None) -> str:
    """A text up to the first of some ends."""
    for end in [ends] if isinstance(ends, str) else ends or []:
        text = text.split(end, 1)[0] if end else text
    return text
