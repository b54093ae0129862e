"""Tokens per second beside `transformers` on a CPU: a train step, and greedy decoding.

    pip install torch transformers
    JAX_PLATFORMS=cpu python benchmarks/cpu_speed.py \\
        [--cores=N] [--rounds=5] [--rows=4] [--length=512] [--new=128]

Both sides have the same random LLaMA (a Hugging Face directory that both load), float32, the same batch, the
same cores and memory allocator (kept as `train` keeps it); transformers runs its scaled-dot-product
attention. Ours and theirs take turns, so that whatever else the machine does slows both; each side's best
round counts. A train step is forward, backward, clipping and AdamW. Ours decodes as `sample` does, grammar
included; theirs by `generate`. Prints tokens per second, and per second of CPU time: beside other work only
that says anything, and with --cores=1 only, since torch's threads spend CPU time where they wait for each
other. Writes benchmarks/results/cpu_speed.json.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import jax
import numpy as np
import random_llama
import torch
import transformers

from anygpt_jax import allocator, sharding
from anygpt_jax.checkpoint import load_model
from anygpt_jax.convert import import_hf
from anygpt_jax.sampling.grammar import Grammar
from anygpt_jax.sampling.sampler import Decoding, Sampler
from anygpt_jax.training import defaults
from anygpt_jax.training.optimizer import make_optimizer
from anygpt_jax.training.state import MetricSums, TrainState, abstract_state
from anygpt_jax.training.step import BATCH_KEYS, Objective, compile_train_step

ROOT = Path(__file__).parents[1]
# Of the decoder, as the preset of this size has them.
TUNING = {"attention_blocks": 4, "loss_tile": 32, "scan_unroll": 8}
SIZES = {"embed_dim": 512, "num_layers": 8, "num_heads": 8, "head_dim": 64, "hidden_dim": 1376}
PROMPT = 32
TARGETS = {"train": 1.2, "decode, batch 1": 2.0, "decode, batch 8": 2.0}


def our_train_step(model, rows: int, length: int) -> Callable[[], float]:
    """One update per call; returns the loss."""
    config = defaults.get_config()
    config.z_loss = 0.0
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    objective = Objective.from_config(config, model.vocabulary)
    optimizer, rate = make_optimizer(config.optimizer, config.steps)
    abstract = abstract_state(model.config, optimizer, objective.zero_sums(), mesh, config.rules)
    shape = (rows, length)
    step = compile_train_step(model.config, optimizer, rate, objective, mesh, config.rules, abstract, shape)
    params = jax.tree.map(jax.numpy.array, model.params)  # the step consumes its state
    sums = MetricSums.zeros(len(objective.modalities), len(objective.directions))
    state = [TrainState(jax.numpy.zeros((), jax.numpy.int32), params, optimizer.init(params), sums)]
    tokens = np.random.default_rng(0).integers(3, 1000, shape)
    batch = dict.fromkeys(BATCH_KEYS, np.ones(shape, np.int32)) | {
        "tokens": tokens.astype(np.int32),
        "targets": np.roll(tokens, -1, 1).astype(np.int32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "target_roles": np.full(shape, 2, np.int32),
        "directions": np.zeros(shape, np.int32),
    }
    batch = sharding.put_batch(batch, mesh)

    def run() -> float:
        state[0], record = step(state[0], batch)
        return float(record["loss"])

    return run


def their_train_step(directory: Path, rows: int, length: int) -> Callable[[], float]:
    model = transformers.LlamaForCausalLM.from_pretrained(directory, attn_implementation="sdpa").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    tokens = torch.as_tensor(np.random.default_rng(0).integers(3, 1000, (rows, length)))

    def run() -> float:
        loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return run


def our_decoding(model, rows: int, new: int) -> Callable[[], int]:
    """Greedy answers to random prompts; returns how many tokens were drawn."""
    sampler = Sampler(model.config, Grammar(model.vocabulary))
    prompts = np.random.default_rng(1).integers(3, 1000, (rows, PROMPT)).astype(np.int32)
    keys = jax.random.split(jax.random.key(0), rows)

    def run() -> int:
        state = sampler.grammar.initial([None] * rows, [new] * rows)
        answers = sampler.sample(model.params, list(prompts), state, [Decoding(0.0)] * rows, keys)
        return sum(len(answer) for answer in answers)

    return run


def their_decoding(directory: Path, rows: int, new: int) -> Callable[[], int]:
    model = transformers.LlamaForCausalLM.from_pretrained(directory, attn_implementation="sdpa").eval()
    prompts = torch.as_tensor(np.random.default_rng(1).integers(3, 1000, (rows, PROMPT)))
    settings = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(prompts)

    def run() -> int:
        with torch.no_grad():
            return model.generate(prompts, attention_mask=mask, **settings)[:, PROMPT:].numel()

    return run


def compare(name: str, ours: Callable, theirs: Callable, count: Callable, rounds: int) -> dict:
    """Both sides in turn; `count` gives the tokens of a round from what it returned."""
    clocks = {"second": time.perf_counter, "cpu_second": time.process_time}
    best = {clock: {"ours": 0.0, "transformers": 0.0} for clock in clocks}
    for index in range(rounds + 1):  # the first compiles, or fills caches
        for side, run in (("ours", ours), ("transformers", theirs)):
            start = {clock: read() for clock, read in clocks.items()}
            tokens = count(run())
            for clock, read in clocks.items():
                speed = tokens / (read() - start[clock])
                best[clock][side] = max(best[clock][side], speed if index else 0.0)
    row = {"what": name, "target": TARGETS[name]}
    for clock, speeds in best.items():
        ratio = speeds["ours"] / speeds["transformers"]
        row[f"tokens_per_{clock}"] = {**speeds, "ratio": ratio}
        print(f"{name:16} {clock:11} {speeds['ours']:9.0f} {speeds['transformers']:13.0f} {ratio:7.2f}")
    print(f"{'':16} {'target':11} {'':23} {TARGETS[name]:7.1f}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rounds", 5), ("rows", 4), ("length", 512), ("new", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    available = sorted(os.sched_getaffinity(0))
    parser.add_argument("--cores", type=int, default=len(available))
    args = parser.parse_args()
    allocator.keep_freed_memory()
    os.sched_setaffinity(0, available[-args.cores :])  # XLA counts these when it starts its threads
    torch.set_num_threads(args.cores)
    vocab = random_llama.media_vocabulary()
    config = random_llama.decoder_config(vocab, num_kv_heads=8, **SIZES)
    with tempfile.TemporaryDirectory() as folder:
        hf, ckpt = Path(folder, "hf"), Path(folder, "ckpt")
        random_llama.write_llama(hf, vocab, config, scale=0.02)
        import_hf(hf, ckpt)
        model = load_model(ckpt)
        model = dataclasses.replace(model, config=dataclasses.replace(model.config, **TUNING))
        print(f"{'tokens':16} {'per':11} {'ours':>9} {'transformers':>13} {'ratio':>7}", flush=True)
        shape = args.rows, args.length
        train = our_train_step(model, *shape), their_train_step(hf, *shape)
        rows = [compare("train", *train, lambda _: args.rows * args.length, args.rounds)]
        for batch in (1, 8):
            sides = our_decoding(model, batch, args.new), their_decoding(hf, batch, args.new)
            rows.append(compare(f"decode, batch {batch}", *sides, lambda tokens: tokens, args.rounds))
    result = {
        "versions": {module.__name__: module.__version__ for module in (jax, torch, transformers)},
        "model": {**SIZES, **TUNING, "vocab_size": config.vocab_size},
        "arguments": vars(args),
        "speeds": rows,
    }
    Path(ROOT, "benchmarks/results/cpu_speed.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
