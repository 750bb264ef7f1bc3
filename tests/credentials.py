"""A credential provider that tests name by its path, as a deployment would."""

from __future__ import annotations

import redis

__all__ = ["Rotating"]


class Rotating(redis.CredentialProvider):
    """Gives whatever password is valid now; counts how often it was asked."""

    password = ""
    asked = 0

    def get_credentials(self) -> tuple[str, str]:
        type(self).asked += 1
        return "default", self.password
