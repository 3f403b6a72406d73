"""Secrets in files: read only if other users can neither read nor change the file. Any thread."""

from __future__ import annotations

import os


def read_private_file(path: str, setting: str) -> str:
    """Return the text of a file, without white space around it; raises ``ValueError``, which names the setting."""
    try:
        with open(path, encoding="ascii") as file:
            status = os.fstat(file.fileno())
            text = file.read().strip()
    except OSError as error:
        raise ValueError(f"{setting} {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{setting} {path}: expected ASCII characters") from None
    # Where root owns the file, the group may read it: Kubernetes does this with secrets (fsGroup), Debian with keys
    # (ssl-cert). systemd makes its credentials readable for the group root, through an access control list.
    if status.st_mode & (0o037 if 0 in (status.st_uid, status.st_gid) else 0o077):
        raise ValueError(f"{setting} {path}: other users may read or change it; chmod 600 {path}")
    return text
