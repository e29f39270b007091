#!/usr/bin/env bash
# The scheme that the bench compares with: every PERIOD seconds each name is resolved, one dig after the other, and the
# addresses found replace those of an nft set. NAMES is how many nN.slot.test there are.
set -euo pipefail
names=$1 period=$2 resolver=$3
nft -f - <<'RULES'
table inet scheme {
  set open { type ipv4_addr; }
  chain output {
    type filter hook output priority 0; policy drop;
    oifname "lo" accept
    ct state established,related accept
    udp dport 53 accept
    ip daddr @open accept
    tcp flags syn counter reject with tcp reset
  }
}
RULES
while true; do
  begin=$EPOCHREALTIME
  list=
  for ((i = 0; i < names; i++)); do
    for address in $(dig +short "@$resolver" "n$i.slot.test" | grep -E '^[0-9.]+$' || true); do list+="$address, "; done
  done
  printf 'flush set inet scheme open\nadd element inet scheme open { %s }\n' "${list%, }" | nft -f -
  echo "refreshed"
  # From begin to begin, as a timer would.
  sleep "$(awk -v b="$begin" -v n="$EPOCHREALTIME" -v p="$period" 'BEGIN { s = p - (n - b); print (s > 0 ? s : 0) }')"
done
