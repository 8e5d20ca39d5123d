"""Consistency models (Song et al., 2023): the function, distillation, training, multistep sampling."""
