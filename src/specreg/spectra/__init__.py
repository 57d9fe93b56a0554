"""Pure tensor mathematics of spectra: matrices, decompositions, the method on singular values, derivatives.

Nothing here knows about modules: tensors go in, tensors come out. ``specreg.spectra`` is a verb, too, so that it is
``from specreg.spectra import fast``.
"""
