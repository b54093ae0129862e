"""The host-side class of the published audio codecs: any length, any mixture of lengths, one device or many.

Clips of up to `WHOLE` frames go through one compiled program per bucket of lengths. Longer ones go through
in pieces of `WHOLE` frames, with the same result: convolutions get the context they need, and the LSTM's
state is carried from piece to piece. Codes are decided in float32 at the highest matmul precision on every
back end.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from anygpt_tokenizers import published_programs as programs
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.field_kinds import check_kind
from anygpt_tokenizers.long_clips import StreamDecoder, encode_long
from anygpt_tokenizers.meshes import OnMesh
from anygpt_tokenizers.published_seanet import MAY_BE_ZERO, PublishedSeanet, SeanetSpec, shapes_of
from anygpt_tokenizers.sound_codec import SoundCodec, check_finite

BLOCK = 50  # frames that the convolutions take at a time; lengths are padded to a multiple
WHOLE = 3000  # frames up to which a clip is one program, and the pieces of longer ones
ROWS = 32  # clips in one call of a program


class PublishedCodec(OnMesh, SoundCodec):
    """A SEANet codec with published weights; samples are float32 [B, T], nominally in [-1, 1].

    Where the codec has several channels, samples are [B, T, channels] here and wherever [B, T] is written.
    Params are those of `PublishedSeanet`. `num_codebooks` levels are used, of `quantizers` in the weights.

    Attributes:
      spec: sizes and conventions.
      channels: of the sound.
      module: the Flax module.
    """

    def __init__(self, config: dict, params: dict):
        super().__init__(config, params)
        self.spec = spec_from_config(self.config)
        if not 1 <= self.num_codebooks <= self.spec.quantizers:
            raise UserError(
                f"num_codebooks is {self.num_codebooks}, but quantizers, the levels in the weights, are "
                f"{self.spec.quantizers}; a codec uses 1 to {self.spec.quantizers} of them."
            )
        self.module = PublishedSeanet(self.spec)
        self.sample_rate = self.config["sample_rate"]
        self.channels = self.spec.channels
        self.hop_length = self.spec.hop_length
        self.frame_rate = self.sample_rate / self.hop_length
        self._programs: dict[tuple, Callable] = {}

    def net_shapes(self) -> dict[str, tuple[int, ...]]:
        return shapes_of(self.spec)

    @functools.cached_property
    def weights(self) -> dict:
        """The parameters on the devices."""
        with jax.ensure_compile_time_eval():  # real arrays also when first asked for inside a jitted function
            return jax.device_put(self.params, self.sharding())

    def encode(
        self,
        samples: np.ndarray,
        lengths: Sequence[int] | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> np.ndarray:
        """Samples float32 [B, T] -> int32 [B, ceil(T / hop_length), last - first].

        `lengths` [B] says how many samples of each row are the clip; what follows them changes nothing, and
        frames after a row's end are 0. Levels first..last-1 are used (all `num_codebooks` by default); with
        first > 0, level `first` quantises the latents themselves, as the originals' `st` does. UserError if
        lengths, levels or samples are impossible.
        """
        samples, lengths = self._checked_samples(samples, lengths)
        last = self.num_codebooks if last is None else last
        if not 0 <= first < last <= self.spec.quantizers:
            raise UserError(
                f"Levels {first}..{last - 1} were asked for; there are 0..{self.spec.quantizers - 1}."
            )
        parts = [
            self._encode_rows(samples[at : at + ROWS], lengths[at : at + ROWS], first, last)
            for at in range(0, len(samples), ROWS)
        ]
        return np.concatenate(parts)

    def latents(self, samples: np.ndarray, lengths: Sequence[int] | None = None) -> np.ndarray:
        """Samples float32 [B, T] -> what is quantised, float32 [B, ceil(T / hop_length), dimension]."""
        samples, lengths = self._checked_samples(samples, lengths)
        return self._encode_rows(samples, lengths, None, None)

    def decode(self, codes: np.ndarray, lengths: Sequence[int] | None = None, first: int = 0) -> np.ndarray:
        """int32 codes [B, frames, n] of levels first..first+n-1 -> float32 [B, frames · hop_length].

        n may be less than `num_codebooks`. `lengths` [B] says how many frames of each row are the clip;
        samples after a row's end are 0. Nothing is clipped. UserError if codes or lengths are impossible.
        """
        codes = self.check_codes(codes, first)
        lengths = checked_lengths(lengths, *codes.shape[:2], "frames")
        parts = []
        for at in range(0, len(codes), ROWS):
            rows, row_lengths = codes[at : at + ROWS], lengths[at : at + ROWS]
            if self._is_whole(codes.shape[1]):
                parts.append(self._decode_whole(rows, row_lengths, first))
            else:
                parts.append(self._decode_long(rows, row_lengths, first))
        return np.concatenate(parts)

    def encode_many(self, items: list[np.ndarray], last: int | None = None) -> list[np.ndarray]:
        """Clips [T] of any lengths -> int32 [frames, last] each; similar lengths go together.

        `last` levels are used, all `num_codebooks` by default. Clips of more than one program go alone, so
        that memory is set by the longest. MediaError names a clip that can't be encoded; `encode_usable`
        encodes the others.
        """
        self.check_clips(items)
        results: list[np.ndarray] = [None] * len(items)
        order = sorted(range(len(items)), key=lambda index: len(items[index]))
        whole = [index for index in order if len(items[index]) <= WHOLE * self.hop_length]
        groups = [whole[at : at + ROWS] for at in range(0, len(whole), ROWS)]
        for members in [*groups, *([index] for index in order[len(whole) :])]:
            lengths = [len(items[index]) for index in members]
            if len(members) == 1:
                batch = items[members[0]][None]
            else:
                batch = np.zeros((len(members), max(lengths), *items[members[0]].shape[1:]), np.float32)
                for row, index in enumerate(members):
                    batch[row, : lengths[row]] = items[index]
            for index, length, codes in zip(
                members, lengths, self.encode(batch, lengths, 0, last), strict=True
            ):
                results[index] = codes[: -(-length // self.hop_length)]
        return results

    def check_codes(self, codes: np.ndarray, first: int = 0, start: int = 0) -> np.ndarray:
        """Codes as int32 [B, frames, n], n from 1 to the levels there are; UserError names what is wrong.

        They are of levels first.. and, where they continue a stream, of its frames start...
        """
        codes = np.asarray(codes)
        if not 0 <= first < self.spec.quantizers:
            raise UserError(f"The first level is one of 0..{self.spec.quantizers - 1}, not {first}.")
        most = self.spec.quantizers - first
        if codes.ndim != 3 or not 1 <= codes.shape[-1] <= most or codes.shape[1] == 0:
            raise UserError(
                f"The {self.modality} codec decodes codes of shape [batch, frames, 1..{most}] with at least "
                f"one frame, not {list(codes.shape)}."
            )
        return self.checked_range(codes, first, start)

    def program(self, function: Callable, *static) -> Callable:
        """`function(module, weights, *arrays, *static)` compiled, as a function of the arrays."""
        key = (function, static)
        if key not in self._programs:
            self._programs[key] = jax.jit(lambda weights, *a: function(self.module, weights, *a, *static))
        return lambda *arrays: self._programs[key](self.weights, *arrays)

    def padded_rows(self, rows: int) -> int:
        """Rows that a batch is padded to: a power of two that the mesh divides."""
        return _round_up(1 << (rows - 1).bit_length(), self.batch_devices)

    def _checked_samples(
        self, samples: np.ndarray, lengths: Sequence[int] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        samples = self.checked_shape(samples)
        lengths = checked_lengths(lengths, *samples.shape[:2], "samples")
        samples = silent_after(samples, lengths)
        check_finite(samples)
        return samples, lengths

    def _is_whole(self, frames: int) -> bool:
        """Whether clips of `frames` are one program; UserError if they must be and can't."""
        if frames > WHOLE and self.spec.time_group_norm:
            raise UserError(
                f"This codec normalises over whole clips (time_group_norm), of at most {WHOLE} frames "
                f"({WHOLE / self.frame_rate:.0f} s); this one has {frames}. Cut it into shorter clips."
            )
        return frames <= WHOLE

    def _block(self, frames: int) -> int:
        """Frames that the convolutions of clips of `frames` take at a time."""
        return frames if self.spec.time_group_norm else BLOCK

    def _encode_rows(
        self, samples: np.ndarray, lengths: np.ndarray, first: int | None, last: int | None
    ) -> np.ndarray:
        """Codes of the levels asked for, or latents where there are none; zeros after each row's end."""
        frames = -(-samples.shape[1] // self.hop_length)
        if self._is_whole(frames):
            out = self._encode_whole(samples, lengths, frames, first, last)
        else:
            out = self._encode_long(samples, lengths, first, last)
        inside = np.arange(frames) < -(-lengths // self.hop_length)[:, None]
        return np.where(inside[..., None], out[:, :frames], out.dtype.type(0))

    def _encode_whole(self, samples, lengths, frames, first, last) -> np.ndarray:
        frames = bucket(frames)
        wave = _padded(samples, self.padded_rows(len(samples)), frames * self.hop_length)
        inputs = self.place(wave), self.place(_padded_lengths(lengths, len(wave)))
        out = self.program(programs.latents_of_clips, self._block(frames))(*inputs)
        out = out if first is None else self.program(programs.quantize, first, last)(out)
        return np.asarray(out)[: len(samples)]

    def _encode_long(self, samples, lengths, first, last) -> np.ndarray:
        wave = _padded(samples, self.padded_rows(len(samples)), samples.shape[1])
        lengths = _padded_lengths(lengths, len(wave))
        return encode_long(self, wave, lengths, WHOLE, BLOCK, first, last)[: len(samples)]

    def _decode_whole(self, codes: np.ndarray, lengths: np.ndarray, first: int) -> np.ndarray:
        rows, frames = codes.shape[:2]
        length = bucket(frames)
        padded = _padded(codes, self.padded_rows(rows), length)
        inputs = self.place(padded), self.place(_padded_lengths(lengths, len(padded)))
        wave = self.program(programs.decode_clips, first, self._block(length))(*inputs)
        return np.asarray(wave)[:rows, : frames * self.hop_length]

    def _decode_long(self, codes: np.ndarray, lengths: np.ndarray, first: int) -> np.ndarray:
        padded = _padded(codes, self.padded_rows(len(codes)), codes.shape[1])
        stream = StreamDecoder(self, len(padded), WHOLE, first, BLOCK, _padded_lengths(lengths, len(padded)))
        pieces = [stream.push(padded[:, at : at + WHOLE]) for at in range(0, codes.shape[1], WHOLE)]
        wave = np.concatenate([*pieces, stream.finish()], axis=1)[: len(codes)]
        return silent_after(wave, lengths * self.hop_length)


def bucket(frames: int) -> int:
    """The frames that a clip is padded to: a multiple of BLOCK out of few, at most 25 % more blocks."""
    blocks = -(-frames // BLOCK)
    return BLOCK * _round_up(blocks, 1 << max(0, blocks.bit_length() - 3))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _padded(array: np.ndarray, rows: int, size: int) -> np.ndarray:
    """Zeros behind the first two axes; the array itself if it needs none."""
    if (rows, size) == array.shape[:2]:
        return array
    rest = ((0, 0),) * (array.ndim - 2)
    return np.pad(array, ((0, rows - len(array)), (0, size - array.shape[1]), *rest))


def _padded_lengths(lengths: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(lengths, (0, rows - len(lengths)), constant_values=1).astype(np.int32)


def silent_after(samples: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Samples [B, T] or [B, T, channels] with zeros from each row's length [B] on; themselves if it is T."""
    if (lengths >= samples.shape[1]).all():
        return samples
    inside = np.arange(samples.shape[1]) < lengths[:, None]
    return np.where(inside.reshape(*inside.shape, *(1,) * (samples.ndim - 2)), samples, np.float32(0))


def checked_lengths(lengths: Sequence[int] | None, rows: int, size: int, unit: str) -> np.ndarray:
    """`lengths` [rows] as an array, all `size` where there are none; UserError if they are impossible."""
    if lengths is None:
        return np.full(rows, size)
    lengths = np.asarray(lengths)
    if (
        lengths.shape != (rows,)
        or lengths.dtype.kind not in "iu"
        or not ((lengths >= 1) & (lengths <= size)).all()
    ):
        raise UserError(
            f"`lengths` are {rows} whole numbers from 1 to {size} {unit}, not {lengths.tolist()}."
        )
    return lengths


def spec_from_config(config: dict) -> SeanetSpec:
    """The fields of `SeanetSpec` in a codec's configuration; UserError for a value of another kind."""
    kinds = {field.name: field.type for field in dataclasses.fields(SeanetSpec)}
    values = {name: config[name] for name in kinds if name in config}
    for name, value in values.items():
        if name != "semantic_dimension" or value is not None:
            kind = int if name == "semantic_dimension" else kinds[name]
            check_kind(name, value, kind, name in MAY_BE_ZERO)
    return SeanetSpec(**{**values, "strides": tuple(values["strides"])})
