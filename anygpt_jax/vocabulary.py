"""One vocabulary for text and all media: which id means what, as a manifest kept with data and weights.

Rows come in the order in which they were added: the text model's pieces, control tokens, then per modality
its codes (level by level), its start tag and its end tag. Rows are only ever appended, so an older model's
ids stay valid.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from anygpt_tokenizers.cli import UserError

from anygpt_jax import storage

TEXT = "text"
HUMAN, ASSISTANT, END_OF_HUMAN, END_OF_ASSISTANT = "[Human]", "[MMGPT]", "<eoh>", "<eos>"
CONTROL_TOKENS = (HUMAN, ASSISTANT, END_OF_HUMAN, END_OF_ASSISTANT)
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2  # LLaMA: <unk> doubles as padding, then <s> and </s>
FORMAT_VERSION = 1

# Tags and code strings of the published checkpoints. The speech emoji ends with the variation selector
# U+FE0F.
_KNOWN_TAGS = {
    "image": ("<soim>", "<eoim>", "<\U0001f440{n}>"),
    "speech": ("<sosp>", "<eosp>", "<\U0001f5e3\ufe0f{n}>"),
    "music": ("<somu>", "<eomu>", "<\U0001f3b6{n}>"),
    "audio": ("<soau>", "<eoau>", "<\U0001f442{n}>"),
}


@dataclasses.dataclass(frozen=True)
class Modality:
    """The rows of one medium: `num_codes` codes from `first_id` on, then its start tag and its end tag.

    `frame_rate` is in frames per second and `sample_rate` in Hz (audio); `image_size` in pixels.
    `fixed_frames` is the exact number of frames of every item (images), `max_frames` the longest item a
    sampler may write. `codec_hash` names the codec weights that the codes come from.
    """

    name: str
    num_codebooks: int
    codebook_size: int
    first_id: int
    start_tag: str
    end_tag: str
    code_format: str
    kind: str
    frame_rate: float | None = None
    sample_rate: int | None = None
    image_size: int | None = None
    fixed_frames: int | None = None
    max_frames: int | None = None
    codec_hash: str | None = None

    @property
    def num_codes(self) -> int:
        return self.num_codebooks * self.codebook_size

    @property
    def start_id(self) -> int:
        return self.first_id + self.num_codes

    @property
    def end_id(self) -> int:
        return self.first_id + self.num_codes + 1


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """All rows of one model. `control` and `modalities` keep the order in which their rows were added."""

    text_size: int
    text_model_hash: str | None
    control: dict[str, int]
    modalities: dict[str, Modality]
    size: int
    pad_multiple: int = 128

    @property
    def padded_size(self) -> int:
        """Rows of the embedding tables: `size` rounded up so that every mesh divides it."""
        return math.ceil(self.size / self.pad_multiple) * self.pad_multiple

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def modality(self, name: str) -> Modality:
        """The named modality; a UserError lists the known ones."""
        if name not in self.modalities:
            known = ", ".join(self.modalities) or "none"
            raise UserError(f"The vocabulary has no modality {name!r}; it has {known}.")
        return self.modalities[name]

    def directions(self) -> list[str]:
        """Names of what a document does; the index is the direction id. 0 is text alone and chat."""
        pairs = [pair for name in self.modalities for pair in (f"{name}->{TEXT}", f"{TEXT}->{name}")]
        return [TEXT, *pairs]

    def codes_to_ids(self, modality: str, codes: np.ndarray) -> np.ndarray:
        """Codes [F, K] to ids int32 [F*K]: frame by frame, level by level, each level in its own id range."""
        entry = self.modality(modality)
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != entry.num_codebooks:
            raise UserError(
                f"Codes of {modality!r} have shape {codes.shape}; expected [frames, {entry.num_codebooks}]."
            )
        wrong = np.argwhere((codes < 0) | (codes >= entry.codebook_size))
        if len(wrong):
            frame, level = wrong[0]
            raise UserError(
                f"Code {codes[frame, level]} of {modality!r} at frame {frame}, codebook {level} is outside "
                f"0..{entry.codebook_size - 1}; the codec does not fit the vocabulary."
            )
        offsets = entry.first_id + np.arange(entry.num_codebooks) * entry.codebook_size
        return (codes + offsets).astype(np.int32).reshape(-1)

    def ids_to_codes(self, modality: str, ids: np.ndarray) -> np.ndarray:
        """Ids [F*K] (without tags) to codes int32 [F, K]; a UserError names the first wrong position."""
        entry = self.modality(modality)
        ids = np.asarray(ids, dtype=np.int64)
        if len(ids) % entry.num_codebooks:
            raise UserError(
                f"{len(ids)} ids of {modality!r} are not whole frames of {entry.num_codebooks} codebooks."
            )
        offsets = entry.first_id + np.arange(entry.num_codebooks) * entry.codebook_size
        codes = ids.reshape(-1, entry.num_codebooks) - offsets
        wrong = np.flatnonzero((codes < 0) | (codes >= entry.codebook_size))
        if len(wrong):
            position = int(wrong[0])
            raise UserError(
                f"Id {ids[position]} at position {position} is no code of {modality!r}, "
                f"codebook {position % entry.num_codebooks}."
            )
        return codes.astype(np.int32)

    def modality_table(self) -> np.ndarray:
        """int32 [padded_size]: 0 text and control, 1.. the modalities in order (with tags), -1 padding."""
        table = np.zeros(self.padded_size, np.int32)
        for index, entry in enumerate(self.modalities.values(), start=1):
            table[entry.first_id : entry.end_id + 1] = index
        table[self.size :] = -1
        return table

    @functools.cached_property
    def token_strings(self) -> dict[str, int]:
        """Every added token of the original string format, `<👀17>` and tags included, to its id."""
        tokens = dict(self.control)
        for entry in self.modalities.values():
            tokens |= {entry.code_format.format(n=n): entry.first_id + n for n in range(entry.num_codes)}
            tokens |= {entry.start_tag: entry.start_id, entry.end_tag: entry.end_id}
        return tokens

    @functools.cached_property
    def token_names(self) -> dict[int, str]:
        """Inverse of `token_strings`."""
        return {number: token for token, number in self.token_strings.items()}

    def extend(self, entries: Iterable[str | Modality]) -> "Vocabulary":
        """A vocabulary with rows appended: control tokens (strings) and media (first_id is set here)."""
        control, modalities, size = dict(self.control), dict(self.modalities), self.size
        for entry in entries:
            name = entry if isinstance(entry, str) else entry.name
            if name in control or name in modalities or name == TEXT:
                raise UserError(
                    f"The vocabulary entry {name!r} is there twice; give every entry its own name."
                )
            if isinstance(entry, str):
                control[entry] = size
                size += 1
            else:
                modalities[name] = dataclasses.replace(entry, first_id=size)
                size += entry.num_codes + 2
        extended = dataclasses.replace(self, control=control, modalities=modalities, size=size)
        tags = [
            *control,
            *(tag for m in modalities.values() for tag in (m.start_tag, m.end_tag, m.code_format)),
        ]
        if len(set(tags)) < len(tags):
            twice = next(tag for tag in tags if tags.count(tag) > 1)
            raise UserError(
                f"The token {twice!r} is used for two entries of the vocabulary; rename one of them."
            )
        return extended

    def check(self, other: "Vocabulary", here: str = "this one", there: str = "the other") -> None:
        """Raises a UserError that names the first entry in which the two vocabularies differ."""
        mine, yours = self.to_json(), other.to_json()
        difference = _first_difference(mine, yours)
        if difference:
            place, a, b = difference
            raise UserError(
                f"The vocabularies differ: {place} is {a!r} in {here} and {b!r} in {there}; "
                "use data, codecs and weights that were made with one vocabulary."
            )

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        return {
            "version": FORMAT_VERSION,
            "text": {"size": self.text_size, "model_hash": self.text_model_hash},
            "control": dict(self.control),
            "modalities": [dataclasses.asdict(entry) for entry in self.modalities.values()],
            "pad_multiple": self.pad_multiple,
            "size": self.size,
        }

    @classmethod
    def from_json(cls, manifest: Mapping[str, Any]) -> "Vocabulary":
        """Inverse of `to_json`."""
        if manifest.get("version") != FORMAT_VERSION:
            raise UserError(
                f"The vocabulary has format version {manifest.get('version')!r}, "
                f"and this program reads {FORMAT_VERSION}."
            )
        try:
            modalities = {entry["name"]: Modality(**entry) for entry in manifest["modalities"]}
            return cls(
                text_size=manifest["text"]["size"],
                text_model_hash=manifest["text"]["model_hash"],
                control=dict(manifest["control"]),
                modalities=modalities,
                size=manifest["size"],
                pad_multiple=manifest["pad_multiple"],
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"The vocabulary manifest is damaged: {error}.") from error

    def save(self, path: str | os.PathLike) -> None:
        """Writes the manifest as a JSON file."""
        storage.write_text(path, json.dumps(self.to_json(), ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Vocabulary":
        """Reads a file written by `save`; a missing or damaged one is a UserError."""
        try:
            return cls.from_json(json.loads(storage.read_text(path)))
        except FileNotFoundError as error:
            raise UserError(f"There is no vocabulary at {os.fspath(path)!r}.") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{os.fspath(path)!r} is not a vocabulary: {error}.") from error


def from_text_model(text_size: int, text_model_hash: str | None, pad_multiple: int = 128) -> Vocabulary:
    """A vocabulary of the text model's rows alone, to be extended."""
    return Vocabulary(text_size, text_model_hash, {}, {}, text_size, pad_multiple)


def published(name: str = "chat", text_model_hash: str | None = None) -> Vocabulary:
    """The layout of the published AnyGPT checkpoints: "chat" (53,520 rows) or "base" (53,516 rows)."""
    vocabulary = from_text_model(32000, text_model_hash).extend(
        [
            *CONTROL_TOKENS,
            make_modality("image", 1, 8192, kind="image", image_size=224, fixed_frames=32, max_frames=32),
            make_modality("speech", 1, 1024, frame_rate=50.0, sample_rate=16000, max_frames=1500),
            make_modality("music", 4, 2048, frame_rate=50.0, sample_rate=32000, max_frames=500),
            make_modality("audio", 4, 1024, frame_rate=75.0, sample_rate=24000, max_frames=375),
        ]
    )
    if name == "base":
        return vocabulary
    if name == "chat":
        return vocabulary.extend(["<eom>", "[AnyGPT]", "<-Res->", "<-Ins->"])
    raise UserError(f"There is no published vocabulary {name!r}; choose 'chat' or 'base'.")


def make_modality(
    name: str,
    num_codebooks: int,
    codebook_size: int,
    kind: str = "audio",
    start_tag: str | None = None,
    end_tag: str | None = None,
    code_format: str | None = None,
    **facts: Any,
) -> Modality:
    """A Modality without ids (`extend` sets them); tags default to the published ones or to its name."""
    default = _KNOWN_TAGS.get(name, (f"<so-{name}>", f"<eo-{name}>", f"<{name}:{{n}}>"))
    return Modality(
        name=name,
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
        first_id=0,
        start_tag=start_tag or default[0],
        end_tag=end_tag or default[1],
        code_format=code_format or default[2],
        kind=kind,
        **facts,
    )


def from_config(
    config: Mapping[str, Any], text_model: Any, codecs: Mapping[str, Any] | None = None
) -> Vocabulary:
    """A vocabulary from a config; a new modality is one more entry of `modalities`.

    `config`: {"modalities": [{"name": "image"}, {"name": "speech", "max_seconds": 4.0}, …], "control": [more
    control tokens], "pad_multiple": 128}, or {"published": "chat"}. Facts that an entry leaves out come from
    `codecs[name]`. `text_model`: a TextTokenizer.
    """
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    if config.get("published"):
        return _published_with(config["published"], text_model, codecs or {})
    modalities = [_modality_from_config(entry, codecs or {}) for entry in config.get("modalities", ())]
    vocabulary = from_text_model(text_model.size, text_model.hash, config.get("pad_multiple", 128))
    return vocabulary.extend([*CONTROL_TOKENS, *config.get("control", ()), *modalities])


_CODEC_FACTS = (
    "num_codebooks",
    "codebook_size",
    "kind",
    "frame_rate",
    "sample_rate",
    "image_size",
    "fixed_frames",
)


def _published_with(name: str, text_model: Any, codecs: Mapping[str, Any]) -> Vocabulary:
    vocabulary = published(name, text_model.hash)
    if text_model.size != vocabulary.text_size:
        raise UserError(
            f"The published vocabulary {name!r} needs LLaMA's text model with {vocabulary.text_size} pieces; "
            f"config.vocabulary.text_model has {text_model.size}."
        )
    modalities = dict(vocabulary.modalities)
    for modality, codec in codecs.items():
        entry = vocabulary.modality(modality)
        if (codec.num_codebooks, codec.codebook_size) != (entry.num_codebooks, entry.codebook_size):
            raise UserError(
                f"The {modality} codec has {codec.num_codebooks} × {codec.codebook_size} codes, "
                f"the published vocabulary {entry.num_codebooks} × {entry.codebook_size}; "
                f"set config.codecs.{modality} to the codec of the published model, or remove it."
            )
        modalities[modality] = dataclasses.replace(entry, codec_hash=codec.hash)
    return dataclasses.replace(vocabulary, modalities=modalities)


def _modality_from_config(entry: Mapping[str, Any], codecs: Mapping[str, Any]) -> Modality:
    entry = dict(entry)
    if "name" not in entry:
        raise UserError("A modality of the config's vocabulary has no name; write {'name': 'image', …}.")
    name = entry.pop("name")
    codec = codecs.get(name)
    if codec is not None:
        facts = {fact: getattr(codec, fact, None) for fact in _CODEC_FACTS}
        entry = {**facts, "codec_hash": codec.hash, **entry}
    if not entry.get("num_codebooks") or not entry.get("codebook_size"):
        raise UserError(
            f"Modality {name!r} has no codec and no num_codebooks and codebook_size; add it to config.codecs."
        )
    seconds = entry.pop("max_seconds", None)
    if seconds and not entry.get("max_frames"):
        entry["max_frames"] = round(seconds * entry["frame_rate"])
    if entry.get("fixed_frames"):
        entry["max_frames"] = entry["fixed_frames"]
    try:
        return make_modality(name, **entry)
    except TypeError as error:
        raise UserError(
            f"Modality {name!r} of the config has an unknown or missing field: {error}."
        ) from error


def _first_difference(a: Any, b: Any, place: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            found = _first_difference(a.get(key), b.get(key), f"{place}.{key}" if place else key)
            if found:
                return found
        return None
    if isinstance(a, list) and isinstance(b, list) and all(isinstance(entry, dict) for entry in [*a, *b]):
        by_name = {entry["name"]: entry for entry in a}, {entry["name"]: entry for entry in b}
        if list(by_name[0]) != list(by_name[1]):
            return place, list(by_name[0]), list(by_name[1])
        return _first_difference(*by_name, place)
    return None if a == b else (place, a, b)
