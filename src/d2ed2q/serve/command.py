"""The settings of ``d2ed2q serve`` and ``d2ed2q audit verify``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from d2ed2q.errors import ConfigError

__all__ = ["AuditVerifySettings", "ServeSettings"]


@dataclass(frozen=True)
class ServeSettings:
    """Run a segmentation node: images in by HTTP, DICOM or a watched folder, masks out."""

    model: Positional[Path | None] = None
    """A bundle (model.d2q)."""
    config: Path | None = None
    """TOML file of the node's settings."""
    check: bool = False
    """Only check settings, certificates, model and addresses of peers, and end."""
    health: bool = False
    """Only ask the node that runs with these settings how it is, and end: with 0 if it can be sent images, else 1."""
    new_token: bool = False
    """Only print a new access token and the hash that belongs into the settings."""

    def __post_init__(self) -> None:
        if self.health and self.config is None:
            raise ConfigError("--health needs the node's settings: d2ed2q serve --health --config node.toml")
        if not (self.new_token or self.health) and (self.model is None or self.config is None):
            raise ConfigError("serve needs a model and its settings: d2ed2q serve model.d2q --config node.toml")


@dataclass(frozen=True)
class AuditVerifySettings:
    """Check that nothing in an audit log was changed."""

    log: Positional[Path]
    """The file, audit.jsonl in the node's state folder."""
    expect: str | None = None
    """Hash of the last entry as it was noted elsewhere; shows entries that were cut off at the end."""
