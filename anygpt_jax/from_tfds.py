"""A data set of tensorflow-datasets to a manifest of media files, which anygpt_jax.tokenize reads.

    python -m anygpt_jax.from_tfds --dataset=PREPARED_DIR --media=image --text=caption --out=DIR
    python -m anygpt_jax.from_tfds --dataset=cifar10 --split=test --media=image --text=label \\
        --template="a photo of a {}" --out=DIR

See data/tfds_source.py.
"""

from absl import flags
from anygpt_tokenizers import cli

from anygpt_jax.data.tfds_source import export_tfds


def main(_: list[str]) -> None:
    """Exports --dataset and prints where the manifest is."""
    values = flags.FLAGS
    manifest = export_tfds(
        values.dataset,
        values.split,
        values.out,
        values.modality,
        values.media,
        values.text,
        values.template,
        values.data_dir,
        values.sample_rate,
    )
    print(f"{manifest}: give it to python -m anygpt_jax.tokenize --manifest={manifest}")


if __name__ == "__main__":
    flags.DEFINE_string(
        "dataset", None, "name of a TFDS data set, or directory of a prepared one", required=True
    )
    flags.DEFINE_string("split", "train", "split, as TFDS writes it: train, test, train[:1000] …")
    flags.DEFINE_string("modality", "image", "what the media are: image, speech or music")
    flags.DEFINE_string("media", "image", "the data set's field with the medium")
    flags.DEFINE_string("text", None, "the data set's field with the text or label", required=True)
    flags.DEFINE_string("template", "{}", "sentence around the text; {} is its place")
    flags.DEFINE_string("data_dir", None, "where TFDS keeps its data (default: its own)")
    flags.DEFINE_integer("sample_rate", None, "of integer samples, in Hz", lower_bound=1)
    flags.DEFINE_string("out", None, "directory of the manifest and media to write", required=True)
    cli.run(main)
