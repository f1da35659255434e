-- Campaigns as they were booked: their version has a time of its own.
UPDATE campaign SET updated_at = created_at WHERE id = ANY(%(ids)s)
