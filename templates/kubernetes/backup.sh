# `backup`: one dump of the database, proven by reading it back, and an end to those that are too old. `restore`: a dump into the database.
# FOLDER has the dumps, WORK has room for one database. PostgreSQL's own variables say where the database is.
set -eu
umask 077
for folder in /usr/lib/postgresql/*/bin; do PATH=$PATH:$folder; done
# Rows of all tenants, which row security keeps apart.
export PATH PGOPTIONS="-c textnlp.tenant=*" PGCONNECT_TIMEOUT=10 LC_ALL=C
cd "$FOLDER"

# Keys and requests that are accounted for, in two words.
figures() {
  psql -X -q -A -t -F ' ' -v ON_ERROR_STOP=1 -c 'SELECT (SELECT count(*) FROM api_keys), (SELECT count(*) FROM api_usage)'
}

# Nothing of before the dump is missing in what was read back, and nothing was made up.
within() {
  [ "$3" -ge "$1" ] && [ "$3" -le "$5" ] && [ "$4" -ge "$2" ] && [ "$4" -le "$6" ]
}

backup() {
  new=.new-$(uname -n)-$$
  beside=$WORK/proof-$$
  # A server that was left by a failure ends with this process's container; its files and half a dump go here.
  trap 'rm -rf "$new" "$beside"' EXIT
  trap 'exit 143' TERM INT
  # Of tries that were killed nothing is left to them; none takes as long as six hours.
  find . -maxdepth 1 \( -name '.new-*' -o -name '.backup_*' \) -mmin +360 -exec rm -f {} +
  prune
  before=$(figures)
  pg_dump --format=custom --no-owner --no-privileges --enable-row-security --no-password --file="$new"
  after=$(figures)
  proof="not proven"
  if [ "$VERIFY" = true ]; then
    restored=$(prove)
    # shellcheck disable=SC2086
    within $before $restored $after || { echo "read back: $restored, and the database has $before to $after" >&2; exit 1; }
    proof="proven: read back with $restored keys and requests"
  fi
  day=$(date -u +%Y%m%d)
  number=1
  name=backup_$day.dump
  # Two that run at once take two names.
  while [ -e "$name" ] || ! (set -C; : >".$name") 2>/dev/null; do
    number=$((number + 1))
    name=backup_$day-$number.dump
    [ "$number" -lt 10000 ] || { echo "no name is left for a dump of $day" >&2; exit 1; }
  done
  sync "$new" 2>/dev/null || sync
  mv "$new" "$name"
  rm -f ".$name"
  prune
  echo "$name: $(wc -c <"$name") bytes, $proof"
}

# What is too old, but for the newest there is.
prune() {
  newest=$(ls -t | grep '^backup_.*\.dump$' | head -n 1)
  find . -maxdepth 1 -name 'backup_*.dump' ! -name "$newest" -mmin "+$((KEEP_SECONDS / 60))" -exec rm -f {} +
}

# A server of its own, which nobody else can reach, with what the dump brings; says its figures.
prove() {
  initdb --pgdata="$beside" --username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync >/dev/null
  socket=@textnlp-proof-$(uname -n)-$$
  settings="-c unix_socket_directories=$socket -c listen_addresses= -c fsync=off"
  pg_ctl --pgdata="$beside" --silent --wait --timeout=60 --log="$beside/log" --options="$settings" start >&2 ||
    { cat "$beside/log" >&2; exit 1; }
  restored=$(
    export PGHOST="$socket" PGUSER=postgres PGDATABASE=postgres PGSSLMODE=disable
    pg_restore --exit-on-error --no-owner --dbname=postgres "$new" >&2 && figures
  ) || restored=
  pg_ctl --pgdata="$beside" --silent --mode=immediate stop >&2
  [ -n "$restored" ] && echo "$restored"
}

# All or nothing: what goes wrong leaves the database as it was.
restore() {
  dump=${DUMP:-$(ls -t backup_*.dump | head -n 1)}
  [ -f "$dump" ] || { echo "there is no dump \`$dump\`; there are:" >&2; ls >&2; exit 1; }
  # Tables of another release would stand beside those of this one.
  there=$(psql -X -q -A -t -v ON_ERROR_STOP=1 -c 'SELECT max(version) FROM schema_version')
  has=$(pg_restore --data-only --table=schema_version --file=- "$dump" | sed -n '/^COPY /,/^\\\.$/p' | cut -f 1 | grep -E '^[0-9]+$' | sort -n | tail -n 1)
  [ "$there" = "$has" ] || { echo "$dump has schema ${has:-none}, and the database has $there: go to the release of that dump first" >&2; exit 1; }
  pg_restore --clean --if-exists --no-owner --no-privileges --exit-on-error --single-transaction --dbname="$PGDATABASE" "$dump"
  echo "$dump is restored: $(figures) keys and requests"
}

"$1"
