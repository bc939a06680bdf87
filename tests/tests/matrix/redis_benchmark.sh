#!/bin/bash
# A client of the loss matrix: redis-benchmark -k 1. Its connections are busy all the time, each with one BLPOP after the
# other that finds nothing for half a second. It ends at the first error, which is then the one that failed.

while [ $# -gt 1 ]; do
    case $1 in
        --url) url=${2#redis://} ;;
        --seconds) seconds=$2 ;;
        --workers) workers=$2 ;;
        --work) work=$2 ;;
    esac
    shift 2
done
[ "$work" = busy ] || { echo "redis-benchmark has no work '$work', only busy." >&2; exit 2; }

log=$(mktemp)
trap 'rm "$log"' EXIT
timeout "$seconds" redis-benchmark -h "${url%:*}" -p "${url#*:}" -k 1 -c "$workers" -n 1000000000 -q \
    blpop matrix:none 0.5 >"$log" 2>&1
status=$?

# It tells its progress in records "...: rps=8.0 (overall: 7.9) ...", and counts nothing until its end.
tr '\r' '\n' <"$log" | awk -v "seconds=$SECONDS" -v "status=$status" \
    -v "client=$(redis-benchmark --version | awk '{ print $1, $2 }')" '
    match($0, /overall: [0-9.]+/) { overall = substr($0, RSTART + 9, RLENGTH - 9); next }
    NF { gsub(/["\\]/, " "); error = $0 }
    END {
        # 124: its time was over.
        failed = status != 124
        errors = failed ? "\"" (error ? error : "it ended with " status) "\":1" : ""
        printf "{\"client\":\"%s\",\"requests\":%d,\"failed\":%d,\"errors\":{%s}}\n",
            client, overall * seconds + failed, failed, errors
    }'
