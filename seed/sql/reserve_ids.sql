SELECT nextval(pg_get_serial_sequence(%(relation)s, 'id')) FROM generate_series(1, %(count)s)
