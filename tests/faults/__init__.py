"""Faults, load and checks that are composed at random: ``python -m tests.faults --seconds 600 --seed N``.

`site` is what is broken: a MariaDB server, a `line` to it, and a frontend that serves `application`. `crowd` asks for
its pages. Each fault is a function of `network`, `database`, `frontend` or `limits`: it does something to the site,
waits, and undoes it; a new one is written there and added to the tuple at the end of its file. `campaign`
composes them, one at a time of each of its ``GROUPS``, and `checks` has the promises that it looks at afterwards.
"""
