"""Packing and batches: every document once and whole, every row once per epoch, resumable by one integer."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from anygpt_tokenizers.cli import UserError
from hypothesis import given, settings
from hypothesis import strategies as st

from anygpt_jax import vocabulary
from anygpt_jax.data import packing, records
from anygpt_jax.data.manifest import Skipped
from anygpt_jax.data.pipeline import PackedData
from anygpt_jax.prompts import Document
from anygpt_jax.text import TextTokenizer

TOKENIZER = TextTokenizer("shipped:smallworld")
VOCABULARY = vocabulary.from_text_model(TOKENIZER.size, TOKENIZER.hash).extend(
    [*vocabulary.CONTROL_TOKENS, vocabulary.make_modality("image", 1, 16, kind="image", fixed_frames=4)]
)
SEQ_LEN = 32
DIRECTIONS = VOCABULARY.directions()


def make_document(rng, length):
    ids = rng.integers(3, VOCABULARY.size, length).astype(np.int32)
    roles = np.where(np.arange(length) < length // 2, 1, 2).astype(np.uint8)
    return Document(ids, roles, DIRECTIONS[rng.integers(len(DIRECTIONS))])


def key(ids, direction):
    return (tuple(int(i) for i in ids), direction)


def pack(tmp_path, lengths, name="packed", datasets=("a",), seed=0, window=packing.WINDOW):
    rng = np.random.default_rng(seed)
    documents = [(d, f"{d}{i}", make_document(rng, n)) for d in datasets for i, n in enumerate(lengths)]
    meta = packing.pack_documents(documents, tmp_path / name, VOCABULARY, TOKENIZER, SEQ_LEN, window=window)
    return documents, meta


@given(st.integers(1, 64).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=80))))
def test_best_fit_places_every_document_once_in_rows_that_hold_them(case):
    capacity, lengths = case
    rows = packing.best_fit(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= capacity for row in rows)
    # Two rows that together fill less than one would have been one row.
    assert len(rows) <= max(1, 2 * sum(lengths) / capacity) or not lengths


def test_best_fit_chooses_the_tightest_row():
    assert packing.best_fit([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]
    with pytest.raises(ValueError, match="document 1 has 11 tokens"):
        packing.best_fit([1, 11], 10)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, SEQ_LEN), min_size=1, max_size=40), st.integers(0, 99))
def test_a_row_holds_its_documents_whole_contiguous_and_with_restarting_positions(lengths, seed):
    rng = np.random.default_rng(seed)
    documents = [make_document(rng, n) for n in lengths]
    numbers = {name: index for index, name in enumerate(DIRECTIONS)}
    for indices in packing.best_fit(lengths, SEQ_LEN):
        members = [documents[i] for i in indices]
        row = records.decode_row(records.encode_row(members, numbers), SEQ_LEN)
        assert all(array.shape == (SEQ_LEN,) and array.dtype == np.int32 for array in row.values())
        start = 0
        for segment, document in enumerate(members, start=1):
            end = start + len(document.ids)
            np.testing.assert_array_equal(row["tokens"][start:end], document.ids)
            np.testing.assert_array_equal(row["segment_ids"][start:end], segment)
            np.testing.assert_array_equal(row["positions"][start:end], np.arange(end - start))
            np.testing.assert_array_equal(row["targets"][start : end - 1], document.ids[1:])
            np.testing.assert_array_equal(row["target_roles"][start : end - 1], document.roles[1:])
            assert row["targets"][end - 1] == row["target_roles"][end - 1] == 0
            np.testing.assert_array_equal(row["directions"][start:end], numbers[document.direction])
            start = end
        assert all(not array[start:].any() for array in row.values())


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, SEQ_LEN), min_size=1, max_size=60), st.integers(1, 7), st.integers(1, 20))
def test_every_document_comes_out_exactly_once_per_epoch(lengths, batch_size, window):
    with tempfile.TemporaryDirectory() as directory:
        documents, meta = pack(Path(directory), lengths, window=window)
        data = PackedData(Path(directory) / "packed", batch_size=batch_size)
        rows = _rows(data, 3 * meta["datasets"]["a"]["records"], batch_size)
    expected = sorted(key(document.ids, document.direction) for _, _, document in documents)
    for epoch in range(3):
        part = rows[epoch * data.records["a"] : (epoch + 1) * data.records["a"]]
        found = [key(*entry) for row in part for entry in packing.unpack(row, data.directions)]
        assert sorted(found) == expected


def _rows(data, count, batch_size):
    batches = [data.batch(step) for step in range(-(-count // batch_size))]
    return [
        {name: array[i] for name, array in batch.items()} for batch in batches for i in range(batch_size)
    ][:count]


def test_epochs_have_different_orders_and_seeds_too(tmp_path):
    pack(tmp_path, [20] * 64)
    one = PackedData(tmp_path / "packed", batch_size=64)
    assert (one.batch(0)["tokens"] != one.batch(1)["tokens"]).any()
    other = PackedData(tmp_path / "packed", batch_size=64, seed=1)
    assert (one.batch(0)["tokens"] != other.batch(0)["tokens"]).any()


def test_a_batch_depends_on_nothing_but_the_step(tmp_path):
    pack(tmp_path, list(range(5, 30)) * 3)
    data = PackedData(tmp_path / "packed", batch_size=4)
    again = PackedData(tmp_path / "packed", batch_size=4)
    iterator = again.iterator(start_step=5, prefetch=3)
    for step in range(5, 25):
        batch = next(iterator)
        for name, array in data.batch(step).items():
            np.testing.assert_array_equal(array, batch[name])
            assert array.shape == (4, SEQ_LEN) and array.dtype == np.int32


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_read_the_batch_of_one_process(tmp_path, processes):
    pack(tmp_path, list(range(5, 30)) * 3)
    whole = PackedData(tmp_path / "packed", batch_size=8)
    parts = [
        PackedData(tmp_path / "packed", batch_size=8, process_index=i, process_count=processes)
        for i in range(processes)
    ]
    for step in (0, 7):
        for name, array in whole.batch(step).items():
            np.testing.assert_array_equal(array, np.concatenate([part.batch(step)[name] for part in parts]))
    with pytest.raises(UserError, match="cannot be divided among 3"):
        PackedData(tmp_path / "packed", batch_size=8, process_count=3)


def test_data_sets_are_mixed_at_the_given_rates_and_each_keeps_its_own_order(tmp_path):
    documents, _ = pack(tmp_path, [30] * 40, datasets=("a", "b", "c"))
    origin = {tuple(document.ids.tolist()): name for name, _, document in documents}

    def names(mixture):
        data = PackedData(tmp_path / "packed", mixture, batch_size=100)
        return [origin[tuple(row[:30].tolist())] for row in data.batch(0)["tokens"]]

    assert (names({"a": 3, "b": 1}).count("a"), names({"a": 0.75, "b": 0.25}).count("b")) == (75, 25)
    assert {name: names(None)[:99].count(name) for name in "abc"} == {"a": 33, "b": 33, "c": 33}
    assert names({"a": 0, "c": 1}) == ["c"] * 100
    with pytest.raises(UserError, match=r"names the data set 'z'; .* has a, b, c"):
        names({"z": 1})
    with pytest.raises(UserError, match="positive rate"):
        names({"a": -1, "b": 2})


def test_what_does_not_fit_is_counted_and_listed(tmp_path):
    rng = np.random.default_rng(0)
    documents = [
        ("a", "item 0", make_document(rng, SEQ_LEN)),
        ("a", "item 1", make_document(rng, SEQ_LEN + 1)),
        ("a", "", Skipped("file:3", "not of the original format", "because")),
    ]
    meta = packing.pack_documents(documents, tmp_path / "packed", VOCABULARY, TOKENIZER, SEQ_LEN)
    assert meta["datasets"]["a"]["documents"] == 1
    assert {entry["reason"]: entry["count"] for entry in meta["skipped"]} == {
        "longer than a row": 1,
        "not of the original format": 1,
    }
    listed = [json.loads(line) for line in (tmp_path / "packed" / "skipped.jsonl").read_text().splitlines()]
    assert listed[0] == {
        "where": "item 1",
        "reason": "longer than a row",
        "detail": "33 tokens, a row has 32",
    }
    documents = [
        ("a", f"item {number // 2}", make_document(rng, SEQ_LEN + 1 + number)) for number in (0, 3, 1, 2)
    ]
    with pytest.raises(UserError) as error:
        packing.pack_documents(documents, tmp_path / "other", VOCABULARY, TOKENIZER, SEQ_LEN)
    assert str(error.value) == (
        "Nothing could be packed:\n       4  longer than a row (item 0, item 1)\n"
        "The longest has 36 tokens and a row 32: raise config.pack.seq_len."
    )
    assert not list(tmp_path.glob("other*"))


def test_packing_is_reproducible_and_replaces_only_packed_data(tmp_path):
    _, first = pack(tmp_path, [10, 20, 30] * 5)
    before = PackedData(tmp_path / "packed").batch(0)["tokens"]
    _, second = pack(tmp_path, [10, 20, 30] * 5)
    assert first == second
    np.testing.assert_array_equal(before, PackedData(tmp_path / "packed").batch(0)["tokens"])
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="is not packed data"):
        pack(tmp_path, [10], name="mine")


def test_a_directory_that_is_not_packed_data_is_explained(tmp_path):
    with pytest.raises(UserError, match="make it with anygpt_jax"):
        PackedData(tmp_path)
    pack(tmp_path, [10] * 9)
    for file in (tmp_path / "packed" / "a").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="no records"):
        PackedData(tmp_path / "packed")
