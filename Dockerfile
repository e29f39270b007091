# The box: Innkeeper as PID 1, Claude Code, and the tools of a developer's day.
#
#   docker build -t innkeeper .
#
# Works with the classic builder too: no BuildKit syntax here. The layers of the last stage go from what seldom
# changes to what changes with every commit, so that a change under src/ costs one cargo build and one copy.

# ---- innkeeper: one static binary ------------------------------------------------------------------------------
FROM rust:1-slim-trixie AS build
WORKDIR /build
ENV CARGO_NET_RETRY=5 CARGO_INCREMENTAL=0
# The target is the machine's own architecture on musl. Of C there is only ring's cryptography, which needs no C library:
# the image's own compiler will do.
ENV CC_x86_64_unknown_linux_musl=gcc CC_aarch64_unknown_linux_musl=gcc
RUN set -eu; \
    target="$(uname -m)-unknown-linux-musl"; \
    rustup target list --installed | grep -qx "$target" || rustup target add "$target"
# Dependencies alone, against an empty crate: this layer is redone only when they change.
COPY Cargo.toml Cargo.lock build.rs ./
RUN set -eu; \
    target="$(uname -m)-unknown-linux-musl"; \
    mkdir src; echo 'fn main() {}' > src/main.rs; : > src/lib.rs; \
    cargo build --release --locked --target "$target"; \
    cargo clean --release --locked --target "$target" --package innkeeper; \
    rm -r src
# The small files of the image are in the binary too: a box without any image has them from there (src/engine/embedded/files.rs).
COPY network network
COPY image image
COPY src src
# cargo compares modification times, and COPY keeps the checkout's, which may be older than the empty crate's.
RUN set -eu; \
    target="$(uname -m)-unknown-linux-musl"; \
    find src -name '*.rs' -exec touch {} +; \
    cargo build --release --locked --offline --target "$target"; \
    install -D -m 0755 "target/$target/release/innkeeper" /out/innkeeper

# ---- what comes from the npm registry --------------------------------------------------------------------------
# Fetched by name with the npm client; versions and sha512 sums are in image/claude/package-lock.json.
FROM debian:trixie-slim AS npm
RUN set -eu; \
    export DEBIAN_FRONTEND=noninteractive; \
    apt-get update -qq; \
    apt-get install -y -qq --no-install-recommends ca-certificates npm >/dev/null; \
    rm -rf /var/lib/apt/lists/*
WORKDIR /npm
COPY image/claude/package.json image/claude/package-lock.json image/claude/.npmrc ./
# npm chooses the package of this architecture by its os and cpu fields; one that is absent is an error here.
RUN set -eu; \
    npm ci --no-progress; \
    ls node_modules/@anthropic-ai/claude-code-linux-*/claude > /dev/null || { \
      echo "no Claude Code for $(uname -m), or it is not what package-lock.json says" >&2; exit 1; }; \
    mkdir -p /out/claude /out/npm; \
    cp node_modules/@anthropic-ai/claude-code-linux-*/claude /out/claude/claude; \
    cp node_modules/@anthropic-ai/claude-code-linux-*/LICENSE.md /out/claude/; \
    cp -R node_modules/npm/. /out/npm/; \
    rm -rf /out/npm/docs /out/npm/man; \
    chmod -R u=rwX,go=rX /out; \
    # Executable but not readable for the agent: the kernel then makes the process non-dumpable, so that the agent's
    # other processes can't read the token out of its memory (ptrace(2), "PTRACE_MODE_ATTACH_FSCREDS").
    chmod 0711 /out/claude/claude; \
    /out/claude/claude --version

# ---- our own files, with modes that do not depend on the checkout's umask ---------------------------------------
FROM debian:trixie-slim AS files
COPY network /out/etc/innkeeper/network
COPY image/tmux.conf /out/opt/innkeeper/tmux.conf
COPY image/home /out/opt/innkeeper/home
COPY image/npm/npmrc /out/usr/local/lib/node_modules/npm/npmrc
COPY image/root/.bashrc image/root/.profile /out/root/
RUN set -eu; \
    chmod -R u=rwX,go=rX /out; chmod 0700 /out/root; \
    mkdir -p /out/usr/local/bin; cd /out/usr/local/bin; \
    for name in gh status attach; do ln -s innkeeper "$name"; done; \
    ln -s /opt/claude/claude claude; \
    ln -s ../lib/node_modules/npm/bin/npm-cli.js npm; \
    ln -s ../lib/node_modules/npm/bin/npx-cli.js npx; \
    mkdir -p /out/etc/claude-code; \
    ln -s /run/innkeeper/etc/claude-settings.json /out/etc/claude-code/managed-settings.json; \
    ln -s /run/innkeeper/etc/CLAUDE.md /out/etc/claude-code/CLAUDE.md; \
    ln -s /run/innkeeper/etc/gitconfig /out/etc/gitconfig

# ---- en_US.UTF-8, which some terminals and scripts insist on ------------------------------------------------------
FROM debian:trixie-slim AS locale
RUN set -eu; \
    export DEBIAN_FRONTEND=noninteractive; \
    apt-get update -qq; \
    apt-get install -y -qq --no-install-recommends locales >/dev/null; \
    mkdir -p /out; localedef -i en_US -f UTF-8 --no-archive /out/en_US.utf8

# ---- the box ---------------------------------------------------------------------------------------------------
FROM debian:trixie-slim
# tmux 3.5 draws Claude Code with flicker: 3.6 or newer is in the backports. All in one layer with the removal of
# what must not stay: package lists, set-uid and set-gid bits (nobody in the box may gain a right by executing
# something), file capabilities.
RUN set -eu; \
    export DEBIAN_FRONTEND=noninteractive; \
    # The archive that the base image names, whichever of apt's two notations it uses.
    archive="$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\).*/\2/p' \
      $(ls /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null) | head -n 1)"; \
    keyring="$(ls /usr/share/keyrings/debian-archive-keyring.* | head -n 1)"; \
    echo "deb [signed-by=$keyring] $archive trixie-backports main" > /etc/apt/sources.list.d/backports.list; \
    printf '%s\n' 'path-exclude=/usr/share/man/*' 'path-exclude=/usr/share/doc/*' \
      'path-include=/usr/share/doc/*/copyright' 'path-exclude=/usr/share/locale/*' \
      'path-exclude=/usr/share/info/*' > /etc/dpkg/dpkg.cfg.d/innkeeper; \
    apt-get update -qq; \
    apt-get install -y -qq --no-install-recommends \
      ca-certificates curl file gh git ipset iptables jq less nodejs openssh-client patch procps \
      python3 python3-pip python3-venv ripgrep unzip xz-utils zip >/dev/null; \
    apt-get install -y -qq --no-install-recommends -t trixie-backports tmux >/dev/null; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/lib/dpkg/*-old \
      /var/log/apt /var/log/dpkg.log /var/log/alternatives.log; \
    find / -xdev -type f -perm /6000 -exec chmod a-s {} +; \
    find / -xdev -type d -perm /6000 -exec chmod a-s {} +
# The agent is uid 1000. The workers share a uid with nobody, own nothing and can't log in; 904 builds layers, 905 tells of notices.
RUN set -eu; \
    groupadd --gid 1000 claude; \
    useradd --uid 1000 --gid 1000 --no-log-init --no-create-home --home-dir /home/claude --shell /bin/bash claude; \
    for worker in dns:901 gate:902 watch:903 build:904 notify:905; do \
      name="innkeeper-${worker%:*}"; id="${worker#*:}"; \
      groupadd --system --gid "$id" "$name"; \
      useradd --system --uid "$id" --gid "$id" --no-log-init --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin "$name"; \
    done; \
    rm -f /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/subuid* /etc/subgid*; \
    # Mount points: the root file system is read-only when the box runs. One temporary directory for everybody.
    mkdir -p /workspace /run/innkeeper /run/user /opt/innkeeper/layer; \
    install -d -m 0700 -o 1000 -g 1000 /home/claude /run/user/1000; \
    rm -rf /var/tmp; ln -s ../tmp /var/tmp; chmod -R go-w /run/lock /var/log /var/mail/.
COPY --from=locale /out/en_US.utf8 /usr/lib/locale/en_US.utf8
COPY --from=npm /out/npm /usr/local/lib/node_modules/npm
COPY --from=npm /out/claude /opt/claude
COPY --from=files /out /
# Verified, not assumed: no set-uid or set-gid file, no file capability, nothing that others than root can write but
# the agent's own directories, and the session's tmux is new enough and understands its configuration.
RUN set -eu; \
    if find / -xdev -perm /6000 ! -type l | grep .; then echo 'set-uid or set-gid: see above' >&2; exit 1; fi; \
    python3 -c 'import os, sys; sys.exit(os.linesep.join(path for top, dirs, files in os.walk("/usr") \
      for path in (os.path.join(top, name) for name in files) \
      if "security.capability" in os.listxattr(path, follow_symlinks=False)) or None)'; \
    if find / -xdev \( -path /tmp -o -path /home/claude -o -path /run/user/1000 \) -prune \
      -o ! -type l \( ! -user 0 -o -perm /022 \) -print | grep .; then \
      echo 'writable by others than root, or owned by them: see above' >&2; exit 1; fi; \
    dpkg --compare-versions "$(tmux -V | cut -d' ' -f2)" ge 3.6; \
    tmux -L check -f /dev/null new-session -d 'sleep 60' ';' source-file /opt/innkeeper/tmux.conf; \
    tmux -L check kill-server; \
    rm -rf /tmp/*
COPY --from=build /out/innkeeper /usr/local/bin/innkeeper

# No directory that the agent can write is in PATH: root's tools are looked up here.
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
WORKDIR /
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
  CMD ["/usr/local/bin/innkeeper", "status", "--check", "live"]
ENTRYPOINT ["/usr/local/bin/innkeeper"]
# Also where it is not PID 1 (docker run --init); arguments of docker run replace it.
CMD ["init"]

ARG REVISION=""
LABEL org.opencontainers.image.title="innkeeper" \
      org.opencontainers.image.description="A box in which Claude Code works unattended behind an allowlist" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.revision="$REVISION"
