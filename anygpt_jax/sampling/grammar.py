"""The grammar of an answer: which tokens may come next, for every row of a batch at once, inside jit.

Every row of the vocabulary belongs to one *kind*: text, the stop token, a modality's start tag, its end tag,
or one of its codebooks. A row of the batch is in one state: writing text, inside a block of a modality, or
done. A state allows a set of kinds, so a mask over the vocabulary is one gather. The rules make every block
decodable:

- inside a block only codes of the codebook whose turn it is (frame after frame, level after level);
- the end tag only between frames: after exactly `fixed_frames` (images), else after 1 to `max_frames`;
- a block is closed, and an answer stopped, before the row's budget of tokens runs out;
- text never holds codes, end tags or control tokens; start tags only of modalities that the request may open.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from anygpt_tokenizers.cli import UserError

from anygpt_jax.vocabulary import BOS_ID, END_OF_ASSISTANT, EOS_ID, PAD_ID, Modality, Vocabulary

NEVER, TEXT, STOP = 0, 1, 2
_FIRST_MODALITY_KIND = 3
_UNLIMITED = 1 << 24


class GrammarState(NamedTuple):
    """Where each row of a batch stands; all arrays have a leading dimension B (rows)."""

    mode: jax.Array  # [B] int32: 0 in text, 1 + index of the modality inside a block
    phase: jax.Array  # [B] int32: codebook whose turn it is, 0 between frames
    frames: jax.Array  # [B] int32: whole frames written in the open block
    budget: jax.Array  # [B] int32: tokens that may still be written
    may_open: jax.Array  # [B, M] bool: modalities whose start tag the text may contain
    one_block: jax.Array  # [B] bool: the answer ends with the end tag of its block
    done: jax.Array  # [B] bool


class Grammar:
    """Tables made once from a vocabulary; `mask` and `advance` are pure and run inside jit.

    Args:
      vocabulary: any vocabulary; a new modality needs nothing here.
      stop: the control token that ends an answer.
      text_controls: control tokens that count as text (chain-of-modality markers in chat).
    """

    def __init__(
        self, vocabulary: Vocabulary, stop: str = END_OF_ASSISTANT, text_controls: Iterable[str] = ()
    ):
        self.modalities: tuple[Modality, ...] = tuple(vocabulary.modalities.values())
        self.names = tuple(vocabulary.modalities)
        self.stop_id = vocabulary.control[stop]
        kinds = np.full(vocabulary.padded_size, NEVER, np.int32)
        kinds[: vocabulary.text_size] = TEXT
        kinds[[PAD_ID, BOS_ID, EOS_ID]] = NEVER
        kinds[self.stop_id] = STOP
        for token in text_controls:
            kinds[vocabulary.control[token]] = TEXT

        start_kinds, kind_modes = [], [0] * _FIRST_MODALITY_KIND
        for mode, modality in enumerate(self.modalities, start=1):
            start_kinds.append(len(kind_modes))
            kinds[modality.start_id] = len(kind_modes)
            kinds[modality.end_id] = len(kind_modes) + 1
            for level in range(modality.num_codebooks):
                first = modality.first_id + level * modality.codebook_size
                kinds[first : first + modality.codebook_size] = len(kind_modes) + 2 + level
            kind_modes += [mode] * (2 + modality.num_codebooks)
        self.kinds = kinds  # [V]
        self.num_kinds = len(kind_modes)
        self._kind_modes = np.array(kind_modes, np.int32)  # [num_kinds]
        self._start_kinds = np.array(start_kinds, np.int32)  # [M]
        self._codebooks = np.array([m.num_codebooks for m in self.modalities], np.int32)
        self._min_frames = np.array([m.fixed_frames or 1 for m in self.modalities], np.int32)
        self._max_frames = np.array([longest(m) or _UNLIMITED for m in self.modalities], np.int32)

    def initial(
        self,
        blocks: Sequence[str | None],
        budgets: Sequence[int],
        may_open: Iterable[str] = (),
    ) -> GrammarState:
        """The state before the first token of each row's answer.

        Args:
          blocks: per row, the modality whose start tag ends the prompt (the answer is then that one block),
            or None for an answer that starts as text.
          budgets: per row, the largest number of tokens of the answer, end tag or stop token included.
          may_open: modalities that an answer in text may contain blocks of.

        Raises:
          UserError: a modality the vocabulary lacks, or a budget too small for the shortest answer.
        """
        for name in (*(block for block in blocks if block is not None), *may_open):
            if name not in self.names:
                raise UserError(f"This model has no modality {name!r}; it knows {', '.join(self.names)}.")
        for block, budget in zip(blocks, budgets, strict=True):
            least = 1 if block is None else self._shortest_block(self.names.index(block))
            if budget < least:
                raise UserError(
                    f"A budget of {budget} tokens is too small for {block or 'text'}: allow at least {least}."
                )
        rows = len(blocks)
        opens = np.array([name in set(may_open) for name in self.names], bool)
        return GrammarState(
            mode=jnp.array(
                [0 if block is None else 1 + self.names.index(block) for block in blocks], jnp.int32
            ),
            phase=jnp.zeros(rows, jnp.int32),
            frames=jnp.zeros(rows, jnp.int32),
            budget=jnp.array(budgets, jnp.int32),
            may_open=jnp.tile(opens, (rows, 1)),
            one_block=jnp.array([block is not None for block in blocks]),
            done=jnp.zeros(rows, bool),
        )

    def mask(self, state: GrammarState) -> jax.Array:
        """Which vocabulary rows may come next, bool [B, V]; at least one in every row."""
        return self._allowed_kinds(state)[:, self.kinds]

    def advance(self, state: GrammarState, tokens: jax.Array) -> GrammarState:
        """The state after one more token per row (int32 [B]); rows that are done do not move."""
        kind = jnp.asarray(self.kinds)[tokens]
        owner = jnp.asarray(self._kind_modes)[kind]  # 0 for text and stop
        index = jnp.maximum(owner - 1, 0)
        offset = kind - jnp.asarray(self._start_kinds)[index]  # 0 start tag, 1 end tag, 2.. codebook
        starts, ends = (owner > 0) & (offset == 0), (owner > 0) & (offset == 1)
        codes = (owner > 0) & (offset >= 2)
        frame_done = codes & (state.phase + 1 == jnp.asarray(self._codebooks)[index])
        moved = GrammarState(
            mode=jnp.where(ends, 0, jnp.where(starts, owner, state.mode)),
            phase=jnp.where(codes & ~frame_done, state.phase + 1, 0),
            frames=jnp.where(starts, 0, state.frames + frame_done),
            budget=state.budget - 1,
            may_open=state.may_open,
            one_block=state.one_block,
            done=(kind == STOP) | (ends & state.one_block),
        )
        return jax.tree.map(
            lambda new, old: jnp.where(state.done.reshape(-1, *[1] * (new.ndim - 1)), old, new), moved, state
        )

    def _allowed_kinds(self, state: GrammarState) -> jax.Array:
        """bool [B, num_kinds]."""
        inside = state.mode > 0
        index = jnp.maximum(state.mode - 1, 0)
        codebooks = jnp.asarray(self._codebooks)[index]
        between_frames = state.phase == 0
        # Behind a frame there must be room for the end tag, and for the stop token where text goes on.
        tail = jnp.where(state.one_block, 1, 2)
        another_frame = (state.frames < jnp.asarray(self._max_frames)[index]) & (
            state.budget >= codebooks + tail
        )
        may_code = inside & (~between_frames | another_frame)
        may_close = inside & between_frames & (state.frames >= jnp.asarray(self._min_frames)[index])

        block_costs = self._codebooks * self._min_frames + 3  # both tags and the stop token
        opens = ~inside[:, None] & state.may_open & (state.budget[:, None] >= block_costs)  # [B, M]

        kinds = jnp.arange(self.num_kinds)
        start = jnp.asarray(self._start_kinds)[index][:, None]
        allowed = (kinds == TEXT) & (~inside & (state.budget >= 2))[:, None]
        allowed |= (kinds == STOP) & ~inside[:, None]
        allowed |= (kinds == start + 2 + state.phase[:, None]) & may_code[:, None]
        allowed |= (kinds == start + 1) & may_close[:, None]
        return allowed.at[:, self._start_kinds].set(allowed[:, self._start_kinds] | opens)

    def _shortest_block(self, index: int) -> int:
        return int(self._codebooks[index] * self._min_frames[index]) + 1


def longest(modality: Modality) -> int | None:
    """The largest number of frames of one block, or None where the vocabulary sets no limit."""
    return modality.fixed_frames or modality.max_frames
