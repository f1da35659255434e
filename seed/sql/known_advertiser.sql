SELECT name FROM advertiser WHERE id = %(advertiser_id)s
