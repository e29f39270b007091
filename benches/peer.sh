#!/usr/bin/env bash
# A stand-in for codetainer's shell entrypoint: the same work in the same order (FEATURES 1.1.1 and 1.1.2 of the
# project's notes), written for this bench. dnsmasq stands for CoreDNS, `sleep` for the agent; no clone, no telemetry,
# no sudo, no command classifier. Prints `mark NAME SECONDS` of the wall clock.
set -euo pipefail
mark() { printf 'mark %s %s\n' "$1" "$EPOCHREALTIME"; }
mark exec
names=/etc/bench/names

# 0: secrets
for secret in GH_PAT CLAUDE_CODE_OAUTH_TOKEN; do
  [ -n "${!secret-}" ] || { echo "missing: $secret" >&2; exit 1; }
done

# 1: file systems, the home, links
mount -t tmpfs -o size=512m bench /workspace
mount -t tmpfs -o size=512m bench /tmp
mount -t tmpfs -o size=1024m bench /home/claude
chmod 1777 /tmp
chown claude: /workspace /home/claude
home=(/home/claude/{.cache,.claude,.local,.local/bin,.bun,.bun/bin})
mkdir -p "${home[@]}"
chown -R claude: "${home[@]}"
printf 'PATH=~/.local/bin:~/.bun/bin:$PATH\nPS1="\\w\\n\\$ "\n' > /home/claude/.bashrc
printf '. ~/.bashrc\n' > /home/claude/.profile
chown claude: /home/claude/.bashrc /home/claude/.profile
ln -sf /usr/local/bin/claude /home/claude/.local/bin/claude
ln -sf /usr/local/bin/bun /home/claude/.bun/bin/bun
ln -sf /usr/local/bin/bunx /home/claude/.bun/bin/bunx

# 2b: the resolver's configuration, name by name; a restart loop; a fixed second
conf=/tmp/resolver.conf
printf '%s\n' no-resolv no-hosts bind-interfaces listen-address=127.0.0.53 filter-AAAA cache-size=1000 log-queries \
  log-facility=/tmp/resolver.log user=root 'address=/#/' > "$conf"
while IFS= read -r line; do
  name=$(tr -d '[:blank:]' <<< "$line")
  printf 'server=/%s/8.8.8.8\nserver=/%s/1.1.1.1\n' "$name" "$name" >> "$conf"
done < "$names"
while true; do dnsmasq --keep-in-foreground --conf-file="$conf" || sleep 2; done &
sleep 1
echo 'nameserver 127.0.0.53' > /etc/resolv.conf

# 2c: the firewall: one dig after the other, then one iptables-restore
refresh() {
  local rules ip name address
  rules=$(mktemp)
  {
    printf '%s\n' '*filter' ':INPUT ACCEPT' ':FORWARD ACCEPT' ':OUTPUT DROP' '-A OUTPUT -o lo -j ACCEPT'
    for ip in 169.254.0.0/16 172.16.0.0/12; do echo "-A OUTPUT -d $ip -j DROP"; done
    for ip in udp tcp; do echo "-A OUTPUT -d 127.0.0.53 -p $ip --dport 53 -j ACCEPT"; done
    for ip in 8.8.8.8 1.1.1.1; do echo "-A OUTPUT -d $ip -p udp --dport 53 -j ACCEPT"; done
    echo '-A OUTPUT -m state --state RELATED,ESTABLISHED -j ACCEPT'
    for ip in 140.82.112.0/20 185.199.108.0/22 143.55.64.0/20; do
      echo "-A OUTPUT -d $ip -p tcp --dport 443 -j ACCEPT"
    done
    while IFS= read -r line; do
      name=$(tr -d '[:blank:]' <<< "$line")
      for address in $(dig +short "$name" | grep -E '^[0-9.]+$' || true); do
        echo "-A OUTPUT -d $address -j ACCEPT"
      done
    done < "$names"
    printf '%s\n' '-A OUTPUT -p udp -j DROP' '-A OUTPUT -j NFLOG --nflog-group 100 --nflog-prefix dropped' COMMIT
  } > "$rules"
  iptables-restore < "$rules"
  rm "$rules"
}
mark resolve
refresh
mark closed
while sleep 300; do refresh; done &

# 3: git, the token, npm; the image's /etc/gitconfig leads to Innkeeper's
export GIT_CONFIG_SYSTEM=/opt/gitconfig
git config --system user.name bench
git config --system user.email bench@example.org
git config --system url.https://github.com/.insteadOf git@github.com:
git config --system credential.https://github.com.helper '!gh auth git-credential'
mkdir -p /opt/bench-gh
(umask 077; echo "$GH_PAT" > /opt/bench-gh/token)
chmod 711 /opt/bench-gh
printf '//npm.pkg.github.com/:_authToken=${NPM_TOKEN}\n' > /home/claude/.npmrc
chmod 644 /home/claude/.npmrc

# 4, 5: the agent's state; the root file system read-only
echo '{"model": "stub"}' > /home/claude/.claude/settings.json
echo '{"hasCompletedOnboarding": true, "projects": {"/workspace": {"hasTrustDialogAccepted": true}}}' \
  > /home/claude/.claude.json
chown claude: /home/claude/.claude/settings.json /home/claude/.claude.json
# `bind`: util-linux 2.41 hands an overlay its own options back, which the kernel refuses in a remount.
mount -o remount,bind,ro /

# 7: readiness
pidof dnsmasq > /dev/null || echo 'no resolver' >&2
accepts=$(iptables -L OUTPUT -n | grep -c ACCEPT || true)
[ "$accepts" -ge 5 ] || echo 'no rules' >&2
[ -f /home/claude/.claude/settings.json ] || echo 'no settings' >&2
touch /tmp/bench-ready
mark ready
echo "accepts $accepts"

# 8, 9: the agent; reaping
sleep infinity &
wait
