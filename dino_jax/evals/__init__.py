"""What evaluation computes, on arrays of features: no files, options or pictures, which `tasks` has.

Global: `knn` on `neighbours`, `linear`, `logistic`, `retrieval`, `attentive`, `quality`. Dense: `segmentation`,
`depth`, `patch_head` (the head that both train), `tracking`, `discovery`, `correspondence`.
"""
