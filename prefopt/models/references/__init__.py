"""References: what the policy's log-probs are compared with, and how to get them without disturbing the policy."""

from prefopt.models.references.base import NoReference, Reference
from prefopt.models.references.build import build_reference, reference_config
from prefopt.models.references.cached import Asked, CacheCounts, CachedReference
from prefopt.models.references.caching import cached
from prefopt.models.references.kinds import AdapterOff, FrozenCopy, FrozenModel
from prefopt.models.references.moving import MovingCopy
from prefopt.models.references.store import Store, Usage, default_folder

__all__ = [
    "AdapterOff",
    "Asked",
    "CacheCounts",
    "CachedReference",
    "FrozenCopy",
    "FrozenModel",
    "MovingCopy",
    "NoReference",
    "Reference",
    "Store",
    "Usage",
    "build_reference",
    "cached",
    "default_folder",
    "reference_config",
]
