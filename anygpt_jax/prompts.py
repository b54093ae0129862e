"""Prompts: how text and media become one document of ids, and which of those the model is asked to produce.

Two forms: the pair templates of pre-training (an instruction, one medium, one text) and chat. Documents are
built from segments, never by searching strings, so nothing that a user types can become a control token.
"""

import dataclasses
import functools
import importlib.resources
import json
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from anygpt_tokenizers.cli import UserError

from anygpt_jax.text import TextTokenizer
from anygpt_jax.vocabulary import (
    ASSISTANT,
    BOS_ID,
    END_OF_ASSISTANT,
    END_OF_HUMAN,
    EOS_ID,
    HUMAN,
    TEXT,
    Vocabulary,
)

PROMPT, ANSWER = 1, 2  # roles of a token
CONTROL = "control"  # the modality of a segment that is one control token
PAIR_CUE = "This is input:"
USER_ROLE, ASSISTANT_ROLE = "user", "assistant"


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of a document: a string if `modality` is "text", codes int32 [F, K] if it is a medium's name.

    A string of the modality "control" is one control token, such as `<-Ins->`; it never comes from a user.
    """

    content: str | np.ndarray
    modality: str = TEXT


class Message(NamedTuple):
    """One turn of a chat; `role` is "user" or "assistant"."""

    role: str
    segments: tuple[Segment, ...]


@dataclasses.dataclass(frozen=True)
class Document:
    """Ids int32 [N] with roles uint8 [N] (1 = prompt, 2 = answer) and what it does, such as "image->text"."""

    ids: np.ndarray
    roles: np.ndarray
    direction: str


class ChatTemplate(NamedTuple):
    """The names and separators that a chat model was trained with."""

    system: str
    user: str
    assistant: str
    end_of_user: str
    end_of_assistant: str


_SYSTEM = (
    "You are an AI assistant named {name} who can understand and generate multimodal content, "
    "including text, speech, images and audio."
)
CHAT_TEMPLATES = {
    # Of the published chat checkpoint, and of the published fine-tuning script.
    "mmgpt-eos": ChatTemplate(_SYSTEM.format(name="MMGPT"), HUMAN, ASSISTANT, END_OF_HUMAN, END_OF_ASSISTANT),
    "anygpt-eom": ChatTemplate(_SYSTEM.format(name="AnyGPT"), HUMAN, "[AnyGPT]", END_OF_HUMAN, "<eom>"),
}


def pair_document(
    vocabulary: Vocabulary,
    text_tokenizer: TextTokenizer,
    source: str,
    target: str,
    text: str,
    codes: np.ndarray,
    instruction: str,
) -> Document:
    """A training document from a text and the codes [F, K] of a medium.

    `source` and `target` are "text" and a modality, in either order. To text: `<s>[Human]: {instruction}
    {codes}<eoh> [MMGPT]: {text}<eos></s>`; from text: `<s>[Human]: {instruction} This is input: {text}<eoh>
    [MMGPT]: {codes}<eos></s>`. The answer starts after `[MMGPT]:`.
    """
    modality = _other_than_text(source, target)
    media, words = Segment(codes, modality), Segment(text)
    builder = _pair_builder(
        vocabulary, text_tokenizer, source, words if source == TEXT else media, instruction
    )
    answer = media if source == TEXT else words
    builder.answer((answer,), END_OF_ASSISTANT)
    builder.token_ids([EOS_ID], ANSWER)
    return builder.document(f"{source}->{target}")


def pair_prompt(
    vocabulary: Vocabulary,
    text_tokenizer: TextTokenizer,
    source: str,
    target: str,
    content: str | np.ndarray,
    instruction: str,
) -> np.ndarray:
    """Ids int32 [N] of that document up to and including `[MMGPT]:`; `content` is text or codes [F, K]."""
    _other_than_text(source, target)
    builder = _pair_builder(vocabulary, text_tokenizer, source, Segment(content, source), instruction)
    builder.text(":", PROMPT)
    return builder.document(f"{source}->{target}").ids


def answer_prefix(vocabulary: Vocabulary, text_tokenizer: TextTokenizer, target: str) -> np.ndarray:
    """The ids int32 that start every answer: a lone `▁` and the start tag; none when the target is text."""
    if target == TEXT:
        return np.zeros(0, np.int32)
    cue, run = text_tokenizer.encode_run(":"), text_tokenizer.encode_run(": ")
    return np.array([*run[len(cue) :], vocabulary.modality(target).start_id], np.int32)


def chat_document(
    vocabulary: Vocabulary,
    text_tokenizer: TextTokenizer,
    messages: Sequence[Message],
    template: str = "mmgpt-eos",
) -> Document:
    """A training document of a chat that ends with the assistant.

    Answer tokens are each assistant message from its first piece, its end token, and the final `</s>`.
    """
    if not messages or messages[-1].role != ASSISTANT_ROLE:
        raise UserError("A training chat must end with a message of the assistant.")
    builder = _chat_builder(vocabulary, text_tokenizer, messages, template)
    builder.token_ids([EOS_ID], ANSWER)
    return builder.document(TEXT)


def chat_prompt(
    vocabulary: Vocabulary,
    text_tokenizer: TextTokenizer,
    messages: Sequence[Message],
    template: str = "mmgpt-eos",
) -> np.ndarray:
    """Ids int32 [N] of a chat that ends with the user, with the assistant's name and colon after it."""
    if not messages or messages[-1].role != USER_ROLE:
        raise UserError("A chat to be answered must end with a message of the user.")
    builder = _chat_builder(vocabulary, text_tokenizer, messages, template)
    builder.text("\n", PROMPT)
    builder.control(_chat_template(template).assistant, PROMPT)
    builder.text(":", PROMPT)
    return builder.document(TEXT).ids


class Instructions:
    """Instructions per direction: `x_to_text` and `text_to_x` map a modality, or "default", to a list."""

    def __init__(self, x_to_text: Mapping[str, Sequence[str]], text_to_x: Mapping[str, Sequence[str]]):
        self._x_to_text, self._text_to_x = x_to_text, text_to_x

    def of(self, source: str, target: str) -> list[str]:
        """The list of a direction such as ("image", "text"); a modality without one takes the default."""
        modality = _other_than_text(source, target)
        lists = self._x_to_text if target == TEXT else self._text_to_x
        if modality not in lists and "default" not in lists:
            raise UserError(
                f"The instruction file has no list for {source} to {target}, and no default list."
            )
        return [text.replace("{modality}", modality) for text in lists.get(modality, lists.get("default"))]

    def all(self) -> list[str]:
        """Every instruction of every list."""
        return [
            text for lists in (self._x_to_text, self._text_to_x) for texts in lists.values() for text in texts
        ]


def load_instructions(path: str | os.PathLike | None = None) -> Instructions:
    """Reads {"x_to_text": {modality: [instructions]}, "text_to_x": {…}}; None reads the shipped file."""
    try:
        if path:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
        else:
            asset = importlib.resources.files("anygpt_jax") / "assets" / "instructions.json"
            content = json.loads(asset.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"The instruction file {os.fspath(path)!r} cannot be read: {error.strerror}."
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(f"The instruction file {os.fspath(path)!r} is not JSON: {error}.") from error
    for part in ("x_to_text", "text_to_x"):
        lists = content.get(part) if isinstance(content, dict) else None
        if not isinstance(lists, dict) or not all(
            isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)
            for texts in lists.values()
        ):
            raise UserError(
                f"The instruction file {os.fspath(path or '')!r} must hold, under {part!r}, "
                "a non-empty list of strings per modality."
            )
    return Instructions(content["x_to_text"], content["text_to_x"])


class _Builder:
    """Collects a document. Neighbouring text is joined to one run and encoded when something else follows."""

    def __init__(self, vocabulary: Vocabulary, text_tokenizer: TextTokenizer):
        self._vocabulary, self._tokenizer = vocabulary, text_tokenizer
        self._ids: list[np.ndarray] = []
        self._roles: list[np.ndarray] = []
        self._run: list[tuple[str, int]] = []
        self.token_ids([BOS_ID], PROMPT)

    def token_ids(self, ids: Sequence[int] | np.ndarray, role: int) -> None:
        self._flush()
        self._append(ids, role)

    def control(self, token: str, role: int) -> None:
        if token not in self._vocabulary.control:
            raise UserError(
                f"The vocabulary has no control token {token!r}, which this prompt template needs."
            )
        self.token_ids([self._vocabulary.control[token]], role)

    def text(self, text: str, role: int) -> None:
        self._run.append((text, role))

    def segment(self, segment: Segment, role: int) -> None:
        if segment.modality == TEXT:
            self.text(segment.content, role)
            return
        if segment.modality == CONTROL:
            self.control(segment.content, role)
            return
        entry = self._vocabulary.modality(segment.modality)
        codes = self._vocabulary.codes_to_ids(segment.modality, segment.content)
        self.token_ids([entry.start_id, *codes, entry.end_id], role)

    def answer(self, segments: Sequence[Segment], end: str) -> None:
        """`: {segments}{end}`: the colon belongs to the prompt, all that follows to the answer."""
        self.text(":", PROMPT)
        self.text(" ", ANSWER)
        for segment in segments:
            self.segment(segment, ANSWER)
        self.control(end, ANSWER)

    def document(self, direction: str) -> Document:
        self._flush()
        return Document(np.concatenate(self._ids), np.concatenate(self._roles), direction)

    def _append(self, ids: Sequence[int] | np.ndarray, role: int) -> None:
        self._ids.append(np.asarray(ids, np.int32))
        self._roles.append(np.full(len(ids), role, np.uint8))

    def _flush(self) -> None:
        if not self._run:
            return
        ids = self._tokenizer.encode_run("".join(text for text, _ in self._run))
        # A run changes its role at most once, from prompt to answer; the prompt's part is encoded alone, as
        # at inference.
        prompt = "".join(text for text, role in self._run if role == PROMPT)
        boundary = (
            _common_prefix(ids, self._tokenizer.encode_run(prompt))
            if self._run[-1][1] == ANSWER
            else len(ids)
        )
        self._run = []
        self._append(ids[:boundary], PROMPT)
        self._append(ids[boundary:], ANSWER)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _pair_builder(
    vocabulary: Vocabulary, text_tokenizer: TextTokenizer, source: str, content: Segment, instruction: str
) -> _Builder:
    builder = _Builder(vocabulary, text_tokenizer)
    builder.control(HUMAN, PROMPT)
    builder.text(f": {instruction} ", PROMPT)
    if source == TEXT:
        builder.text(f"{PAIR_CUE} ", PROMPT)
    builder.segment(content, PROMPT)
    builder.control(END_OF_HUMAN, PROMPT)
    builder.text(" ", PROMPT)
    builder.control(ASSISTANT, PROMPT)
    return builder


def _chat_builder(
    vocabulary: Vocabulary, text_tokenizer: TextTokenizer, messages: Sequence[Message], template: str
) -> _Builder:
    names = _chat_template(template)
    builder = _Builder(vocabulary, text_tokenizer)
    builder.text(names.system, PROMPT)
    for index, message in enumerate(messages):
        expected = (USER_ROLE, ASSISTANT_ROLE)[index % 2]
        if message.role != expected:
            raise UserError(
                f"Message {index + 1} of a chat is by {message.role!r}; "
                "user and assistant must alternate, the user first."
            )
        builder.text("\n", PROMPT)
        if message.role == USER_ROLE:
            builder.control(names.user, PROMPT)
            builder.text(": ", PROMPT)
            for segment in message.segments:
                builder.segment(segment, PROMPT)
            builder.control(names.end_of_user, PROMPT)
        else:
            builder.control(names.assistant, PROMPT)
            builder.answer(message.segments, names.end_of_assistant)
    return builder


@functools.cache
def _chat_template(name: str) -> ChatTemplate:
    if name not in CHAT_TEMPLATES:
        raise UserError(f"There is no chat template {name!r}; choose one of {', '.join(CHAT_TEMPLATES)}.")
    return CHAT_TEMPLATES[name]


def _other_than_text(source: str, target: str) -> str:
    if (source == TEXT) == (target == TEXT):
        raise UserError(
            f"A pair has text on one side and a medium on the other, not {source!r} and {target!r}."
        )
    return target if source == TEXT else source
