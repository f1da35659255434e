-- Ids are not restarted: a copy elsewhere still knows campaign 1 and its history, and a new campaign 1 would inherit it.
TRUNCATE advertiser, campaign, impressions, clicks
