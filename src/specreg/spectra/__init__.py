"""Pure tensor mathematics of spectra: matrices, decompositions, the method on singular values, derivatives.

Nothing here knows about modules: tensors go in, tensors come out.
"""
