"""A search: runs whose settings depend on the runs before.

The workdirs are the only truth. A suggestion is a function of the settings of
the search and of what the workdirs hold, hence a search goes on after any end.
"""
