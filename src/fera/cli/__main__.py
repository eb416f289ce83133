"""`python -m fera.cli`, where the `fera` program is not on the path."""

import sys

from fera.cli.main import main

sys.exit(main())
