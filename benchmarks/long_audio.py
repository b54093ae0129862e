"""Time and memory that a long file takes: `python benchmarks/long_audio.py [--hours=3] [--codec=DIR]`.

Writes mono 16-bit sound of that length to a temporary directory, encodes it as `tokenize` does (one file,
read and encoded whole), deletes it, and prints one JSON line. Without --codec it is the shipped codec of
speech.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from anygpt_tokenizers.codec import load_codec, shipped_codec


def write_long(path: Path, seconds: int, rate: int) -> None:
    """Gliding tones that come and go above a little noise, a minute at a time."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16") as file:
        for start in range(0, seconds, 60):
            count = min(60, seconds - start) * rate
            time = np.arange(count) / rate
            wave = 0.02 * rng.standard_normal(count).clip(-3, 3)
            for pitch, depth, beat in rng.uniform((80, 10, 0.5), (3000, 60, 4), (4, 3)):
                phase = 2 * np.pi * pitch * time + depth * np.sin(time)
                wave += 0.2 * np.sin(phase) * np.sin(np.pi * beat * time) ** 2
            file.write(wave.astype(np.float32))


def peak() -> int:
    """The most memory that this process held so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--codec", default="")
    args = parser.parse_args()
    codec = load_codec(args.codec) if args.codec else shipped_codec("speech")
    seconds = int(3600 * args.hours)
    codec.encode(np.zeros((1, codec.sample_rate), np.float32))
    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.wav"
        write_long(path, seconds, codec.sample_rate)
        size = path.stat().st_size
        start = time.perf_counter()
        (codes,) = codec.encode_many([codec.read_file(path)])
        took = time.perf_counter() - start
    result = {
        "codec": codec.type,
        "hours": args.hours,
        "file_bytes": size,
        "waveform_bytes": 4 * seconds * codec.sample_rate,
        "frames": len(codes),
        "different_codes": len(np.unique(codes)),
        "seconds": round(took, 1),
        "peak_bytes_before": before,
        "peak_bytes": peak(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
