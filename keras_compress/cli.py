"""The command line: `python -m keras_compress demo` and `survey`."""

import argparse
import pathlib


def build_parser():
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="keras_compress", description="Compression for Keras 3 that pays off in the .tflite."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="train, compress, export and measure two models on handwritten digits",
        description="Trains a dense and a convolutional model, compresses them by every layer and "
        "callback, fine-tunes, exports to .tflite and prints what each bought.",
    )
    demo.add_argument(
        "--data",
        choices=("digits", "mnist", "cifar10"),
        default="digits",
        help="digits: scikit-learn's 1,797 scanned digits, no download; the others come through "
        "keras.datasets (default: %(default)s)",
    )
    demo.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("keras_compress_demo"),
        help="folder for the .tflite files, report.html and the plots (default: %(default)s)",
    )
    demo.add_argument(
        "--epochs", type=int, default=25, help="epochs of the float models (default: %(default)s)"
    )
    demo.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    commands.add_parser("survey", help="print the table of all methods and where they are")
    return parser


def main(arguments=None):
    """Runs a command; returns the exit status."""
    options = build_parser().parse_args(arguments)
    if options.command == "survey":
        from keras_compress import survey

        print(survey.table())
        return 0
    from keras_compress import demo

    try:
        demo.run(options.data, options.output, options.epochs, options.seed)
    except ValueError as error:
        print(f"keras_compress: {error}")
        return 2
    return 0
