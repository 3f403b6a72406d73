"""A fleet in a box: an entry proxy, three frontends, a database proxy and three Galera nodes on one Linux machine."""
