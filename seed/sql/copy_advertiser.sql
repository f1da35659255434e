COPY advertiser (id, name, created_at) FROM STDIN (ENCODING 'UTF8')
