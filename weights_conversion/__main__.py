"""Convert a released checkpoint to a part.

    python -m weights_conversion --source=SOURCE --out=DIR [--part=PART] [--layers=N] [--verify]

SOURCE is a file, a folder, or a name on the Hugging Face hub. Nothing is written unless all of it
fits. `--config.FIELD=VALUE` sets a field of the configuration that the source does not say; of one that
it does, a warning tells what it said.
"""

import argparse
import sys

from jepa_jax import flags
from jepa_jax.places import PlaceError, check_savable
from weights_conversion import convert, vjepa2
from weights_conversion.sources import Source, open_source


def _check_of(source: Source, values) -> None:
    """Raise UsageError for a flag that says nothing of such a source."""
    for flag, given, kind in (
        ("--encoder", values.encoder != "encoder", "vjepa2_meta"),
        ("--x_encoder", values.x_encoder is not None, "open_vljepa"),
        ("--no-dense-heads", not values.dense_heads, "gemma3"),
    ):
        if given and source.kind != kind:
            raise flags.UsageError(f"{flag} is for sources of kind {kind}; this is {source.kind}")


def main(arguments: list[str]) -> int:
    """The command line; see the module's docstring."""
    parser = flags.parser(__doc__)
    parser.add_argument("--source", required=True, help="a file, a folder, or a hub name")
    parser.add_argument(
        "--out", type=flags.local_path, required=True, help="the folder to write; it must not exist"
    )
    parser.add_argument("--part", help="x_encoder, predictor, y_encoder, y_decoder or vl_jepa")
    parser.add_argument("--layers", type=int, help="the last N layers of a Llama (predictor: 8, else all)")
    parser.add_argument(
        "--encoder", default="encoder", choices=vjepa2.ENCODERS, help="which weights of Meta's V-JEPA 2 file"
    )
    parser.add_argument("--x_encoder", help="for an open-vljepa checkpoint saved without its X-Encoder")
    parser.add_argument(
        "--dense-heads",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take the Dense heads of a sentence-transformers folder",
    )
    parser.add_argument("--license", help="the licence of the weights, where the source does not say")
    parser.add_argument("--verify", action="store_true", help="compare with PyTorch, layer by layer")
    values, assignments = flags.parse(arguments, parser)
    if values.layers is not None and values.layers < 1:
        raise flags.UsageError(f"--layers={values.layers} must be at least 1")
    out = values.out.absolute()
    with flags.as_usage_errors(PlaceError):
        check_savable(out)
    convert.use_cpu()
    with convert.atomic_folder(out) as folder:
        source = open_source(values.source, encoder=values.encoder, x_encoder=values.x_encoder)
        _check_of(source, values)
        conversion = convert.prepare(
            source,
            values.part,
            layers=values.layers,
            dense_heads=values.dense_heads,
            assignments=assignments,
        )
        convert.arrays_of(conversion)  # all that does not fit comes out before the files are hashed
        options = {"encoder": values.encoder, "layers": values.layers, "dense_heads": values.dense_heads}
        options["config"] = dict(assignments)
        origin = convert.provenance(conversion, values.source, options, values.license)
        convert.write(conversion, folder, origin)
        if values.verify:
            from weights_conversion import verify

            if not verify.verify(conversion, folder):
                print("error: beyond tolerance; nothing was kept", file=sys.stderr)
                raise SystemExit(1)
    millions = convert.parameter_count(conversion) / 1e6
    print(
        f"{out}: {conversion.part}, {millions:.1f}M parameters; licence of the weights: {origin['license']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main, sys.argv[1:]))
