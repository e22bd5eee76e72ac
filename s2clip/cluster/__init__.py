"""Many machines: Ray Data schedules (extra `ray`), and every write is one that may be done twice.

`session` meets a cluster, `pool` spreads rows over actors that each load the models once, `attempts` finds the row that
ends its process. `files` and `shards` read pictures, `addresses` knows where they and the results may lie. `segmenting`
and `scoring` are what an actor does with its rows; what it gives back is a line for the driver, the only one that
writes manifests, records and `rows`.

In: rows of a data set, what loads the models. Out: lines of JSON. No command line is imported here, Ray when it is
used, and nothing below imports this.
"""
