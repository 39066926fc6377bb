"""`tq bench paper`: the theory of TurboQuant (arXiv 2504.19874) and of its public review, measured."""
