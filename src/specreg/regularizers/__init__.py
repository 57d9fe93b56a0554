"""The verbs: normalize, compensate and regularize the spectra of a module's layers."""
