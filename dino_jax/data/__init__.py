"""Images from files to batches, in the order in which they go.

Files: `folder`, `tar` and `files` (either, by name), `arrayrecord`, `packaged`. Decoding: `decode` (8-bit RGB), `deep`
and `tiff` (16 bits, any channels), `fit` (to a size).
Sources, which give an image by its index: `sources` (opens them by name), `images`, `subset` (parts and sums of them),
`fingerprint` and `statistics` of them, `bad_images`.
Training: `samples` (order and crops), `crops`, `masks`, `pipeline` (batches, in `workers`), then on the device
`augment` and `photometry`.
Evaluation: `reading` (batches), `probe_views`, `windows` (for dense tasks), and a module for each kind of truth:
`labelled` (classes), `dense` (masks), `depths`, `video`, `objects`, `clips`, `landmarks` (with `containers_pickle`),
`copies`, `warps`.
Writing: `whole` (a file, or nothing), `shards` (arrays in parts).
"""
