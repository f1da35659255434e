-- A bid edited at a moment in the past, held to what the column takes.
UPDATE campaign SET bid = least(round(bid * %(factor)s, 2), 99999999.99), updated_at = %(at)s WHERE id = %(campaign_id)s
