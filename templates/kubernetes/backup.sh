# `backup`: takes one dump of the database, verifies it by a restore, and prunes expired dumps. `restore`: restores a dump into the database.
# FOLDER has the dumps, WORK has space for one database. PostgreSQL's environment variables give the connection.
set -eu
umask 077
for folder in /usr/lib/postgresql/*/bin; do PATH=$PATH:$folder; done
# Read the rows of all tenants despite row-level security.
export PATH PGOPTIONS="-c textnlp.tenant=*" PGCONNECT_TIMEOUT=10 LC_ALL=C
cd "$FOLDER"

# Prints the number of keys and of recorded requests.
count_rows() {
  psql -X -q -A -t -F ' ' -v ON_ERROR_STOP=1 -c 'SELECT (SELECT count(*) FROM api_keys), (SELECT count(*) FROM api_usage)'
}

# The restored counts must be between those before and after the dump.
within() {
  [ "$3" -ge "$1" ] && [ "$3" -le "$5" ] && [ "$4" -ge "$2" ] && [ "$4" -le "$6" ]
}

backup() {
  new=.new-$(uname -n)-$$
  beside=$WORK/proof-$$
  # A server that a failure left ends with the container; its files and an incomplete dump are removed here.
  trap 'rm -rf "$new" "$beside"' EXIT
  trap 'exit 143' TERM INT
  # Remove files of killed runs; no run takes six hours.
  find . -maxdepth 1 \( -name '.new-*' -o -name '.backup_*' \) -mmin +360 -exec rm -f {} +
  prune
  before=$(count_rows)
  pg_dump --format=custom --no-owner --no-privileges --enable-row-security --no-password --file="$new"
  after=$(count_rows)
  proof="not verified"
  if [ "$VERIFY" = true ]; then
    restored=$(prove)
    # shellcheck disable=SC2086
    within $before $restored $after || { echo "verification failed: restored $restored keys and requests, expected $before to $after" >&2; exit 1; }
    proof="verified: restored with $restored keys and requests"
  fi
  day=$(date -u +%Y%m%d)
  number=1
  name=backup_$day.dump
  # Concurrent runs use different names.
  while [ -e "$name" ] || ! (set -C; : >".$name") 2>/dev/null; do
    number=$((number + 1))
    name=backup_$day-$number.dump
    [ "$number" -lt 10000 ] || { echo "too many dumps on $day: no free name" >&2; exit 1; }
  done
  sync "$new" 2>/dev/null || sync
  mv "$new" "$name"
  rm -f ".$name"
  prune
  echo "$name: $(wc -c <"$name") bytes, $proof"
}

# Removes expired dumps, but never the newest one.
prune() {
  newest=$(ls -t | grep '^backup_.*\.dump$' | head -n 1)
  find . -maxdepth 1 -name 'backup_*.dump' ! -name "$newest" -mmin "+$((KEEP_SECONDS / 60))" -exec rm -f {} +
}

# Restores the dump into a temporary server on a private socket, and prints its counts.
prove() {
  initdb --pgdata="$beside" --username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync >/dev/null
  socket=@textnlp-proof-$(uname -n)-$$
  settings="-c unix_socket_directories=$socket -c listen_addresses= -c fsync=off"
  pg_ctl --pgdata="$beside" --silent --wait --timeout=60 --log="$beside/log" --options="$settings" start >&2 ||
    { cat "$beside/log" >&2; exit 1; }
  restored=$(
    export PGHOST="$socket" PGUSER=postgres PGDATABASE=postgres PGSSLMODE=disable
    pg_restore --exit-on-error --no-owner --dbname=postgres "$new" >&2 && count_rows
  ) || restored=
  pg_ctl --pgdata="$beside" --silent --mode=immediate stop >&2
  [ -n "$restored" ] && echo "$restored"
}

# One transaction: a failure leaves the database unchanged.
restore() {
  dump=${DUMP:-$(ls -t backup_*.dump | head -n 1)}
  [ -f "$dump" ] || { echo "dump \`$dump\` does not exist; the dumps are:" >&2; ls >&2; exit 1; }
  # The schema must match: tables of another release would remain.
  there=$(psql -X -q -A -t -v ON_ERROR_STOP=1 -c 'SELECT max(version) FROM schema_version')
  has=$(pg_restore --data-only --table=schema_version --file=- "$dump" | sed -n '/^COPY /,/^\\\.$/p' | cut -f 1 | grep -E '^[0-9]+$' | sort -n | tail -n 1)
  [ "$there" = "$has" ] || { echo "$dump has schema ${has:-none}, and the database has $there: deploy the release of that dump first" >&2; exit 1; }
  pg_restore --clean --if-exists --no-owner --no-privileges --exit-on-error --single-transaction --dbname="$PGDATABASE" "$dump"
  echo "$dump is restored: $(count_rows) keys and requests"
}

"$1"
