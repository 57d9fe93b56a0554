"""Generators and discriminators without regularization: ``resnet`` (exported here), ``dcgan`` and ``mlp``.

A generator has ``latent``, the dimension of z, and ``num_classes``, 0 where it is not conditional; every discriminator
returns a score for each sample.
"""

from specreg.models.resnet import STAGES, Discriminator, Generator, stages_for

__all__ = ["STAGES", "Discriminator", "Generator", "stages_for"]
