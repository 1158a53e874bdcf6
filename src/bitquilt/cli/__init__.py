"""The command line: one module a verb, each a thin layer over a function of the package.

In: arguments. Out: a table or one JSON object on stdout, progress on stderr, an exit code.
"""
