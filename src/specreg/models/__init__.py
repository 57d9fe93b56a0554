"""Generators and discriminators without regularization: ``resnet``, ``dcgan`` and ``mlp``.

All are made of ``channels``, a base width. Those of images take their side, ``resolution``, and ``image_channels``, 1
or 3; for another side they raise a ValueError that names theirs. A generator has ``latent``, the dimension of z, and
``num_classes``, 0 where it is not conditional; every discriminator returns a score for each sample.
"""
