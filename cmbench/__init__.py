"""cmbench: how good is a few-step image generator, at 1, 2, 4 evaluations, against the others?"""

__version__ = "0.1.0"
