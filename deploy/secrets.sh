#!/usr/bin/env bash
# Make deploy/.env with new passwords, for compose.yaml; an existing one is left alone.
set -euo pipefail
file=$(dirname "${BASH_SOURCE[0]}")/.env
if [[ -e $file ]]; then
  echo "$file is there already"
  exit
fi
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
umask 077
cat >"$file" <<END
POSTGRES_PASSWORD=$(secret)
PREFECT_AUTH=sparsefleet:$(secret)
RAY_AUTH_TOKEN=$(secret)$(secret)
S3_ACCESS_KEY=fleet$(secret)
S3_SECRET_KEY=$(secret)
END
echo "$file made; the Prefect UI asks for PREFECT_AUTH"
