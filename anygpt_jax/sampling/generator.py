"""Requests from media to media: prompts, grammatical answers from the sampler, text or codes back."""

import dataclasses
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import Codec
from anygpt_tokenizers.speechtokenizer import SpeechTokenizer
from tqdm import tqdm

from anygpt_jax.checkpoint import LoadedModel
from anygpt_jax.prompts import Instructions, answer_prefix, load_instructions, pair_prompt
from anygpt_jax.sampling.grammar import Grammar, longest
from anygpt_jax.sampling.sampler import Decoding, Sampler
from anygpt_jax.vocabulary import TEXT, Modality

# Per kind of answer. Text has one right reading; media are drawn, colder than the model's spread. Pictures of
# a small model are right most often near 0.4: at 0.7 / 0.5 / 0.3 / 0 a share of 0.70 / 0.80 / 0.84 / 0.81.
DECODINGS: Mapping[str, Decoding] = {
    TEXT: Decoding(temperature=0.0),
    "image": Decoding(temperature=0.4),
    "audio": Decoding(temperature=0.7),
}
TEXT_BUDGET = 96  # tokens of a text answer
BLOCK_BUDGET = 2000  # tokens of a block whose length the vocabulary does not limit
EXTENSIONS = {"image": ".png", "audio": ".wav"}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one request gave: `text`, or `codes` [F, K] and the file `path` they were decoded to."""

    direction: str
    text: str | None = None
    codes: np.ndarray | None = None
    path: Path | None = None


class Generator:
    """A loaded model that answers requests, many at a time.

    Args:
      model: from `checkpoint.load_model` or `shipped.load_shipped`.
      batch_size: rows that are generated together; a smaller last batch is filled up with idle rows.
      instructions: replaces the shipped instruction lists.
    """

    def __init__(self, model: LoadedModel, batch_size: int = 50, instructions: Instructions | None = None):
        self.model = model
        self.batch_size = batch_size
        self._instructions = instructions or load_instructions()
        self._grammar = Grammar(model.vocabulary)
        self._sampler = Sampler(model.config, self._grammar)

    def generate(
        self,
        direction: str,
        contents: Sequence[str | np.ndarray],
        seed: int = 0,
        decoding: Decoding | None = None,
        instruction: str | None = None,
        budget: int | None = None,
        show_progress: bool = False,
    ) -> list[str | np.ndarray]:
        """Answers in the order of `contents`: texts, or codes int32 [F, K].

        Args:
          direction: such as "text->image" or "speech->text".
          contents: texts, or codes [F, K] of the source medium.
          seed: answer i depends only on the seed, i and content i.
          decoding: default by the kind of answer, `DECODINGS`.
          instruction: default: drawn from the direction's list with the seed, for each request anew.
          budget: the most tokens of one answer; default TEXT_BUDGET, or what the longest block needs.
        """
        source, target = self.parse_direction(direction)
        modality = None if target == TEXT else self.model.vocabulary.modality(target)
        decoding = decoding or DECODINGS[modality.kind if modality else TEXT]
        if budget is None:
            budget = TEXT_BUDGET if modality is None else _block_budget(modality)
        prompts = self._prompts(source, target, contents, seed, instruction)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(len(prompts)))

        answers = []
        starts = range(0, len(prompts), self.batch_size)
        for start in tqdm(starts, desc=direction, unit="batch", disable=None if show_progress else True):
            chosen = slice(start, start + self.batch_size)
            answers += self._sample(prompts[chosen], keys[chosen], modality and target, budget, decoding)
        return [self._read(answer, target) for answer in answers]

    def decode(self, modality: str, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes [F, K] of any lengths to media: uint8 [S, S, 3] or float32 [T]."""
        return decode_many(self.model.codecs[modality], codes)

    def encode_voice(self, modality: str, path: str | os.PathLike) -> np.ndarray:
        """The codes of a recording whose voice `modality` shall be spoken in; UserError if it can't be."""
        codec = self.model.codecs[modality]
        if not isinstance(codec, SpeechTokenizer):
            raise UserError(
                f"This model's {modality} codec follows no voice; a SpeechTokenizer with a SoundStorm does."
            )
        return codec.encode_voice(path)

    def run(self, line: str, out_dir: str | os.PathLike, seed: int = 0, **settings) -> Answer:
        """One request in the grammar of the original command line, `source|target|content[|voice]`.

        Content is text or the path of a file, voice the path of a recording. Media are written to `out_dir`;
        `settings` as in `generate`.

        Raises:
          UserError: a wrong number of fields, unknown modalities, a file that cannot be used, a target whose
            codec lacks what it decodes with.
        """
        source, target, content, voice = self.parse_request(line)
        spoken = {"voice": self.encode_voice(target, voice)} if voice else {}
        if source != TEXT:
            content = self.model.codecs[source].encode_file(content)
        (answer,) = self.generate(f"{source}->{target}", [content], seed, **settings)
        if target == TEXT:
            return Answer(f"{source}->{target}", text=answer)
        codec = self.model.codecs[target]
        named = line.split("|")[2].strip()
        named = f"{named[:20]}--{Path(voice).stem}--" if voice else named
        path = _free_path(Path(out_dir), named, EXTENSIONS[codec.kind])
        codec.write(codec.decode(answer[None], **spoken)[0], path)
        return Answer(f"{source}->{target}", codes=answer, path=path)

    def parse_request(self, line: str) -> tuple[str, str, str, str]:
        """`source|target|content[|voice]`, checked against vocabulary and codecs; voice is "" for none."""
        fields = [field.strip() for field in line.split("|")]
        if len(fields) not in (3, 4):
            raise UserError(
                f"{line!r} has {len(fields)} fields; write source|target|content, such as "
                "'text|image|a small red circle', or text|speech|content|voice.wav."
            )
        source, target, content, voice = [*fields, ""][:4]
        self.parse_direction(f"{source}->{target}")
        if not content:
            raise UserError(f"{line!r} has no content; write a text or a file's path after the second '|'.")
        if source != TEXT and not os.path.isfile(content):
            raise UserError(f"There is no file {content!r} to read {source} from.")
        if voice and (source, target) != (TEXT, "speech"):
            raise UserError(f"{line!r} names a voice, {voice!r}, which only text|speech requests can have.")
        if voice and not os.path.isfile(voice):
            raise UserError(f"There is no file {voice!r} to take the voice from.")
        if target != TEXT:
            self.model.codecs[target].check_decodable()
        return source, target, content, voice

    def parse_direction(self, direction: str) -> tuple[str, str]:
        """Source and target of "image->text" and the like, checked against the vocabulary."""
        source, _, target = direction.partition("->")
        for name in (source, target):
            if name != TEXT and name not in self.model.vocabulary.modalities:
                known = ", ".join([TEXT, *self.model.vocabulary.modalities])
                raise UserError(f"This model does not know {name!r}; it knows {known}.")
        if (source == TEXT) == (target == TEXT):
            raise UserError(
                f"{source} to {target} is not a pair: one side is text, the other one of "
                f"{', '.join(self.model.vocabulary.modalities)}."
            )
        return source, target

    def _prompts(self, source, target, contents, seed, instruction) -> list[np.ndarray]:
        """The prompts, each with the opening of its answer (a start tag, where a medium is asked for)."""
        vocabulary, tokenizer = self.model.vocabulary, self.model.text_tokenizer
        choices = [instruction] if instruction else self._instructions.of(source, target)
        opening = answer_prefix(vocabulary, tokenizer, target)
        prompts = []
        for index, content in enumerate(contents):
            chosen = choices[np.random.default_rng([seed, index]).integers(len(choices))]
            prompt = pair_prompt(vocabulary, tokenizer, source, target, content, chosen)
            prompts.append(np.concatenate([prompt, opening]).astype(np.int32))
        return prompts

    def _sample(self, prompts, keys, block, budget, decoding) -> list[np.ndarray]:
        """One batch, filled up to a power of two or to batch_size so that few sizes are compiled."""
        rows = len(prompts)
        full = min(self.batch_size, 1 << (rows - 1).bit_length())
        prompts = [*prompts, *[prompts[-1]] * (full - rows)]
        state = self._grammar.initial([block] * full, [budget] * full)
        state = state._replace(done=jnp.arange(full) >= rows)
        keys = keys[jnp.minimum(jnp.arange(full), rows - 1)]
        return self._sampler.sample(self.model.params, prompts, state, [decoding] * full, keys)[:rows]

    def _read(self, answer: np.ndarray, target: str) -> str | np.ndarray:
        """Ids of an answer, its closing token included, to text or codes."""
        if target == TEXT:
            return self.model.text_tokenizer.decode(answer[:-1]).strip()
        return self.model.vocabulary.ids_to_codes(target, answer[:-1])


def _block_budget(modality: Modality) -> int:
    """Tokens of the longest block with its end tag."""
    frames = longest(modality)
    return frames * modality.num_codebooks + 1 if frames else BLOCK_BUDGET


def decode_many(codec: Codec, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Media of codes [F, K] each. Pictures go through the codec together; sounds have many lengths, and each
    number of rows with each length would be a compilation, so they go one by one."""
    if codec.fixed_frames and len(codes):
        return list(codec.decode(np.stack(codes)))
    return [codec.decode(item[None])[0] for item in codes]


def _free_path(folder: Path, content: str, extension: str) -> Path:
    """A new file's path: the first 50 characters of the content and the time, as the original does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The output folder {str(folder)!r} cannot be made: {error.strerror}.") from error
    stem = re.sub(r"[^\w .,'-]+", "_", content.strip())[:50].strip(" .") or "answer"
    stem = f"{stem} {time.strftime('%m%d_%H%M%S')}".replace(" ", "_")
    path, number = folder / f"{stem}{extension}", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}_{number}{extension}"
    return path
