"""Generators and discriminators, and nothing about regularization: ``resnet``, ``dcgan`` and ``mlp``.

A generator has ``latent``, the dimension of z, and ``num_classes``, 0 where it is not conditional; every discriminator
returns one score a sample. The ResNet of SN-GAN is what the package itself offers.
"""

from specreg.models.resnet import STAGES, Discriminator, Generator, stages_for

__all__ = ["STAGES", "Discriminator", "Generator", "stages_for"]
