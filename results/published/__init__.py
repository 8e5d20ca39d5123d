"""Published figures as data: the tables of Song et al. (2023), and later methods with their sources."""
