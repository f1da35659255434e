-- Marks that repeat those of other windows, made while this one was being loaded. Windows repeat originals only: else a
-- day would be marked anew for as long as windows overlap.
ALTER TABLE day_marks ADD COLUMN IF NOT EXISTS again Bool AFTER date_id, MODIFY ORDER BY (date_id, again)
