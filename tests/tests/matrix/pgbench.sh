#!/bin/bash
# A client of the loss matrix: pgbench. A transaction is a request, and each worker has a session: one for all of its
# transactions, with pauses in which it is idle, or (work "fresh", pgbench -C) one for each. A client whose session
# breaks off does not come back: that is one failure.

think=20
while [ $# -gt 1 ]; do
    case $1 in
        --url) url=$2 ;;
        --seconds) seconds=$2 ;;
        --workers) workers=$2 ;;
        --work) work=$2 ;;
        --think) think=$2 ;;
    esac
    shift 2
done
directory=$(mktemp -d)
trap 'rm -r "$directory"' EXIT
case $work in
    quick) options=() pause="\\sleep $think ms" ;;
    # The pauses come before a session begins.
    fresh) options=(-C --rate $((workers * 1000 / think + 1))) pause= ;;
    *) echo "pgbench has no work '$work', only quick, fresh." >&2; exit 2 ;;
esac
printf 'SELECT 1;\n%s\n' "$pause" >"$directory/script"

# Debian's pgbench in PATH is a wrapper that looks for local clusters.
pgbench=$(printf '%s\n' /usr/lib/postgresql/*/bin/pgbench | sort -V | tail -1)
"$pgbench" --no-vacuum --file="$directory/script" --client="$workers" --time="$seconds" "${options[@]}" "$url" \
    >"$directory/log" 2>&1

awk -v "client=$("$pgbench" --version | awk '{ print $1, $3 }')" '
    /^number of transactions actually processed:/ { requests = $NF }
    /client [0-9]+ aborted/ {
        failed++
        gsub(/client [0-9]+/, "client ..")
        gsub(/["\\\n]/, " ")
        errors[$0]++
    }
    function json(counts, name, text) {
        for (name in counts) text = text (text == "" ? "" : ",") "\"" name "\":" counts[name]
        return "{" text "}"
    }
    END {
        printf "{\"client\":\"%s\",\"requests\":%d,\"failed\":%d,\"errors\":%s}\n",
            client, requests + failed, failed, json(errors)
    }' "$directory/log"
