"""The targets an engine can be built for. A new target is a new module in this folder that registers its class."""

import importlib
import pkgutil

from export.targets.base import REGISTERED

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

TARGETS = {target.name: target for target in sorted(REGISTERED, key=lambda target: target.name)}
