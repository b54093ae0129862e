"""What audio training reads: sound files, and the features of a teacher that go with them."""

import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import config_dict
from tqdm import tqdm

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import MediaError
from anygpt_tokenizers.manifest import rows_with
from anygpt_tokenizers.media_audio import read_audio

ATTEMPTS = 20  # files that are drawn for one row of a batch before the next one that can be used is taken

FRAMES_OFF = 3  # how many more or fewer a teacher may have: HuBERT pads nothing, others pad both ends


class Clip(NamedTuple):
    """A sound float32 [T], and the teacher's features float32 [F, S] of it, if there is a teacher."""

    wave: np.ndarray
    features: np.ndarray | None = None


class Clips(Sequence):
    """The sound files of a manifest, read when they are asked for, or all at once.

    What is read at once has no files that can't be used: they are left out, and standard error says how many;
    UserError if none is left. Read later, such a file raises MediaError.
    """

    def __init__(self, rows: list[dict], read: Callable[[dict], Clip], keep: bool):
        self._items, self._read = rows, read
        self._passed_over: set[int] = set()
        if keep:
            errors = []
            self._items, self._read = list(usable(rows, read, errors)), _same
            report_left_out(errors, len(rows))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Clips(self._items[index], self._read, keep=False)
        return self._read(self._items[index])

    def pass_over(self, index: int, error: MediaError) -> None:
        """Counts a file that training can't use; standard error hears of the 1st, the 10th, the 100th…"""
        if index not in self._passed_over:
            self._passed_over.add(index)
            count = len(self._passed_over)
            if count == 10 ** (len(str(count)) - 1):
                files = f"left out so far: {count} of {len(self)} files that can't be used"
                tqdm.write(f"{files}; the last: {error}", file=sys.stderr)


def _same(clip: Clip) -> Clip:
    return clip


def usable(
    items: Iterable, read: Callable, errors: list[str], skipped: type[UserError] = MediaError
) -> Iterator:
    """What `read` makes of each item, but for those it raises `skipped` for; their errors go to `errors`."""
    for item in items:
        try:
            yield read(item)
        except skipped as error:
            errors.append(str(error))


def report_left_out(errors: list[str], count: int, files: str = "files") -> None:
    """Says in one line how many of `count` files were left out; UserError if that is all of them."""
    if errors and len(errors) == count:
        raise UserError(f"None of the {count} {files} can be used; the first: {errors[0]}.")
    if errors:
        line = f"left out: {len(errors)} of {count} {files} that can't be used; the first: {errors[0]}"
        tqdm.write(line, file=sys.stderr)


def read_clips(config: config_dict.ConfigDict, data_dir: str | Path, hop: int) -> Clips:
    """The clips of DIR/manifest.jsonl of config.codec.modality; `config.keep_in_memory` reads them now.

    `hop`: samples per frame. UserError where a teacher's features have another width, or are more than
    `FRAMES_OFF` frames more or fewer than the codec's.
    """
    modality, field = config.codec.modality, config.teacher.field
    rows = rows_with(data_dir, modality, *([field] if field else []))
    read = functools.partial(
        _read_clip,
        folder=Path(data_dir),
        modality=modality,
        rate=config.codec.sample_rate,
        field=field,
        function=imported(config.teacher.function) if config.teacher.function else None,
        dimension=config.codec.get("semantic_dimension"),
        hop=hop,
    )
    return Clips(rows, read, config.keep_in_memory)


def _read_clip(
    row: dict,
    folder: Path,
    modality: str,
    rate: int,
    field: str,
    function: Callable | None,
    dimension: int | None,
    hop: int,
) -> Clip:
    path = folder / row[modality]
    wave = read_audio(path, rate)
    if not field and function is None:
        return Clip(wave)
    place = folder / row[field] if field else path
    features = read_features(place) if field else np.asarray(function(wave, rate))
    if features.ndim != 2 or features.shape[-1] != dimension or not len(features):
        raise UserError(
            f"{place}: the teacher's features have the shape {list(features.shape)}; the codec expects "
            f"[frames, {dimension}] (config.codec.semantic_dimension)."
        )
    frames = -(-len(wave) // hop)
    if abs(len(features) - frames) > FRAMES_OFF:
        raise UserError(
            f"{place}: the teacher's features are {len(features)} frames; the codec's are {frames}, at "
            f"{rate / hop:g} a second. Give features at that rate."
        )
    if not np.isfinite(features).all():
        raise MediaError("features that are not finite", place)
    return Clip(wave, features.astype(np.float32))


def read_features(path: Path) -> np.ndarray:
    """The array of an .npy file; MediaError if there is none."""
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise MediaError("missing file", path) from error
    except (ValueError, EOFError, OSError) as error:
        raise MediaError("not a readable .npy file", path, str(error).splitlines()[0]) from error


def imported(name: str) -> Callable:
    """The function that "package.module:function" names."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f'config.teacher.function {name!r} is no "module:function": {error}.') from error


def random_clip(clips: Clips, rng: np.random.Generator) -> Clip:
    """One clip; files that can't be used are passed over, and UserError if there are no others."""
    for _ in range(ATTEMPTS):
        index = int(rng.integers(len(clips)))
        try:
            return clips[index]
        except MediaError as error:
            clips.pass_over(index, error)
            first = error
    for place in range(index + 1, index + len(clips)):
        try:
            return clips[place % len(clips)]
        except MediaError as error:
            clips.pass_over(place % len(clips), error)
    raise UserError(f"None of the {len(clips)} files can be used; one of them: {first}.")


def crop(
    clip: Clip, frames: int, hop: int, speed: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """A random stretch: (float32 [at most frames · hop], the features of its frames [at most frames, S]).

    Played at `speed`, which goes without features only. Features begin at the frame that the stretch begins
    in, as in SpeechTokenizer.
    """
    length = frames * hop
    wanted = int(length * speed)
    start = rng.integers(max(1, len(clip.wave) - wanted + 1))
    wave = clip.wave[start : start + wanted]
    if speed != 1.0:
        wave = np.interp(np.arange(int(len(wave) / speed)) * speed, np.arange(len(wave)), wave)
    if clip.features is None:
        return wave[:length], None
    first = max(0, min(start // hop, len(clip.features) - frames))
    return wave[:length], clip.features[first : first + frames]
