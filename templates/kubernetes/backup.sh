# `dump`: dumps the database to WORK/dump and verifies it by a restore. `restore`: restores WORK/dump into the database.
# Another container encrypts and decrypts dumps. WORK/report goes from one to the other: the result of the verification, or the dump's name.
# WORK has space for one database and its dump. DATABASE_URL gives the connection, else PostgreSQL's environment variables, and PASSWORD_FILE
# has its password.
set -eu
umask 077
for folder in /usr/lib/postgresql/*/bin; do PATH=$PATH:$folder; done
PGPASSWORD=$(cat "$PASSWORD_FILE")
# Read the rows of all tenants despite row-level security. A server that is not verified gets no password in clear, from PostgreSQL 16 on.
export PATH PGPASSWORD PGREQUIREAUTH='!password' PGOPTIONS="-c textnlp.tenant=*" PGCONNECT_TIMEOUT=10 LC_ALL=C
# The address has parameters: clouds give one with `?sslmode=`. A lost connection ends a job after 90 seconds.
database=${DATABASE_URL:+$DATABASE_URL&keepalives_idle=30&keepalives_interval=10&keepalives_count=6}
database=${database:-$PGDATABASE}
case ${DATABASE_URL:-sslmode=verify-full} in
  *sslmode=verify-*) ;;
  # With a root certificate, PostgreSQL's programs would verify a server of which the address does not ask that.
  *) unset PGSSLROOTCERT ;;
esac
cd "$WORK"

# Prints the number of keys and of recorded requests.
count_rows() {
  psql -X -q -A -t -F ' ' -v ON_ERROR_STOP=1 -d "$database" -c 'SELECT (SELECT count(*) FROM api_keys), (SELECT count(*) FROM api_usage)'
}

# Lists what is restored: all that is in the schema public. Some clouds put extensions, schemas and event triggers into each database.
list() {
  pg_restore --list dump | grep -vE '^[0-9]+; [0-9]+ [0-9]+ (COMMENT - )?(EXTENSION|SCHEMA|EVENT TRIGGER) ' >list
}

# The restored counts must be between those before and after the dump.
within() {
  [ "$3" -ge "$1" ] && [ "$3" -le "$5" ] && [ "$4" -ge "$2" ] && [ "$4" -le "$6" ]
}

dump() {
  beside=$WORK/proof-$$
  # A server that a failure left ends with the container; its files are removed here.
  trap 'rm -rf "$beside"' EXIT
  trap 'exit 143' TERM INT
  before=$(count_rows)
  # A benchmark may drop its tables meanwhile, and Cloud SQL has a schema of its own.
  pg_dump --format=custom --no-owner --no-privileges --enable-row-security --exclude-schema=textnlp_benchmark --exclude-schema='google_*' \
    --no-password --dbname="$database" --file=dump
  after=$(count_rows)
  proof="not verified"
  if [ "$VERIFY" = true ]; then
    restored=$(prove)
    # shellcheck disable=SC2086
    within $before $restored $after || { echo "verification failed: restored $restored keys and requests, expected $before to $after" >&2; exit 1; }
    proof="verified: restored with $restored keys and requests"
  fi
  echo "$proof" >report
  echo "dumped, $proof"
}

# Restores the dump into a temporary server on a private socket, and prints its counts.
prove() {
  initdb --pgdata="$beside" --username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync >/dev/null
  socket=@textnlp-proof-$(uname -n)-$$
  settings="-c unix_socket_directories=$socket -c listen_addresses= -c fsync=off"
  pg_ctl --pgdata="$beside" --silent --wait --timeout=60 --log="$beside/log" --options="$settings" start >&2 ||
    { cat "$beside/log" >&2; exit 1; }
  restored=$(
    database=postgres
    export PGHOST="$socket" PGUSER=postgres PGSSLMODE=disable
    list && pg_restore --exit-on-error --no-owner --use-list=list --dbname=postgres dump >&2 && count_rows
  ) || restored=
  pg_ctl --pgdata="$beside" --silent --mode=immediate stop >&2
  [ -n "$restored" ] && echo "$restored"
}

# One transaction: a failure leaves the database unchanged.
restore() {
  name=$(cat report)
  # The schema must match: tables of another release would remain.
  there=$(psql -X -q -A -t -v ON_ERROR_STOP=1 -d "$database" -c 'SELECT max(version) FROM schema_version')
  has=$(pg_restore --data-only --table=schema_version --file=- dump | sed -n '/^COPY /,/^\\\.$/p' | cut -f 1 | grep -E '^[0-9]+$' | sort -n | tail -n 1)
  [ "$there" = "$has" ] || { echo "$name has schema ${has:-none}, and the database has $there: deploy the release of that dump first" >&2; exit 1; }
  list
  pg_restore --clean --if-exists --no-owner --no-privileges --exit-on-error --single-transaction --use-list=list --dbname="$database" dump
  # A dump has no privileges, and running servers grant those of the tenants' role at their start only.
  psql -X -q -v ON_ERROR_STOP=1 -d "$database" <<'SQL'
DO $$ DECLARE tenant text := session_user || '_tenant'; BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = tenant) THEN
    EXECUTE format('GRANT SELECT ON api_usage TO %I', tenant);
    -- A dump of before usage analytics does not have it.
    IF to_regclass('insights') IS NOT NULL THEN EXECUTE format('GRANT SELECT ON insights TO %I', tenant); END IF;
    IF to_regclass('batches') IS NOT NULL THEN EXECUTE format('GRANT SELECT ON batch_files, batch_lines, batches TO %I', tenant); END IF;
    EXECUTE format('GRANT SELECT, INSERT, DELETE ON stream_tickets TO %I', tenant);
  END IF;
END $$;
SQL
  rm -f dump list
  echo "$name is restored: $(count_rows) keys and requests"
}

"$1"
