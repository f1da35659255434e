COPY campaign (id, name, bid, budget, start_date, end_date, advertiser_id, created_at) FROM STDIN (ENCODING 'UTF8')
