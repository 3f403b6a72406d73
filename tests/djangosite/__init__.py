"""A small Django site with its admin, to be served by the bridge: documents with a file each, in MariaDB."""
