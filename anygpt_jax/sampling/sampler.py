"""The decode loop: one jitted program that reads prompts and writes grammatical answers for a whole batch.

B rows, P prompt slots (prompts stand at the right, padding at the left), N slots for new tokens, V vocabulary
rows.
Shapes come in few sizes (`bucket`), because every new shape is a compilation.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.model.decoder import Decoder, init_cache, unroll
from anygpt_jax.sampling.grammar import Grammar, GrammarState

_SMALLEST_BUCKET = 32
_BISECTIONS = 32


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How tokens are drawn. temperature 0 is greedy; top_k 0 and top_p 1 keep every grammatical token."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class Sampler:
    """Draws answers from a decoder under a grammar; compiled once per (rows, prompt bucket, answer bucket).

    A row's draw depends on its own key only, not on its place in the batch or on its neighbours.
    """

    def __init__(self, config: DecoderConfig, grammar: Grammar):
        # See Decoder. The parameters are then held twice: as they are given, and unrolled.
        self.unrolled = jax.default_backend() == "cpu"
        if self.unrolled:
            # CPUs emulate bfloat16, at a fraction of float32's speed.
            config = dataclasses.replace(config, dtype="float32")
        self.config = config
        self.grammar = grammar
        self._given, self._unrolled = [], None
        self._program = jax.jit(self._generate, static_argnames="new_slots")

    def sample(
        self,
        params,
        prompts: Sequence[np.ndarray],
        state: GrammarState,
        decodings: Sequence[Decoding],
        keys: jax.Array,
    ) -> list[np.ndarray]:
        """Answers (int32 ids without the prompt, closing token included), one per prompt.

        Args:
          params: the decoder's parameters.
          prompts: B id arrays, at least one token each.
          state: `Grammar.initial` for the same rows.
          decodings: B settings.
          keys: B random keys.
        """
        budget = int(np.max(state.budget))
        slots = bucket(max(len(prompt) for prompt in prompts))
        tokens = np.zeros((len(prompts), slots), np.int32)
        segments = np.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, slots - len(prompt) :] = prompt
            segments[row, slots - len(prompt) :] = 1
        settings = {
            "temperature": np.array([d.temperature for d in decodings], np.float32),
            "top_k": np.array([d.top_k for d in decodings], np.int32),
            "top_p": np.array([d.top_p for d in decodings], np.float32),
        }
        answers, lengths = self._program(
            self._prepared(params), tokens, segments, state, settings, keys, new_slots=bucket(budget)
        )
        answers, lengths = np.asarray(answers), np.asarray(lengths)
        return [answer[:length] for answer, length in zip(answers, lengths, strict=True)]

    def _prepared(self, params):
        """The parameters as the program takes them, made anew where others than last time are given."""
        if not self.unrolled:
            return params
        given = jax.tree.leaves(params)
        if [id(leaf) for leaf in given] != [id(leaf) for leaf in self._given]:
            self._unrolled = jax.jit(functools.partial(unroll, config=self.config))(params)
            self._given = given
        return self._unrolled

    def _generate(self, params, tokens, segments, state, settings, keys, *, new_slots: int):
        """Prefill, then one token per step until every row is done: ids [B, N] and lengths [B]."""
        rows, prompt_slots = tokens.shape
        decoder = Decoder(self.config, self.unrolled)
        ones = jnp.ones((rows, 1), jnp.int32)

        def read(tokens, segments, cache):
            hidden, cache = decoder.apply({"params": params}, tokens, segment_ids=segments, cache=cache)
            logits = decoder.apply({"params": params}, hidden[:, -1:], method="logits")
            return logits[:, 0], cache  # [B, V]

        def step(carry):
            count, logits, cache, state, answers = carry
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, count)
            drawn = draw(jnp.where(self.grammar.mask(state), logits, -jnp.inf), step_keys, **settings)
            drawn = jnp.where(state.done, 0, drawn)
            answers = answers.at[:, count].set(drawn)
            state = self.grammar.advance(state, drawn)
            logits, cache = read(drawn[:, None], ones, cache)
            return count + 1, logits, cache, state, answers

        def unfinished(carry):
            count, _, _, state, _ = carry
            return (count < new_slots) & ~jnp.all(state.done)

        cache = init_cache(self.config, rows, prompt_slots + new_slots, self.unrolled)
        logits, cache = read(tokens, segments, cache)
        answers = jnp.zeros((rows, new_slots), jnp.int32)
        first_budget = state.budget
        *_, state, answers = jax.lax.while_loop(unfinished, step, (0, logits, cache, state, answers))
        return answers, first_budget - state.budget


def draw(logits, keys, *, temperature, top_k, top_p) -> jax.Array:
    """One token per row, int32 [B]; logits [B, V] with -inf at forbidden tokens, the settings per row [B].

    Temperature divides the logits, then the top_k largest are kept, then the smallest set with mass top_p.
    The draw is the maximum of logits + temperature * Gumbel noise, so temperature 0 is greedy.
    """
    warm = jnp.maximum(temperature, 1e-4)[:, None]
    filtered = jax.lax.cond(
        jnp.any((temperature > 0) & ((top_k > 0) | (top_p < 1))),
        lambda: _truncate(logits / warm, top_k, top_p) * warm,
        lambda: logits,
    )
    noisy = jax.lax.cond(
        jnp.any(temperature > 0),
        lambda: filtered + temperature[:, None] * _gumbel(keys, logits.shape[1]),
        lambda: filtered,
    )
    return jnp.argmax(noisy, axis=1).astype(jnp.int32)


def _gumbel(keys, count: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.gumbel(key, (count,)))(keys)


def _truncate(logits, top_k, top_p) -> jax.Array:
    count = jnp.where(top_k > 0, top_k, logits.shape[1])
    logits = _keep_largest(logits, jnp.ones_like(logits), count)
    # Full mass would ask the bisection for a sum that rounding may miss; it keeps all then, which is right.
    return _keep_largest(logits, jax.nn.softmax(logits, axis=1), jnp.where(top_p < 1, top_p, 2.0))


def _keep_largest(logits, weights, needed) -> jax.Array:
    """Keeps, per row, the fewest largest logits whose weights add up to `needed` (all, if they never do).

    The threshold is bisected between the smallest finite and the largest logit: a sort over the vocabulary
    costs ten times as much on a CPU.
    """
    finite = jnp.isfinite(logits)
    low = jnp.min(jnp.where(finite, logits, jnp.inf), axis=1)
    high = jnp.max(logits, axis=1)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.sum(jnp.where(logits >= middle[:, None], weights, 0), axis=1) >= needed
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    # The largest alone may be enough, and bisection only nears the upper bound: look at it first.
    top_enough = jnp.sum(jnp.where(logits >= high[:, None], weights, 0), axis=1) >= needed
    low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.where(top_enough, high, low), high))
    return jnp.where(logits >= low[:, None], logits, -jnp.inf)


@functools.cache
def bucket(length: int) -> int:
    """The number of slots that hold `length` tokens: 32, 48, 64, 96, 128, … (steps of at most one half)."""
    size = _SMALLEST_BUCKET
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size
