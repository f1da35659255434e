"""Celery tasks: each checks its arguments, makes about one call into the domain, and hands out what follows.

Arguments and results are short JSON; nothing a message says is trusted before it is checked, and no message can name
a server, a file or a statement. A task that is lost or runs twice changes nothing about what is true: the ledger
decides, and the next tick goes on from it.
"""
