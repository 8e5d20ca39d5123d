"""From features and statistics to figures: one short function per kind of metric."""
