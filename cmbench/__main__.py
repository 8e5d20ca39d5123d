"""``python -m cmbench``."""

from cmbench.cli import main

main()
