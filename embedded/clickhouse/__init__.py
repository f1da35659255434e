"""The ClickHouse engine (chdb) behind ClickHouse's native TCP protocol, on the loopback interface.

`wire` and `native` know bytes, `statements` knows just enough SQL to tell what kind of statement it is, `engine` knows
chdb, `server` is the conversation with one client, `daemon` starts and finds the process for `embedded.stack`.
"""
