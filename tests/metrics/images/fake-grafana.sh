#!/bin/sh
# FAKE: no Grafana. It reads the password's file and looks at what is provisioned as Grafana's entry point and server would, and answers /api/health.
set -eu
test -s "$GF_SECURITY_ADMIN_PASSWORD__FILE"
cat "$GF_PATHS_PROVISIONING"/*/*.yml "$GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH" > /dev/null
touch /var/lib/grafana/grafana.db
mkdir -p /tmp/www/api
echo '{"database": "ok", "FAKE": true}' > /tmp/www/api/health
exec busybox httpd -f -p 3000 -h /tmp/www
