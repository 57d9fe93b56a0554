"""The data that a configuration names, with what fits them, checked before anything is made of them."""

from dataclasses import replace

from specreg.data.mixtures import MIXTURES
from specreg.evaluation.mixtures import MixtureEvaluator
from specreg.evaluation.protocol import Evaluator
from specreg.experiments.config import DataConfig, Settings
from specreg.experiments.sources.images import Images
from specreg.experiments.sources.points import Points

# A kind of training data, and the networks, evaluator, picture and recipe that fit it.
Source = Images | Points
# Compares generated samples with real ones.
SampleEvaluator = Evaluator | MixtureEvaluator


def kind_of(data: DataConfig) -> type[Source]:
    """Return the kind of the data that a configuration names, which need not be there."""
    return Points if data.data in MIXTURES else Images


def recipe(data: DataConfig) -> Settings:
    """Return the settings that a run on some data has unless it is told otherwise."""
    return replace(kind_of(data).recipe(data), data=data)


def open_source(settings: Settings) -> Source:
    """Return the data that a configuration names, once they fit its networks."""
    source = kind_of(settings.data).open(settings.data)
    source.check(settings)
    return source


def open_checked(settings: Settings) -> Source:
    """Return what :func:`open_source` returns, to train on it: what could not be evaluated is found before."""
    source = open_source(settings)
    # Opened whatever the reference is: the training looks at what is held out.
    source.check_evaluation(settings, source.held_out(settings))
    return source
