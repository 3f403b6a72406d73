"""The operators' port: what runs, what has run lately, health, and a way to stop a request. All of it is loop side."""

from threadbridge.admin.server import AdminServer

__all__ = ["AdminServer"]
