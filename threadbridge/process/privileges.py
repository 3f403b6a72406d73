"""Gives up root's rights: the process becomes the user and group of the settings, for good. Main thread."""

from __future__ import annotations

import grp
import logging
import os
import pwd
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from threadbridge.settings.table import Settings
from threadbridge.settings.values import SettingError

logger = logging.getLogger("threadbridge")


class Identity:
    """The user and groups that the process is to have. Raises `SettingError` if there are none of these names."""

    def __init__(self, settings: Settings) -> None:
        user, group = settings["user"], settings["group"]
        entry = _user(user) if user else None
        self.uid = os.geteuid() if not user else entry.pw_uid if entry is not None else int(user)
        self.gid = _group(group) if group else entry.pw_gid if entry is not None else self.uid
        self._entry = entry
        self._has_group = group != ""
        self.is_other = (user != "" and self.uid != os.geteuid()) or (group != "" and self.gid != os.getegid())
        if self.is_other and os.geteuid() != 0:
            raise SettingError(
                f"user={user} group={group}: only root can change these; this process is user {self.uid}"
            )

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Have this user's rights for a while: files that are opened then may be in directories of the user's.

        Root would follow links that the user has put there, and so write to any file of the machine.
        """
        if not self.is_other:
            yield
            return
        groups, gid = os.getgroups(), os.getegid()
        self._set_groups()
        os.setegid(self.gid)
        os.seteuid(self.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(gid)
            os.setgroups(groups)

    def _set_groups(self) -> None:
        if self._entry is not None and not self._has_group:
            os.initgroups(self._entry.pw_name, self.gid)
        else:
            os.setgroups([self.gid])

    def become(self, descriptors: Iterable[int], paths: Iterable[str | Path], directory: str | None) -> None:
        """Give up root's rights; does nothing if the process has this user and group already. Raises `SettingError`.

        The environment's HOME, USER and LOGNAME follow, as they do with systemd.

        :param descriptors: sockets that are to belong to the user; likewise the paths.
        :param directory: is made for the user, if it is missing.
        """
        if not self.is_other:
            return
        try:
            for descriptor in descriptors:
                os.fchown(descriptor, self.uid, self.gid)
            # Links are not followed: the user may own the directories, and have put links to files of root's there.
            for path in paths:
                os.chown(path, self.uid, self.gid, follow_symlinks=False)
            if directory is not None and not os.path.isdir(directory):
                os.makedirs(directory, 0o700)
                os.chown(directory, self.uid, self.gid, follow_symlinks=False)
            # The groups first: only root may set them; and the saved ids too, so that there is no way back.
            self._set_groups()
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)
        except OSError as error:
            raise SettingError(f"cannot become user {self.uid}, group {self.gid}: {error}") from None
        if self._entry is not None:
            name = self._entry.pw_name
            os.environ.update(HOME=self._entry.pw_dir, USER=name, LOGNAME=name)
        logger.info("running as user %d, group %d", self.uid, self.gid)


def _user(text: str) -> pwd.struct_passwd | None:
    """The entry of a user; None for a number without one."""
    try:
        return pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
    except KeyError:
        if text.isdecimal():
            return None
        raise SettingError(f"user={text}: there is no user of this name") from None


def _group(text: str) -> int:
    try:
        return int(text) if text.isdecimal() else grp.getgrnam(text).gr_gid
    except KeyError:
        raise SettingError(f"group={text}: there is no group of this name") from None
