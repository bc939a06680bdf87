#!/bin/bash
# A client of the loss matrix: curl. Each worker calls it again and again with requests that share a connection;
# --rate makes the pauses between them. A call lasts about 5 s, and a SIGTERM takes effect at its end.

think=20
while [ $# -gt 1 ]; do
    case $1 in
        --url) url=${2%/} ;;
        --seconds) seconds=$2 ;;
        --workers) workers=$2 ;;
        --work) work=$2 ;;
        --think) think=$2 ;;
    esac
    shift 2
done
case $work in
    quick) path='/quick?' takes=2 ;;
    slow) path='/slow?' takes=2000 ;;
    chunked) path='/chunked?parts=3&pause=3000&' takes=6000 ;;
    poll) path='/poll?' takes=8000 ;;
    *) echo "curl has no work '$work', only quick, slow, chunked, poll." >&2; exit 2 ;;
esac
unset http_proxy HTTP_PROXY all_proxy ALL_PROXY

interval=$((takes + think))
directory=$(mktemp -d)
trap 'rm -r "$directory"' EXIT

worker() {
    trap '' TERM INT
    while [ ! -e "$directory/stop" ]; do
        left=$((seconds - SECONDS))
        requests=$(((left < 5 ? left : 5) * 1000 / interval))
        requests=$((requests < 2 ? 2 : requests))
        timeout -s KILL $((left + 20)) curl -skv --rate $((86400000 / interval))/d "$url${path}n=[1-$requests]" \
            -w '\n#\t%{http_code}\t%header{x-server}\t%{errormsg}\n' 2>"$directory/$1.log" ||
            [ $? != 137 ] || printf '\n#\t000\t\tno end after the end of the work\n'
        printf '\n#retried\t%d\n' "$(grep -c 'retrying a fresh connect' "$directory/$1.log")"
        sleep "$(printf '0.%03d' $((RANDOM % (think + 1) % 1000)))"
    done >"$directory/$1"
}

trap : TERM INT
sleep "$seconds" &
timer=$!
for number in $(seq "$workers"); do
    worker "$number" &
    pids+=($!)
done
wait $timer
touch "$directory/stop"
kill $timer 2>/dev/null
wait "${pids[@]}"

# A record is the body of an answer, and then a line with its status, its server and an error, if there was one.
awk -F '\t' -v "client=curl $(curl --version | awk 'NR == 1 { print $2 }')" -v "work=$work" '
    $1 == "#retried" { retried += $2; next }
    $1 == "#" {
        right = "{\"server\":\"" $3 "\"}\n"
        if (work == "chunked") {
            right = ""
            for (part = 1; part <= 3; part++) right = right "{\"server\":\"" $3 "\",\"part\":" part "}\n"
        }
        error = $4
        if (error == "" && ($2 != 200 || $3 == "" || body != right)) error = "wrong answer: " $2 " from " $3 ": " body
        requests++
        body = ""
        if (error == "") { servers[$3]++; next }
        failed++
        gsub(/after [0-9]+ ms/, "after .. ms", error)
        gsub(/["\\\n]/, " ", error)
        if (!(error in errors) && ++kinds > 9) error = "others"
        errors[error]++
        next
    }
    NF { body = body $0 "\n" }
    function json(counts, name, text) {
        for (name in counts) text = text (text == "" ? "" : ",") "\"" name "\":" counts[name]
        return "{" text "}"
    }
    END {
        printf "{\"client\":\"%s\",\"requests\":%d,\"failed\":%d,\"retried\":%d,\"errors\":%s,\"servers\":%s}\n",
            client, requests, failed, retried, json(errors), json(servers)
    }' $(for number in $(seq "$workers"); do echo "$directory/$number"; done)
