"""One typed tree of settings, the same for jobs, sweeps and tests.

Built from a recipe (YAML), then the environment (``MG_TRAIN__EPOCHS=3``), then the command line
(``--train.epochs 3``); later sources override earlier ones. Every field documents its unit or
meaning, unknown keys are errors, and everything that can be checked without the data is checked
here. Importing the package loads neither torch nor MLflow nor Ray, so that ``--help`` is fast.
"""

from pipeline.config.data import DataConfig
from pipeline.config.detector import AssignConfig, LossConfig, ModelConfig
from pipeline.config.detector_spec import DetectorSpec
from pipeline.config.ray import RayConfig
from pipeline.config.services import PromoteConfig, RegistryConfig, SweepConfig, TrackingConfig
from pipeline.config.sources import load_config, read_recipe
from pipeline.config.training import (
    EvaluateConfig,
    Protocol,
    TrainConfig,
    deciding_metric,
)
from pipeline.config.tree import Config, set_dotted

__all__ = [
    "AssignConfig",
    "Config",
    "DataConfig",
    "DetectorSpec",
    "EvaluateConfig",
    "LossConfig",
    "ModelConfig",
    "PromoteConfig",
    "Protocol",
    "RayConfig",
    "RegistryConfig",
    "SweepConfig",
    "TrackingConfig",
    "TrainConfig",
    "deciding_metric",
    "load_config",
    "read_recipe",
    "set_dotted",
]
