"""`python -m keras_compress`: see `keras_compress.cli`."""

import sys

from keras_compress.cli import main

sys.exit(main())
