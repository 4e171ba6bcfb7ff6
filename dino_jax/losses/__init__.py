"""Loss terms as pure functions of arrays: `targets` from the teacher, then `dino`, `ibot`, `koleo` and `gram`.

`objective` combines them; `contrastive` is for alignment with text, which no recipe trains yet.
"""
