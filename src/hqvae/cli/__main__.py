"""`python -m hqvae.cli`, as `hqvae`."""

import sys

from hqvae.cli import main

sys.exit(main())
