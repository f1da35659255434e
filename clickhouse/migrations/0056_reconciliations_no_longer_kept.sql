-- Events that are here and that the source, which keeps them for SOURCE_KEEPS_DAYS only, no longer has.
ALTER TABLE reconciliations
    ADD COLUMN IF NOT EXISTS no_longer_kept UInt64 COMMENT 'here, and older than the source keeps' AFTER mended,
    COMMENT COLUMN duplicate 'stored with different values in their newest version'
