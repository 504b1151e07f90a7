"""The registry: versions of models with their lineage, aliases and model cards. Knows no training and no serving.

version = registry.register(store, "greeter", directory, lineage=lineage, lineage_digest=digest)
registry.set_alias(store, "greeter", "champion", version.version)
registry.get(store, "greeter")  # the champion
"""

from ray_jobs.registry.model import Lineage, ModelVersion, base_name
from ray_jobs.registry.versions import (
    CHAMPION,
    Alias,
    aliases,
    delete_alias,
    delete_version,
    get,
    names,
    read_alias,
    register,
    set_alias,
    versions,
)

__all__ = [
    "CHAMPION", "Alias", "Lineage", "ModelVersion", "aliases", "base_name", "delete_alias", "delete_version", "get",
    "names", "read_alias", "register", "set_alias", "versions",
]  # fmt: skip
