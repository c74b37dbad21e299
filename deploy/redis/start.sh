#!/usr/bin/env bash
# Start the Redis of a pod, or the sentinel beside it: `start.sh server` or `start.sh sentinel`.
#
# Who is the primary, is known to the sentinels that run; else to the one of this pod from last time; else it is the
# first of the peers. It is asked anew at each start, for a pod that comes back must not believe that it still is.
#
#   SELF               this pod's name in the network
#   PEERS              the names of all pods, the first one first, separated by spaces
#   DATA               a folder that outlives the pod                 /data
#   CONF               redis.conf                                     /etc/mdctr/conf/redis.conf
#   BIND               addresses to listen on                         * -::*
#   PORT               of Redis                                       6379
#   SENTINEL_PORT      of the sentinel                                26379
#   REPLICA_PASSWORD, SENTINEL_PASSWORD    of the users `replica` and `sentinel`
set -euo pipefail

: "${SELF:?}" "${PEERS:?}" "${REPLICA_PASSWORD:?}" "${SENTINEL_PASSWORD:?}"
data=${DATA:-/data} conf=${CONF:-/etc/mdctr/conf/redis.conf}
read -ra bind <<<"${BIND:-* -::*}"
port=${PORT:-6379} sentinel_port=${SENTINEL_PORT:-26379}
state=$data/sentinel.conf

# What the sentinel at an address answers: the primary's name, or nothing.
ask() {
    local head name
    exec 3<>"/dev/tcp/$1/$2"
    printf 'SENTINEL GET-MASTER-ADDR-BY-NAME mdctr\r\n' >&3
    read -r head <&3
    if [[ $head == \*2* ]]; then
        read -r _ <&3
        read -r name <&3
        printf '%s' "${name%$'\r'}"
    fi
}

find_primary() {
    local peer found
    for peer in $PEERS; do
        # Two seconds, for a pod that is gone is silent.
        found=$(timeout 2 "$0" ask "$peer" "$sentinel_port" 2>/dev/null) || true
        if [[ -n $found ]]; then
            printf '%s' "$found"
            return
        fi
    done
    if [[ -f $state && $(<"$state") =~ sentinel\ monitor\ mdctr\ ([^ ]+) ]]; then
        found=${BASH_REMATCH[1]}
    fi
    printf '%s' "${found:-${PEERS%% *}}"
}

case ${1:-} in
ask)
    ask "$2" "$3"
    ;;
server)
    primary=$(find_primary)
    follow=()
    if [[ $primary != "$SELF" ]]; then
        follow=(--replicaof "$primary" "$port")
    fi
    exec redis-server "$conf" --port "$port" --bind "${bind[@]}" --dir "$data" "${follow[@]}" \
        --replica-announce-ip "$SELF" --masteruser replica --masterauth "$REPLICA_PASSWORD"
    ;;
sentinel)
    if [[ ! -f $state ]]; then
        primary=$(find_primary)
        umask 077
        cat >"$state" <<CONF
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel monitor mdctr $primary $port 2
sentinel down-after-milliseconds mdctr 5000
sentinel failover-timeout mdctr 30000
sentinel parallel-syncs mdctr 1
sentinel auth-user mdctr sentinel
sentinel auth-pass mdctr $SENTINEL_PASSWORD
sentinel sentinel-user peer
sentinel sentinel-pass $SENTINEL_PASSWORD
user default on nopass -@all +ping +sentinel|masters +sentinel|slaves +sentinel|get-master-addr-by-name
user peer on >$SENTINEL_PASSWORD ~* &* +@all
CONF
    fi
    exec redis-server "$state" --sentinel --port "$sentinel_port" --bind "${bind[@]}" --protected-mode no \
        --dir "$data" --sentinel announce-ip "$SELF"
    ;;
*)
    echo "usage: start.sh server|sentinel" >&2
    exit 2
    ;;
esac
