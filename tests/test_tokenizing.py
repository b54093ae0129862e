"""From a manifest to batches: broken files are listed, runs resume, a fifth medium needs one entry."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from anygpt_tokenizers.cli import UserError
from fake_codec import FakeAudioCodec, FakeImageCodec
from PIL import Image

from anygpt_jax import prompts, strings
from anygpt_jax.data import documents, packing, records, tokenizing
from anygpt_jax.data.manifest import read_manifest
from anygpt_jax.data.pipeline import PackedData
from anygpt_jax.text import TextTokenizer
from anygpt_jax.vocabulary import from_config, published

TOKENIZER = TextTokenizer("shipped:smallworld")
INSTRUCTIONS = prompts.load_instructions()
SAMPLES = Path(__file__).parents[2] / "shared" / "data" / "pretrain"


@pytest.fixture
def codecs():
    return {
        "image": FakeImageCodec(),
        "speech": FakeAudioCodec("speech"),
        "music": FakeAudioCodec("music"),
    }


def make_vocabulary(codecs, max_seconds=2.0):
    entries = [
        {"name": name, **({"max_seconds": max_seconds} if c.kind == "audio" else {})}
        for name, c in codecs.items()
    ]
    return from_config({"modalities": entries}, TOKENIZER, codecs)


def tone(seconds, rate=8000):
    return (0.5 * np.sin(np.arange(int(seconds * rate)) * 0.3)).astype(np.float32)


def write_media(folder, count=6):
    """`count` images, speech and music files and their manifest; returns its path."""
    rows = []
    for index in range(count):
        Image.new("RGB", (8, 8), (40 * index, 0, 0)).save(folder / f"{index}.png")
        soundfile.write(folder / f"{index}.wav", tone(0.3 + 0.1 * index), 8000)
        rows += [
            {"text": f"picture {index}", "image": f"{index}.png"},
            {"text": f"sentence {index}", "speech": f"{index}.wav", "id": f"s{index}"},
            {"text": f"tune {index}", "music": str(folder / f"{index}.wav"), "attributes": {"key": "C"}},
        ]
    return write_manifest(folder, rows)


def write_manifest(folder, rows):
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n\n")
    return path


def test_every_usable_line_becomes_a_token_item_in_order(tmp_path, codecs):
    path = write_media(tmp_path)
    meta = tokenizing.tokenize_manifest(path, tmp_path / "out", make_vocabulary(codecs), codecs, shard_size=5)
    assert meta["items"] == {"image": 6, "speech": 6, "music": 6}
    assert meta["skipped"] == {}
    items = list(records.read_items(tmp_path / "out"))
    assert [item.text for item in items] == [json.loads(x)["text"] for x in path.read_text().split("\n") if x]
    assert [item.id for item in items[:2]] == ["0.png", "s0"]
    for item in items:
        file = tmp_path / f"{item.text.split()[1]}.{'png' if item.modality == 'image' else 'wav'}"
        codec = codecs[item.modality]
        np.testing.assert_array_equal(item.codes, codec.encode_many([codec.read_file(file)])[0])


def test_unusable_lines_and_files_are_listed_with_their_reason(tmp_path, codecs):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "short.wav", tone(0.01), 8000)
    soundfile.write(tmp_path / "long.wav", tone(3.0), 8000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000, np.float32), 8000)
    soundfile.write(tmp_path / "good.wav", tone(0.5), 8000)
    rows = [
        "{",
        "[1]",
        json.dumps({"image": "broken.png"}),
        json.dumps({"text": " ", "image": "broken.png"}),
        json.dumps({"text": "a", "video": "a.mp4"}),
        json.dumps({"text": "a", "image": "a.png", "speech": "a.wav"}),
        json.dumps({"text": "a", "image": 7}),
        *(
            {"text": "a", "speech": f"{name}.wav"}
            for name in ("empty", "short", "long", "silent", "none", "good")
        ),
        {"text": "a", "image": "broken.png"},
        {"text": "a", "music": "long.wav"},
    ]
    path = write_manifest(tmp_path, rows)
    meta = tokenizing.tokenize_manifest(
        path, tmp_path / "out", make_vocabulary(codecs), codecs, crop=["music"]
    )
    listed = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert meta["items"] == {"speech": 1, "music": 1}
    assert len(listed) == sum(meta["skipped"].values()) == len(rows) - 2
    by_line = {int(entry["where"].split(":")[1].split()[0]): entry["reason"] for entry in listed}
    assert [by_line[line] for line in (1, 2, 3, 4, 5, 6, 7)] == [
        "line is not JSON",
        "line is not a JSON object",
        "no text",
        "no text",
        "no known medium",
        "more than one medium",
        "no path",
    ]
    assert (by_line[9], by_line[10]) == ("too short", "too long")
    music = next(item for item in records.read_items(tmp_path / "out") if item.modality == "music")
    assert len(music.codes) == 100


def test_a_reader_that_fails_in_its_own_way_does_not_end_the_run(tmp_path, codecs):
    def explode(path):
        raise ZeroDivisionError("inside a library")

    path = write_media(tmp_path, 1)
    codecs["image"].read_file = explode
    meta = tokenizing.tokenize_manifest(path, tmp_path / "out", make_vocabulary(codecs), codecs)
    assert meta["skipped"] == {"unreadable": 1}
    assert "ZeroDivisionError: inside a library" in (tmp_path / "out" / "skipped.jsonl").read_text()


def test_lines_in_other_encodings_are_skipped_and_a_byte_order_mark_is_not_an_error(tmp_path):
    path = tmp_path / "manifest.jsonl"
    line = json.dumps({"text": "a", "image": "a.png"}).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + b'{"text": "\xff", "image": "a.png"}\n' + line)
    items, skipped = read_manifest(path, ["image"])
    assert [item.line for item in items] == [1, 3]
    assert [(entry.where, entry.reason) for entry in skipped] == [("manifest.jsonl:2", "line is not UTF-8")]


def test_a_manifest_without_a_usable_line_says_why(tmp_path, codecs):
    path = write_manifest(tmp_path, [{"text": "a", "image": "none.png"}] * 2)
    with pytest.raises(UserError, match=r"Nothing in .* could be tokenised:\n +2  .*manifest.jsonl:1"):
        tokenizing.tokenize_manifest(path, tmp_path / "out", make_vocabulary(codecs), codecs)
    with pytest.raises(UserError, match="cannot be read"):
        tokenizing.tokenize_manifest(tmp_path / "none", tmp_path / "out2", make_vocabulary(codecs), codecs)


def test_an_interrupted_run_continues_and_gives_the_same_tokens(tmp_path, codecs, monkeypatch):
    path, vocabulary = write_media(tmp_path), make_vocabulary(codecs)
    whole = tokenizing.tokenize_manifest(path, tmp_path / "whole", vocabulary, codecs, shard_size=4)
    encode_many, calls = FakeAudioCodec.encode_many, []

    def interrupted(self, items):
        calls.append(len(items))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode_many(self, items)

    monkeypatch.setattr(FakeAudioCodec, "encode_many", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenizing.tokenize_manifest(path, tmp_path / "out", vocabulary, codecs, shard_size=4)
    with pytest.raises(UserError, match="is not finished"):
        tokenizing.read_meta(tmp_path / "out")
    for codec in codecs.values():
        codec.encoded = 0
    assert tokenizing.tokenize_manifest(path, tmp_path / "out", vocabulary, codecs, shard_size=4) == whole
    # Of the twelve sounds two are in the first four lines, the shard that was finished.
    assert codecs["speech"].encoded + codecs["music"].encoded == 10
    for a, b in zip(
        records.read_items(tmp_path / "whole"), records.read_items(tmp_path / "out"), strict=True
    ):
        assert a.to_bytes() == b.to_bytes()
    codecs["speech"].encoded = 0
    tokenizing.tokenize_manifest(path, tmp_path / "out", vocabulary, codecs, shard_size=4)
    assert codecs["speech"].encoded == 0


def test_a_directory_of_other_tokens_is_left_alone(tmp_path, codecs):
    path, vocabulary = write_media(tmp_path, 1), make_vocabulary(codecs)
    tokenizing.tokenize_manifest(path, tmp_path / "out", vocabulary, codecs)
    codecs["speech"].hash = "other"
    with pytest.raises(UserError, match="another manifest or codec"):
        tokenizing.tokenize_manifest(path, tmp_path / "out", vocabulary, codecs)
    with pytest.raises(UserError, match="exists and holds no tokens"):
        tokenizing.tokenize_manifest(path, tmp_path, vocabulary, codecs)


def test_tokens_are_packed_in_both_directions_with_fresh_instructions(tmp_path, codecs):
    path, vocabulary = write_media(tmp_path), make_vocabulary(codecs)
    tokenizing.tokenize_manifest(path, tmp_path / "out", vocabulary, codecs)
    meta = documents.pack_tokens(
        [tmp_path / "out"], tmp_path / "packed", vocabulary, TOKENIZER, INSTRUCTIONS, seq_len=256, repeats=2
    )
    assert set(meta["datasets"]) == {"image", "speech", "music"}
    for name, entry in meta["datasets"].items():
        assert entry["directions"] == {f"{name}->text": 12, f"text->{name}": 12}
    rows = meta["datasets"]["speech"]["records"]
    data = PackedData(tmp_path / "packed", {"speech": 1.0}, batch_size=rows)
    batch = data.batch(0)
    texts = [
        strings.decode(data.vocabulary, data.text_tokenizer, ids)
        for row in range(rows)
        for ids, _ in packing.unpack({key: value[row] for key, value in batch.items()}, data.directions)
    ]
    assert len(texts) == 24
    assert sum("This is input: sentence 3<eoh> [MMGPT]: <sosp>" in text for text in texts) == 2
    assert sum("<eoh> [MMGPT]: sentence 3<eos>" in text for text in texts) == 2
    assert len({text.split("<sosp>")[0] for text in texts if "This is input" not in text}) > 6


def test_a_fifth_medium_goes_all_the_way_by_one_more_entry(tmp_path, codecs):
    codecs["birdsong"] = FakeAudioCodec("birdsong")
    soundfile.write(tmp_path / "robin.wav", tone(0.5), 8000)
    path = write_manifest(tmp_path, [{"text": "a robin", "birdsong": "robin.wav"}])
    vocabulary = make_vocabulary(codecs)
    tokenizing.tokenize_manifest(path, tmp_path / "out", vocabulary, codecs)
    documents.pack_tokens(
        [tmp_path / "out"], tmp_path / "packed", vocabulary, TOKENIZER, INSTRUCTIONS, seq_len=200
    )
    data = PackedData(tmp_path / "packed", batch_size=2)
    assert data.directions[-2:] == ["birdsong->text", "text->birdsong"]
    batch = data.batch(0)
    entry = vocabulary.modalities["birdsong"]
    assert set(np.unique(batch["directions"])) <= {0, 7, 8}
    for row in range(2):
        start = int(np.flatnonzero(batch["tokens"][row] == entry.start_id)[0])
        codes = vocabulary.ids_to_codes("birdsong", batch["tokens"][row][start + 1 : start + 1 + 50])
        assert codes.shape == (25, 2)
        assert batch["tokens"][row][start + 51] == entry.end_id


def test_tokens_of_another_codec_are_not_packed(tmp_path, codecs):
    path, vocabulary = write_media(tmp_path, 1), make_vocabulary(codecs)
    tokenizing.tokenize_manifest(path, tmp_path / "out", vocabulary, codecs)
    codecs["speech"].hash = "other"
    arguments = (make_vocabulary(codecs), TOKENIZER, INSTRUCTIONS, 256)
    with pytest.raises(UserError, match=r"speech tokens in .* codec_hash 'fake-speech', .* 'other'"):
        documents.pack_tokens([tmp_path / "out"], tmp_path / "packed", *arguments)
    with pytest.raises(UserError, match="holds no tokens"):
        documents.pack_tokens([tmp_path], tmp_path / "packed", *arguments)
    with pytest.raises(UserError, match="neither a token directory nor"):
        documents.pack_tokens([tmp_path / "none"], tmp_path / "packed", *arguments)


def test_files_of_the_original_format_are_packed_as_pairs_and_chats(tmp_path):
    pairs, chats = tmp_path / "pairs.jsonl", tmp_path / "chats.jsonl"
    pairs.write_text(
        json.dumps({"text": "hello", "speech": "<sosp><🗣️5><🗣️6><eosp>"})
        + "\n" + json.dumps({"text": "hello", "speech": "<sosp><🗣️5>"}) + "\nnonsense\n"
    )  # fmt: skip
    answer = "<-Ins-> hello\n <-Res-> fine <sosp><🗣️9><eosp> "
    turns = [
        {"role": "assistant", "message": "dropped"},
        {"role": "user", "message": "<sosp><🗣️5><eosp> Please reply"},
        {"role": "assistant", "message": answer},
    ]
    chats.write_text(
        json.dumps({"id": 1, "conversation": [turns]}) + "\n" + json.dumps({"conversation": turns[:2]})
    )
    vocabulary = published("chat")
    meta = documents.pack_tokens(
        [f"voices={pairs}", chats], tmp_path / "packed", vocabulary, TOKENIZER, INSTRUCTIONS, seq_len=512
    )
    assert {name: entry["documents"] for name, entry in meta["datasets"].items()} == {"voices": 2, "chat": 1}
    assert {entry["reason"]: entry["count"] for entry in meta["skipped"]} == {
        "not of the original format": 2,
        "unusable conversation": 1,
    }
    batch = PackedData(tmp_path / "packed", {"chat": 1}, batch_size=1).batch(0)
    answers = batch["targets"][0][batch["target_roles"][0] == prompts.ANSWER]
    assert strings.decode(vocabulary, TOKENIZER, answers) == f"{answer}<eos>"


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"the original sample data is not at {SAMPLES}")
def test_the_original_samples_are_packed_whole(tmp_path):
    sources = [f"image={SAMPLES}/journeydb.jsonl", f"speech={SAMPLES}/gigaspeech.jsonl"]
    sources += [f"music={SAMPLES}/music-1m.jsonl", SAMPLES / "anyinstruct_speech.jsonl"]
    vocabulary = published("chat")
    meta = documents.pack_tokens(
        sources, tmp_path / "packed", vocabulary, TOKENIZER, INSTRUCTIONS, seq_len=4608
    )
    counts = {name: entry["documents"] for name, entry in meta["datasets"].items()}
    assert counts == {"image": 20, "speech": 20, "music": 20, "chat": 1}
    assert meta["skipped"] == []
    for name, length in (("image", 32), ("music", 1000)):
        entry = vocabulary.modalities[name]
        tokens = PackedData(tmp_path / "packed", {name: 1}, meta["datasets"][name]["records"]).batch(0)[
            "tokens"
        ]
        starts, ends = np.argwhere(tokens == entry.start_id), np.argwhere(tokens == entry.end_id)
        assert len(starts) == 20
        assert {tuple(difference) for difference in ends - starts} == {(0, length + 1)}
