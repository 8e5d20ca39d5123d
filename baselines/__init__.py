"""Baselines, one file each, on the same public interface that a third party's plug-in would use."""
